"""Cuts, groups by frames, and GroupNorm over slices."""

from __future__ import annotations

import pytest
import torch

from accel.memory import TensorAccounting
from accel.slices import GroupStatistics, Slices, by_frames, statistics_of
from jobs.errors import CannotRunHere


@pytest.mark.parametrize("length", [1, 2, 7, 8, 16])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 100])
def test_cuts_cover_the_axis_once(length: int, count: int) -> None:
    ranges = Slices(count).of(length)
    assert [place for start, stop in ranges for place in range(start, stop)] == list(range(length))
    assert 1 <= len(ranges) <= count and max(b - a for a, b in ranges) == -(-length // count)


def test_only_what_is_cut_is_noted() -> None:
    noted: list[int] = []
    slices = Slices(4, lambda: noted.append(1))
    slices.of(1)
    assert not noted
    slices.of(8)
    assert len(noted) == 1


def test_a_group_by_frames_cuts_every_input() -> None:
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    seen = []

    def group(x: torch.Tensor, y: tuple, nothing: None) -> torch.Tensor:
        seen.append(len(x))
        return x * y[0] + y[1]

    assert torch.equal(by_frames(Slices(2), group, x, (y, y), None), x * y + y)
    assert seen == [3, 2]


def test_an_input_of_another_length_is_refused() -> None:
    with pytest.raises(CannotRunHere, match=r"shape \(2, 3\) does not have the 6 frames"):
        by_frames(Slices(2), torch.add, torch.zeros(6, 3), torch.zeros(2, 3))


def test_one_slices_intermediates_live() -> None:
    x = torch.zeros(8, 100)
    with TensorAccounting() as memory:
        y = by_frames(Slices(8), lambda part: ((part + 1) + 1).repeat(1, 5)[:, :100] + 1, x)
    a_slice = 400
    # the output, and in the last operator of a slice: the repeated slice and the result
    assert memory.peak_bytes == y.nbytes + (5 + 1) * a_slice


def test_moments_of_millions_of_values_lose_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 64, 2**16) + 3  # 4 million in a group
    statistics = GroupStatistics(torch.nn.GroupNorm(2, 2))
    for part in x.split(2**15, dim=3):
        statistics.add(part)
    variance, mean = torch.var_mean(x.double(), (2, 3), correction=0)
    found = statistics._squares / x[0, 0].numel(), statistics._mean
    for ours, exact in zip(found, (variance, mean), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=3e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_over_slices_is_that_of_the_whole(dtype: torch.dtype, affine: bool) -> None:
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(3, 6, affine=affine, dtype=dtype)
    if affine:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    x = (torch.randn(2, 6, 5, 7) * torch.arange(1, 8) + 30).to(dtype)
    parts = [x[..., start:stop] for start, stop in Slices(3).of(7)]
    normalise = statistics_of(norm, iter(parts))
    got = torch.cat([normalise(part) for part in parts], -1)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3}[dtype]
    assert got.dtype == dtype
    torch.testing.assert_close(got, norm(x), atol=tolerance, rtol=0)


def test_a_large_mean_costs_no_precision() -> None:
    norm = torch.nn.GroupNorm(1, 2)
    torch.manual_seed(0)
    x = torch.randn(1, 2, 1, 3000) + 1000
    parts = x.split(700, -1)
    got = torch.cat([statistics_of(norm, iter(parts))(part) for part in parts], -1)
    exact = torch.nn.functional.group_norm(x.double(), 1)
    assert (got - exact).abs().max() < 1e-3
