"""How much memory LTX-Video's decoder needs, cut by rows. Pure.

``accel.slicing_ltx_decoder`` cuts it; ``slicing_memory`` says what is counted, and how.
"""

from __future__ import annotations

from collections.abc import Iterator

from jobs.families.decoding_memory import Piece
from jobs.families.family import Config, float32_elements
from jobs.families.ltx import decoded_frames, decoder_levels, filled
from jobs.families.slicing_groups import IN_AND_OUT, Group

#: Copies of its features that live inside a slice: while a convolution runs, its input as it is
#: and with the frames around, and its output; in half precision, while a norm squares in float32.
_CONVOLUTION, _HALF_NORM = 3, 4

#: Frames that a convolution joins to its input.
_AROUND = 2

#: Elements of a picture's pixel, and rows that a slice has on top, for it sees them.
_COLOURS, _BESIDE = 3, 2


def ltx_decoder(config: Config, piece: Piece, dtype: str) -> Iterator[Group]:
    """Each block reads only those frames that matter from there on (``decoded_frames``); what
    entered it lives as long as it runs."""
    config, area, rows = filled(config), piece.height * piece.width, piece.height
    made, *entering, shown = decoded_frames(config, piece.before, piece.frames, piece.after)
    levels, single = decoder_levels(config), float32_elements(dtype)
    sizes = _relative_sizes(config)
    for level, size, frames in zip(levels, sizes, entering, strict=True):
        share = size / max(sizes)
        before = level.entering * made * area
        if level.entering != level.width:
            inside = _copies(frames, single) * level.entering * frames * area
            held = before + IN_AND_OUT * level.width * frames * area
            yield Group(held, inside, share, (rows,), _BESIDE)
        if level.doubles:
            frames, area, rows = 2 * frames - 1, 4 * area, 2 * rows
        inside = _copies(frames, single) * level.width * frames * area
        held = before + IN_AND_OUT * level.width * frames * area
        yield Group(held, inside, share, (rows,), _BESIDE)
        made = frames
    own = min(shown, piece.frames * 2 ** sum(level.doubles for level in levels))
    picture = _COLOURS * area * config["patch_size"] ** 2
    yield Group((shown + max(shown, (1 + single) * own)) * picture)


def _relative_sizes(config: Config) -> list[int]:
    """Of what leaves each block, by which its slices are counted."""
    size, sizes = 1, []
    for level in decoder_levels(config):
        size *= 8 if level.doubles else 1
        sizes.append(size * level.width)
    return sizes


def _copies(frames: int, single: int) -> float:
    return max(_CONVOLUTION + _AROUND / frames, _HALF_NORM if single > 1 else 0)
