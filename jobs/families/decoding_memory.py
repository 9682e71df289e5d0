"""How much memory an unsliced decoder needs, from its config alone. Pure.

As in ``whole_memory``, a peak falls on one of a few moments, each what lives at once then. A
decoder has some at every level, where besides lie the pictures that are done and, of a causal one,
what its convolutions keep. In elements of the decoder's dtype, of which a value in float32 takes
``single``; what pads rows and columns is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jobs.families.family import DTYPE_BYTES, Config, float32_elements
from jobs.families.ltx import decoded_frames, decoder_levels, filled
from jobs.families.slicing_causal_memory import (
    BATCH,
    PAST_FRAMES,
    TILE,
    TILE_STRIDE,
    Level,
    cogvideox_levels,
    hunyuan_video_levels,
)

#: Frames that LTX-Video's convolutions join to their input, of which they hold copies meanwhile.
_BESIDE = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """Latent frames that are decoded together, how large they are, and how many of their shot come
    before and after them."""

    frames: int
    height: int
    width: int
    before: int = 0
    after: int = 0

    @property
    def shot_frames(self) -> int:
        return self.before + self.frames + self.after


def decoding_bytes(config: Config, piece: Piece, dtype: str) -> int:
    """Estimate of what decoding a piece in ``dtype`` makes at its peak, as its family decodes.
    ``config`` is the autoencoder's config.json."""
    moments = _MOMENTS[config["_class_name"]]
    return int(max(moments(config, piece, float32_elements(dtype))) * DTYPE_BYTES[dtype])


def _pictures(frames: int, area_px: float) -> float:
    return 3 * frames * area_px


def _finished(frames: int, area_px: float, single: int) -> float:
    """Of all pictures of a piece: as they were decoded, in [0, 1], and in float32 on their way to
    bytes; of a decoder in float32 once halved."""
    return (2 + single) * _pictures(frames, area_px)


def _finished_float32(frames: int, area_px: float, single: int) -> float:
    """The same where the family's pipeline brings them to [0, 1] in float32."""
    return 3 * single * _pictures(frames, area_px)


def _single_pictures(config: Config, piece: Piece, single: int) -> Iterator[float]:
    """Picture by picture. A block's result is added to its input and scaled, beside the level's."""
    frames, height, width = piece.frames, piece.height, piece.width
    area_px = height * width * _scale(config) ** 2
    for live in _picture_levels(config, height * width, mixing=4):
        yield _pictures(frames - 1, area_px) + live
    yield _finished_float32(frames, area_px, single)


def _temporal(config: Config, piece: Piece, single: int) -> Iterator[float]:
    """All frames at once. A block's spatial and temporal results are mixed, beside its input and
    the level's."""
    frames, height, width = piece.frames, piece.height, piece.width
    for live in _picture_levels(config, height * width, mixing=6):
        yield frames * live
    yield _finished_float32(frames, height * width * _scale(config) ** 2, single)


def _scale(config: Config) -> int:
    """Pixels per latent place, of a decoder that doubles at every level but one."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def _picture_levels(config: Config, area: int, mixing: int) -> Iterator[int]:
    """Elements of a picture that live at moments of its levels, coarsest first: where what enters
    is normalised and activated; where a block ends with ``mixing`` copies; and where what leaves is
    upsampled and convolved."""
    widths = [*reversed(config["block_out_channels"])]
    entering = widths[0]
    for level, wide in enumerate(widths):
        yield 3 * entering * area
        yield (entering + mixing * wide) * area
        if level < len(widths) - 1:
            yield (entering + wide + 2 * 4 * wide) * area
        entering, area = wide, 4 * area


def _wan(config: Config, piece: Piece, single: int) -> Iterator[float]:
    """A latent frame at a time. A convolution joins its input to the frames that it kept and pads
    that, beside the input of its block and of the level, and what it keeps next. The very first
    frame is joined to none, and what is kept gathers while it is decoded."""
    frames, height, width = piece.frames, piece.height, piece.width
    alone = piece.shot_frames == 1
    kept_frames, joined = (1, 1) if alone else (PAST_FRAMES, 2)
    kept, moments = 0.0, []
    for level in wan_levels(config, height * width, doubles=not alone):
        now, wide, area = level.frames, level.width, level.area
        padded = joined * (now + PAST_FRAMES) + (0 if alone else kept_frames)
        result, shortcut = now if alone else 0, 0 if wide == level.entering else now * wide
        first = shortcut + (now + padded) * level.entering + result * wide
        moments.append((kept + kept_frames * level.entering * area, level.held + first * area))
        kept += kept_frames * level.keeping * area
        moments.append((kept, level.held + (2 * now + padded + result) * wide * area))
        # All channels at twice the resolution, beside that in float32; then a convolution.
        largest = max(4 * (wide + level.leaving), 4 * wide * (2 * single - 1))
        upsampled = now * wide + level.after * (wide + largest)
        moments.append((kept, level.held + upsampled * area if level.leaving else 0))
    area_px = area * (config.get("patch_size") or 1) ** 2
    done = _pictures(max(0, 1 + now * (frames - 2)), area_px)
    for then, inside in moments:
        yield done + inside + (then if alone else kept)
    yield kept + _finished(1 + now * (frames - 1), area_px, single)


@dataclass(frozen=True, slots=True)
class WanLevel:
    """A level of Wan's decoder while a latent frame goes through."""

    entering: int  # channels
    width: int  # channels
    frames: int  # of a latent one
    area: int  # rows x columns
    held: int  # elements of what entered, which live on
    keeping: int  # channels that its convolutions keep
    leaving: int  # channels that its upsampler gives; of the finest none
    after: int  # frames that it gives


def wan_levels(config: Config, area: int, *, doubles: bool) -> Iterator[WanLevel]:
    """Coarsest first. ``doubles``: whether the frames do where the model says so: the very first
    does not."""
    base = config.get("decoder_base_dim") or config.get("base_dim") or 96
    widths = [base * multiple for multiple in reversed(config["dim_mult"])]
    resnets, residual = (config.get("num_res_blocks") or 2) + 1, bool(config.get("is_residual"))
    entering, frames = widths[0], 1
    for i, (width, in_time) in enumerate(
        zip(widths, [*reversed(config["temperal_downsample"]), False], strict=True)
    ):
        finest = i == len(widths) - 1
        middle = 0 if i else 4 * width
        leaving = 0 if finest else width if residual else width // 2
        after = 2 * frames if in_time and doubles else frames
        yield WanLevel(
            entering=entering,
            width=width,
            frames=frames,
            area=area,
            held=(2 if residual else 1) * entering * frames * area,
            keeping=entering + (2 * resnets - 1) * width + middle + (in_time or finest) * width,
            leaving=leaving,
            after=after,
        )
        entering, frames, area = leaving, after, 4 * area


def _cogvideox(config: Config, piece: Piece, single: int) -> Iterator[float]:
    """A batch of frames at a time: the first, or a later one, beside what convolutions kept of the
    one before and the pictures that are done."""
    frames, height, width = piece.frames, piece.height, piece.width
    first = min(piece.shot_frames, BATCH + piece.shot_frames % 2)
    ratio, area_px = int(config["temporal_compression_ratio"]), height * width * _scale(config) ** 2
    kept, moments = _cogvideox_batch(config, cogvideox_levels(config, (first, height, width)))
    yield max(moments)
    if piece.shot_frames > first:
        done = _pictures(max(0, 1 + ratio * (frames - 1 - BATCH)), area_px)
        levels = cogvideox_levels(config, (BATCH, height, width))
        yield kept + done + max(_cogvideox_batch(config, levels)[1])
    yield kept + _finished(1 + ratio * (frames - 1), area_px, single)


def _cogvideox_batch(config: Config, levels: list[Level]) -> tuple[float, list[float]]:
    """What its convolutions keep, and moments. A norm takes scale and offset of the latents: these,
    what it makes of its input, their product and sum live beside that, its block's input and the
    level's. Until the batch is done it keeps the latents twice, as large as its input."""
    latents = config["latent_channels"]
    kept, beside, moments = float(PAST_FRAMES * latents * levels[0].area), 0.0, []
    for i, level in enumerate(levels):
        norms = 2 * (config["layers_per_block"] + (1 if i else 3))  # the middle block's, too
        size = level.frames * level.area
        moments.append(kept + beside + (6 * level.entering + 3 * latents) * size)
        beside += norms * 2 * latents * size
        kept += level.kept * (norms - 2) + level.kept * level.entering / level.width
        moments.append(kept + beside + (level.entering + 7 * level.width + latents) * size)
        kept += level.kept
    return kept + levels[-1].kept, moments


def _hunyuan_video(config: Config, piece: Piece, single: int) -> Iterator[float]:
    """A tile in time at once, beside those that are done: of a piece the one before it, too, whose
    end is blended in. A convolution pads its input, beside the input of its block and of the level;
    an upsampler's, beside its own parts and what they were made of. The middle block's attention
    has a mask."""
    frames, height, width = piece.frames, piece.height, piece.width
    ratio, area_px = config["temporal_compression_ratio"], height * width
    area_px *= config["spatial_compression_ratio"] ** 2
    made = min(piece.shot_frames, frames + TILE_STRIDE + 1)
    tile = min(made, TILE)
    done = (made - tile) // TILE_STRIDE * _pictures(1 + ratio * (tile - 1), area_px)
    yield done + _mask(single) * (tile * height * width) ** 2
    before = 0
    for level in hunyuan_video_levels(config, (tile, height, width)):
        size = level.frames * level.area
        if level.below:
            joined = 1 if level.frames > 1 else 0
            yield done + before + level.below + (3 + joined + level.past) * level.entering * size
        yield done + ((3 + level.past) * level.entering + level.width) * size
        yield done + (level.entering + (4 + level.past) * level.width) * size
        before = level.entering * size
    yield _finished(1 + ratio * (frames - 1), area_px, single)


def _mask(single: int) -> float:
    """A mask of every pair of places: in float32, beside what it is made of, a byte each; then in
    half precision, too."""
    return 1 + 1 / 4 if single == 1 else 1 + single


def _ltx(config: Config, piece: Piece, single: int) -> Iterator[float]:
    """A piece at once, with what it depends on: each block of the decoder reads only what matters
    from there on. A convolution joins its input to frames before and after, beside the input of its
    block and all that the level was given; a norm squares its own, in float32."""
    frames, height, width = piece.frames, piece.height, piece.width
    config, area = filled(config), height * width
    made, *entering, shown = decoded_frames(config, piece.before, frames, piece.after)
    levels, latents = decoder_levels(config), config["latent_channels"] * made * area
    for level, count in zip(levels, entering, strict=True):
        before, doubled = level.entering * made * area, int(level.doubles)
        if level.entering != level.width:
            joined = (2 * count + 2 * _BESIDE) * level.entering + count * level.width
            yield latents + before + joined * area
        if level.doubles:  # what the first frame was doubled to lives on, unseen
            count, area = 2 * count - 1, 4 * area
        inside = doubled + max(4 * count + 2 * _BESIDE, 3 * single * count)
        yield latents + before + inside * level.width * area
        made = count
    own = min(shown, frames * 2 ** sum(level.doubles for level in levels))
    yield _pictures(shown + (1 + single) * own, area * config["patch_size"] ** 2)


_MOMENTS: dict[str, Callable[[Config, Piece, int], Iterator[float]]] = {
    "AutoencoderKL": _single_pictures,
    "AutoencoderKLCogVideoX": _cogvideox,
    "AutoencoderKLHunyuanVideo": _hunyuan_video,
    "AutoencoderKLLTXVideo": _ltx,
    "AutoencoderKLTemporalDecoder": _temporal,
    "AutoencoderKLWan": _wan,
}
