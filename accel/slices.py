"""What the slicer is made of: cuts of an axis, groups run slice by slice, GroupNorm over slices.

A group of operators that treat the places of an axis alike, without one place seeing another, gives
the same result slice by slice. GroupNorm sees all places: its mean and variance are summed over the
slices first, and each slice is then normalised with those of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from jobs.errors import CannotRunHere


class Slices:
    """Into how many slices a group's axis is cut. ``note`` is called for every cut group."""

    def __init__(self, count: int, note: Callable[[], None] = lambda: None) -> None:
        self.count = count
        self._note = note

    def of(self, length: int) -> list[tuple[int, int]]:
        """Ranges ``[start, stop)`` that cover the axis; all but the last are equally long."""
        size = -(-length // self.count)
        ranges = [(start, min(start + size, length)) for start in range(0, length, size)]
        if len(ranges) > 1:
            self._note()
        return ranges


def by_frames(slices: Slices, group: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """``group`` of the inputs, run on slices of their first dimension [B*F, ...] and joined.

    An input is a tensor, None, or a list or tuple of them. Besides the inputs, only the joined
    output and one slice's intermediates live.
    """
    length = inputs[0].shape[0]
    ranges = slices.of(length)
    if len(ranges) == 1:
        return group(*inputs)
    joined = None
    for start, stop in ranges:
        part = group(*(_cut(each, start, stop, length) for each in inputs))
        joined = put(joined, part, start, length, dim=0)
        del part  # or it would live beside the next slice's intermediates
    assert joined is not None
    return joined


def put(joined: Tensor | None, part: Tensor, start: int, length: int, *, dim: int = 1) -> Tensor:
    """``joined`` with ``part`` at ``start`` of a dimension that is ``length`` long; the first part
    makes it."""
    if joined is None:
        shape = list(part.shape)
        shape[dim] = length
        joined = part.new_empty(shape)
    joined.narrow(dim, start, part.shape[dim]).copy_(part)
    return joined


def _cut(tree: Any, start: int, stop: int, length: int) -> Any:
    if tree is None:
        return None
    if isinstance(tree, list | tuple):
        return type(tree)(_cut(each, start, stop, length) for each in tree)
    if tree.shape[0] != length:
        raise CannotRunHere(
            f"slicing: an input of shape {tuple(tree.shape)} does not have the {length} frames of "
            "the hidden states; give it once per frame, or render without slicing"
        )
    return tree[start:stop]


class GroupStatistics:
    """Mean and variance of the groups of a GroupNorm, over slices that are added one by one.

    Slices combine by the rule of Chan, Golub and LeVeque (1979), so that no precision is lost where
    the mean is large. Half precision is summed in float32, as PyTorch's GroupNorm does.
    """

    def __init__(self, norm: torch.nn.GroupNorm) -> None:
        self._norm = norm
        self._count = 0
        self._mean = self._squares = torch.zeros(())

    def add(self, part: Tensor) -> None:
        """``part``: [B, C, ...]."""
        copied = part.dtype in (torch.float16, torch.bfloat16)
        if copied:
            part = part.float()
        groups = part.unflatten(1, (self._norm.num_groups, -1))
        mean, squares = _moments(groups, may_write=copied)
        count = groups[0, 0].numel()
        if self._count == 0:
            self._count, self._mean, self._squares = count, mean, squares
            return
        total, apart = self._count + count, mean - self._mean
        self._squares = self._squares + squares + apart.square() * (self._count * count / total)
        self._mean = self._mean + apart * (count / total)
        self._count = total

    def normaliser(self) -> Callable[[Tensor], Tensor]:
        """Normalises a slice [B, C, ...] with the statistics of all that was added."""
        norm = self._norm
        rate = torch.rsqrt(self._squares / self._count + norm.eps)
        per_group = norm.num_channels // norm.num_groups
        scale = rate.repeat_interleave(per_group, 1)
        shift = -self._mean.repeat_interleave(per_group, 1) * scale
        if norm.affine:
            weight, bias = norm.weight.to(scale.dtype), norm.bias.to(scale.dtype)
            scale, shift = scale * weight, shift * weight + bias

        def normalise(part: Tensor) -> Tensor:
            axes = (..., *(None,) * (part.ndim - 2))
            return torch.addcmul(shift[axes], part, scale[axes]).to(part.dtype)

        return normalise


def _moments(groups: Tensor, *, may_write: bool) -> tuple[Tensor, Tensor]:
    """Of groups [B, G, ...] the means and the sums of squared distances from them, [B, G].
    ``may_write``: nobody needs the groups afterwards, so that no copy more lives."""
    axes = tuple(range(2, groups.ndim))
    if groups.device.type != "cpu":
        variance, mean = torch.var_mean(groups, axes, correction=0)
        return mean, variance * groups[0, 0].numel()
    # There var_mean takes one value after the other, far slower than reading all of them thrice.
    mean = groups.mean(axes, keepdim=True)
    apart = groups.sub_(mean) if may_write else groups - mean
    # A norm adds up as it goes, which is exact enough over an axis; the rest is summed in halves.
    squares = torch.linalg.vector_norm(apart, dim=-1).square()
    return mean.flatten(1), squares.flatten(2).sum(2) if squares.ndim > 2 else squares


def statistics_of(norm: torch.nn.GroupNorm, parts: Iterator[Tensor]) -> Callable[[Tensor], Tensor]:
    """Normalises a slice of the whole of which ``parts`` [B, C, ...] are the slices."""
    statistics = GroupStatistics(norm)
    for part in parts:
        statistics.add(part)
    return statistics.normaliser()
