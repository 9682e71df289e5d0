"""How much memory the decoders of causal autoencoders need, cut by rows. Pure.

``accel.slicing_causal_decoders`` cuts them; ``slicing_memory`` says what is counted, and how.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from jobs.families.cogvideox import DECODE_BATCH_LATENT_FRAMES
from jobs.families.family import DTYPE_BYTES, Config
from jobs.families.hunyuan_video import TILE_PX_FRAMES, TILE_STRIDE_PX_FRAMES
from jobs.families.slicing_groups import IN_AND_OUT, Group, Size, Whole

#: Frames that a causal convolution sees before the first.
PAST_FRAMES = 2

#: Copies of its features that live inside a slice: while a residual block's convolution runs, its
#: input as it is and with the frames before, and its output; behind an upsampler, while that runs;
#: in half precision, while a norm does behind an upsampler, which is computed in float32.
_RESNET = 3
_HUNYUAN_VIDEO_UPSAMPLED = 3.25
_COGVIDEOX_UPSAMPLED = 2.5
_HALF_NORM = 4

#: HunyuanVideo's tiles in time, in latent frames, and how far apart they are.
TILE, TILE_STRIDE = 1 + TILE_PX_FRAMES // 4, TILE_STRIDE_PX_FRAMES // 4

#: Latent frames that CogVideoX decodes at once; of an odd number one more, the first time.
BATCH = DECODE_BATCH_LATENT_FRAMES

#: Pictures of a decoded piece: as decoded, joined, rescaled, and on the way to bytes.
_PICTURE_COPIES = 4


@dataclass(frozen=True, slots=True)
class Level:
    """A decoder's level, behind the upsampler of the one below."""

    entering: int  # channels that come from the level below
    width: int  # channels
    frames: int
    rows: int
    area: int  # rows x columns
    below: int  # elements of what the upsampler takes; none before the coarsest
    share: float

    @property
    def past(self) -> float:
        """What a convolution sees before the first frame, as a share of all frames."""
        return PAST_FRAMES / self.frames

    @property
    def kept(self) -> int:
        """Elements that a convolution keeps of the width."""
        return PAST_FRAMES * self.width * self.area

    def resnet(self, held: float, copies: float) -> Group:
        """What goes into it and what stands between its convolutions are whole."""
        size = self.width * self.frames * self.area
        held += IN_AND_OUT * size
        return Group(held, copies * size, self.share, (self.rows,), beside=2)

    def first_resnet(self, held: float, copies: float) -> Group:
        """Behind an upsampler, whose rows are made of those below as they are needed."""
        size = self.frames * self.area
        held += self.below + IN_AND_OUT * self.width * size
        return Group(held, copies * self.entering * size, self.share, (self.rows,), beside=4)


def _levels(
    config: Config, latent_size: Size, doubles: list[tuple[bool, bool]], *, first_alone: bool
) -> list[Level]:
    """Coarsest first. ``doubles``: whether time and space double before a level. The first frame
    stays one where it is alone in any number, or the number is odd."""
    widths = [*reversed(config["block_out_channels"])]
    frames, rows, columns = latent_size
    entering, relative, found = widths[0], 1, []
    for width, (time, space) in zip(widths, doubles, strict=True):
        below = entering * frames * rows * columns if time or space else 0
        if time:
            alone = first_alone or frames % 2
            frames, relative = 2 * frames - alone, 2 * relative
        if space:
            rows, columns, relative = 2 * rows, 2 * columns, 4 * relative
        share = relative * max(entering, width)
        found.append(Level(entering, width, frames, rows, rows * columns, below, share))
        entering = width
    largest = max(level.share for level in found)
    return [replace(level, share=level.share / largest) for level in found]


def hunyuan_video_levels(config: Config, latent_size: Size) -> list[Level]:
    """Of a tile in time, as so many latent frames make it."""
    count = len(config["block_out_channels"])
    scale, ratio = config["spatial_compression_ratio"], config["temporal_compression_ratio"]
    space, time = scale.bit_length() - 1, ratio.bit_length() - 1
    doubles = [(i >= max(1, count - time), 1 <= i <= space) for i in range(count)]
    return _levels(config, latent_size, doubles, first_alone=True)


def cogvideox_levels(config: Config, latent_size: Size) -> list[Level]:
    """Of a batch of so many latent frames."""
    count, ratio = len(config["block_out_channels"]), int(config["temporal_compression_ratio"])
    doubles = [(1 <= i < ratio.bit_length(), i >= 1) for i in range(count)]
    return _levels(config, latent_size, doubles, first_alone=False)


def hunyuan_video_decoder(
    config: Config, latent_size: Size, branches: int, dtype: str, text_tokens: int, whole: Whole
) -> Iterator[Group]:
    """One tile in time is decoded at once, beside the pictures of those before."""
    frames, height, width = latent_size
    scale, ratio = config["spatial_compression_ratio"], config["temporal_compression_ratio"]
    tile = min(frames, TILE)
    picture = config.get("out_channels", 3) * height * width * scale**2
    before = (frames - tile) // TILE_STRIDE * picture * (1 + ratio * (tile - 1))
    for level in hunyuan_video_levels(config, (tile, height, width)):
        yield level.resnet(before, _RESNET + level.past)
        if level.below:
            entering = _HUNYUAN_VIDEO_UPSAMPLED + level.past
            yield level.first_resnet(before, max(entering, _half_norm(dtype)))
    yield Group(_PICTURE_COPIES * picture * (1 + ratio * (frames - 1)))


def cogvideox_decoder(
    config: Config, latent_size: Size, branches: int, dtype: str, text_tokens: int, whole: Whole
) -> Iterator[Group]:
    """A batch of frames is decoded at once, beside the pictures of those before and what every
    convolution keeps for the next batch. In the first batch that gathers; in a later one it takes,
    convolution by convolution, the place of what was kept before."""
    frames, height, width = latent_size
    ratio = int(config["temporal_compression_ratio"])
    first = min(frames, BATCH + frames % 2)
    kept = 0
    for i, level in enumerate(cogvideox_levels(config, (first, height, width))):
        if level.below:
            yield _cogvideox_first(level, kept, dtype)
        blocks = config["layers_per_block"] + (1 if i else 3)  # the middle block's two
        kept += (2 * blocks - 1) * level.kept + level.kept * level.entering // level.width
        yield level.resnet(kept, _RESNET + 2 * level.past)
    kept += level.kept  # the last convolution's
    pictures = config.get("out_channels", 3) * level.area * (1 + ratio * (frames - 1))
    if frames > first:
        for level in cogvideox_levels(config, (BATCH, height, width)):
            if level.below:
                yield _cogvideox_first(level, pictures + kept, dtype)
            yield level.resnet(pictures + kept + level.kept, _RESNET + 2 * level.past)
    yield Group(kept + _PICTURE_COPIES * pictures)


def _cogvideox_first(level: Level, held: float, dtype: str) -> Group:
    """With what its first convolution keeps."""
    convolution = 2 + 2 * level.past + level.width / level.entering
    copies = max(_COGVIDEOX_UPSAMPLED, convolution, _half_norm(dtype))
    return level.first_resnet(held + level.kept * level.entering // level.width, copies)


def _half_norm(dtype: str) -> int:
    return _HALF_NORM if DTYPE_BYTES[dtype] < 4 else 0
