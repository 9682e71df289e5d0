"""Decoders of video autoencoders run by rows: what their kinds have in common.

Every operator of a residual block sees one row above and one below at most, all frames and the
whole width. So rows of its output are made from a few more rows of its input, through norm,
activation, padding and convolution; whole are the block's input and what stands between its two
convolutions. Norms that need statistics take them over all rows first. The result is added to the
input in place: nothing else in these decoders reads that.

Where a block has fewer channels than the one before, what the upsampler between makes would be the
widest features of all. They never exist whole, but are made twice: for the statistics and the
shortcut, and for the first convolution.

A reader gives rows [start, stop) of features [B, C, F, H, W]. An operator's reader reads what it
needs from the reader of the operator before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from accel.slices import Slices, put

if TYPE_CHECKING:
    from accel.slicing import SlicingHandle

Reader = Callable[[int, int], Tensor]
Normaliser = Callable[[Tensor], Tensor]
Ranges = list[tuple[int, int]]

ROWS = 3  # the dimension that is cut


class Statistics(Protocol):
    """What a norm must know of all rows before it can normalise one."""

    def add(self, part: Tensor) -> None: ...

    def normaliser(self) -> Normaliser: ...


class Operators(Protocol):
    """What the blocks of a kind of decoder are made of."""

    def statistics(self, norm: Any) -> Statistics:
        """A norm's, of no rows yet."""

    def shortcut(self, block: Any) -> Normaliser | None:
        """What a residual block makes of each place of its input before it is added, if it does."""

    def normed(self, norm: Any, normalise: Normaliser, read: Reader, height: int) -> Reader:
        """Of a norm, whose input ``normalise`` has the statistics of."""

    def convolved(self, module: Any, name: str, read: Reader, height: int) -> Reader:
        """Of a convolution, which sees one row beside each."""


class LevelOperators(Operators, Protocol):
    """Of a decoder whose upsamplers come before residual blocks."""

    def upsampled(self, module: Any, x: Tensor) -> Tensor:
        """An upsampler's output."""

    def inside(self, name: str) -> LevelOperators:
        """Those of a submodule of that name."""


@dataclass(frozen=True)
class Level:
    """A block of residual blocks, after the upsampler of the block before."""

    name: str
    block: Any
    slices: Slices
    upsampler: Any = None
    scale: int = 1  # rows that the upsampler makes of one


def decoder_levels(
    decoder: Any, handle: SlicingHandle, scale: Callable[[Any], tuple[int, int, int]]
) -> list[Level]:
    """A decoder's, with slices by their size. ``scale`` is an upsampler's, of frames, rows and
    columns."""
    size, upsampler, found, sizes = 1, None, [], []
    for i, block in enumerate(decoder.up_blocks):
        frames, rows, columns = (1, 1, 1) if upsampler is None else scale(upsampler)
        size *= frames * rows * columns
        conv = block.resnets[0].conv1.conv
        sizes.append(size * max(conv.in_channels, conv.out_channels))
        found.append((f"up_block_{i}", block, upsampler, rows))
        (upsampler,) = block.upsamplers or (None,)
    slices = [handle.slices(each / max(sizes)) for each in sizes]
    middle = Level("mid_block", decoder.mid_block, slices[0])
    return [middle, *(Level(n, b, s, u, r) for (n, b, u, r), s in zip(found, slices, strict=True))]


def know_blocks(
    decoder: Any, handle: SlicingHandle, up: type, resnet: type, upsampler: type
) -> None:
    """Raises for one that is of none of these kinds."""
    for block in decoder.up_blocks:
        handle.know(block, up)
        for each in block.upsamplers or ():
            handle.know(each, upsampler)
    for block in (decoder.mid_block, *decoder.up_blocks):
        for each in block.resnets:
            handle.know(each, resnet)


class PlaceByPlace:
    """Of a norm over the channels of each place: there is nothing to know of the others."""

    def __init__(self, norm: Normaliser) -> None:
        self._norm = norm

    def add(self, part: Tensor) -> None:
        pass

    def normaliser(self) -> Normaliser:
        return self._norm


# -- readers


def whole(x: Tensor) -> Reader:
    return lambda start, stop: x[..., start:stop, :]


def seeing(
    read: Reader, operator: Callable[[Tensor, int], Tensor], height: int, scale: int = 1
) -> Reader:
    """Of an operator that makes ``scale`` rows of one and then sees one beside each. It gets a part
    of its input, ``height`` rows in all, and the part's first row. What it takes for the border of
    the whole may be one of the part: a row there is left out."""

    def rows(start: int, stop: int) -> Tensor:
        first = max(0, (start - 1) // scale)
        made = operator(read(first, min(height, -(-(stop + 1) // scale))), first)
        return made[..., start - first * scale : stop - first * scale, :]

    return rows


def _joined(
    read: Reader,
    ranges: Ranges,
    statistics: Statistics | None = None,
    then: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """All rows, of which the statistics are taken, and ``then`` what a pointwise operator makes of
    them."""
    joined, height = None, ranges[-1][1]
    for start, stop in ranges:
        part = read(start, stop)
        if statistics is not None:
            statistics.add(part)
        if then is not None:
            part = then(part)
        joined = put(joined, part, start, height, dim=ROWS)
        del part  # or it would live beside the next
    assert joined is not None
    return joined


# -- residual blocks


def resnet_by_rows(
    block: Any,
    slices: Slices,
    operators: Operators,
    x: Tensor,
    upsampled: Callable[[Tensor], Tensor] | None = None,
    scale: int = 1,
) -> Tensor:
    """Changes x where nothing else changes its shape. ``upsampled`` makes ``scale`` rows of one
    before the block."""
    read, shortcut = whole(x), operators.shortcut(block)
    ranges = slices.of(x.shape[ROWS] * scale)
    if upsampled is not None:
        read = seeing(read, lambda part, first: upsampled(part), x.shape[ROWS], scale)
    norm1, norm2 = operators.statistics(block.norm1), operators.statistics(block.norm2)
    if upsampled is None and shortcut is None:
        for start, stop in ranges:
            norm1.add(read(start, stop))
    else:
        x = _joined(read, ranges, norm1, shortcut)
        read = whole(x) if shortcut is None else read
    convolved = partial(_convolved, operators, block.nonlinearity, ranges)
    hidden = _joined(convolved("conv1", block.conv1, block.norm1, norm1, read), ranges, norm2)
    read = convolved("conv2", block.conv2, block.norm2, norm2, whole(hidden))
    for start, stop in ranges:
        x[..., start:stop, :].add_(read(start, stop))
    return x


def head_by_rows(
    norm: Any,
    activation: Callable[[Tensor], Tensor],
    convolution: Any,
    slices: Slices,
    operators: Operators,
    x: Tensor,
) -> Tensor:
    """A decoder's last norm, activation and convolution."""
    read, ranges = whole(x), slices.of(x.shape[ROWS])
    statistics = operators.statistics(norm)
    for start, stop in ranges:
        statistics.add(read(start, stop))
    made = _convolved(
        operators, activation, ranges, "conv_out", convolution, norm, statistics, read
    )
    return _joined(made, ranges)


def _convolved(
    operators: Operators,
    activation: Callable[[Tensor], Tensor],
    ranges: Ranges,
    name: str,
    convolution: Any,
    norm: Any,
    statistics: Statistics,
    read: Reader,
) -> Reader:
    """Of a norm, with the statistics of its input, an activation and a convolution."""
    height = ranges[-1][1]
    normed = operators.normed(norm, statistics.normaliser(), read, height)

    def activated(start: int, stop: int) -> Tensor:
        return activation(normed(start, stop))

    return operators.convolved(convolution, name, activated, height)


def blocks_by_rows(levels: list[Level], operators: LevelOperators, x: Tensor) -> Tensor:
    for level in levels:
        inside = operators.inside(level.name)
        up = partial(inside.upsampled, level.upsampler) if level.upsampler is not None else None
        first, *others = (
            (resnet, level.slices, inside.inside(f"resnet_{i}"))
            for i, resnet in enumerate(level.block.resnets)
        )
        x = resnet_by_rows(*first, x, up, level.scale)
        for each in others:
            x = resnet_by_rows(*each, x)
    return x


def spread(part: Tensor, frames: int) -> Tensor:
    """Each frame twice, of the first one as many as make it ``frames``; or the part as it is."""
    if part.shape[2] == frames:
        return part
    return part.repeat_interleave(2, dim=2)[:, :, -frames:]
