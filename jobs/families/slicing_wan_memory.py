"""How much memory Wan's decoder needs, cut by rows. Pure.

``accel.slicing_wan_decoder`` cuts it; ``slicing_memory`` says what is counted, and how.
"""

from __future__ import annotations

from collections.abc import Iterator

from jobs.families.decoding_memory import wan_levels
from jobs.families.family import Config, float32_elements
from jobs.families.slicing_causal_memory import PAST_FRAMES
from jobs.families.slicing_groups import IN_AND_OUT, Group, Size, Whole

#: Copies of its features that live inside a slice while a convolution pads its input, beside that
#: as it is and with the frames before; in half precision, while a norm is computed in float32.
_CONVOLUTION, _HALF_NORM = 3, 5

#: The same of the very first frame, which is padded with two, beside the output.
_PADDED_ALONE = 4

#: Copies of an upsampler's result while a shortcut is added to it.
_WITH_SHORTCUT = 4

#: Pictures of a decoded piece: as decoded, joined, and on the way to bytes.
_PICTURES = 3


def wan_decoder(
    config: Config, latent_size: Size, branches: int, dtype: str, text_tokens: int, whole: Whole
) -> Iterator[Group]:
    """A latent frame at a time, beside the pictures of those before and what every convolution
    keeps; the one that runs holds what it kept before, too. Of the very first frame that gathers,
    and a frame alone is not doubled."""
    frames, rows, columns = latent_size
    alone, single = frames == 1, float32_elements(dtype)
    kept_frames = 1 if alone else PAST_FRAMES
    levels = [*wan_levels(config, rows * columns, doubles=not alone)]
    last = levels[-1]
    area_px = last.area * (config.get("patch_size") or 1) ** 2
    pictures = 3 * (1 + last.frames * (frames - 1)) * area_px
    kept = 0 if alone else kept_frames * sum(level.keeping * level.area for level in levels)
    relative = [level.frames * level.area * level.width for level in levels]
    doubled = [4 * level.after * level.area * level.width for level in levels]
    largest = max(*(2 * size for size in relative), *doubled[:-1])
    for level, size, up in zip(levels, relative, doubled, strict=True):
        if alone:  # it gathers
            kept += level.keeping * level.area
        residual = bool(config.get("is_residual")) and level.leaving
        entered = level.entering * level.frames * level.area
        held = pictures + kept + (entered if residual else 0)
        shortcut = entered if level.entering != level.width else 0
        wide = max(entered, size) if shortcut else size
        inside = (_CONVOLUTION + 2 * kept_frames / level.frames) * wide
        if alone:
            inside = _PADDED_ALONE * wide + size
        inside = max(inside, _HALF_NORM * wide if single > 1 else 0)
        again = 0 if alone else kept_frames * level.width * level.area
        held_resnet = held + again + shortcut + IN_AND_OUT * size
        yield Group(held_resnet, inside, 2 * size / largest, (rows,), beside=2)
        if level.leaving:
            made = 4 * level.after * level.area * level.leaving
            inside = max((2 * single - 1) * up + made, _WITH_SHORTCUT * made if residual else 0)
            yield Group(held + size + made, inside, up / largest, (rows,), beside=2)
            rows *= 2
    yield Group(kept + _PICTURES * pictures)
