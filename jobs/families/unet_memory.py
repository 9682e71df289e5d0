"""What lives at once in Stable Diffusion's UNet with frames. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from jobs.families.family import Config
from jobs.families.slicing_groups import Size

#: Copies of a block's features, of what its feed-forward needs and of what it reads: in the product
#: of a gated feed-forward, the projection to eight times the width, one half's activation and the
#: product are sixteen. Beside them in AnimateDiff's: the residual, what enters the transformer, its
#: attention's result, their sum, and that normalised. In Stable Video Diffusion's temporal one: the
#: spatial features with and without their places in time, and those in order of time, too.
_MOTION, _SPATIO_TEMPORAL = 21, 23


@dataclass(frozen=True, slots=True)
class Levels:
    """A UNet's levels, finest first: their features' elements, shares, and axes."""

    sizes: list[float]
    entering: list[float]  # elements that come up to a level from the one below, at its resolution
    shares: list[float]
    lengths: list[tuple[int, int]]  # frames of all branches, positions
    layers: int
    attends: list[bool]


def levels_of(config: Config, batch_frames: int, positions: int) -> Levels:
    widths = config["block_out_channels"]
    layers = config.get("layers_per_block") or 2
    kinds = config.get("down_block_types") or ("CrossAttn",) * (len(widths) - 1) + ("",)
    relative = [width / 4**level for level, width in enumerate(widths)]
    below = [width / 4**level for level, width in enumerate([*widths[1:], widths[-1]])]
    return Levels(
        sizes=[batch_frames * positions * each for each in relative],
        entering=[batch_frames * positions * each for each in below],
        shares=[each / max(relative) for each in relative],
        lengths=[(batch_frames, max(1, positions // 4**level)) for level in range(len(widths))],
        layers=layers if isinstance(layers, int) else max(layers),
        attends=["CrossAttn" in kind for kind in kinds],
    )


class Block(NamedTuple):
    """A block, and the elements of the skip connections that lie beside it."""

    skips: float
    level: int
    attends: bool
    rises: bool  # whether its input came up from a coarser level, or from the middle


def blocks_of(levels: Levels) -> Iterator[Block]:
    """Skip connections gather on the way down, and go on the way up when the block ends that reads
    them."""
    last = len(levels.sizes) - 1
    skips = [levels.sizes[0]]
    for level, size in enumerate(levels.sizes):
        for _ in range(levels.layers):
            yield Block(sum(skips), level, levels.attends[level], rises=False)
            skips.append(size)
        if level < last:
            skips.append(size / 4)
    yield Block(sum(skips), last, attends=True, rises=False)
    for level in range(last, -1, -1):
        yield Block(sum(skips), level, levels.attends[level], rises=True)
        del skips[-(levels.layers + 1) :]


def unet_moments(
    config: Config, latent_size: Size, branches: int, dtype: str, text_tokens: int
) -> Iterator[float]:
    """Of every block that has a transformer, at its feed-forward. What came up to a block lives as
    long as the block does."""
    frames, height, width = latent_size
    motion = config["_class_name"] == "UNetMotionModel"
    levels = levels_of(config, branches * frames, height * width)
    copies, image = (_MOTION, 0) if motion else (_SPATIO_TEMPORAL, config["cross_attention_dim"])
    for skips, level, attends, rises in blocks_of(levels):
        if attends or motion:
            held = skips + (levels.entering[level] if rises else 0)
            of_places = branches * levels.lengths[level][1] * image
            yield held + copies * levels.sizes[level] + of_places
