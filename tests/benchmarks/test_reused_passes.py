"""A pass that is left out leaves something out, and the model is afterwards as it was."""

from __future__ import annotations

import pytest
import torch

from benchmarks.operations import Operations
from benchmarks.reused_passes import ways
from benchmarks.small_models import Forward, small_wan


def operations_of(run: Forward) -> int:
    with Operations() as operations, torch.no_grad():
        run()
    return operations.count


@pytest.mark.parametrize(
    ("way", "most"),
    [("rehash", 0.8), ("FirstBlockCache", 0.8), ("TaylorSeer", 0.5), ("TaylorSeer lite", 0.05),
     ("MagCache", 0.5), ("adaptive", 0.0)],
)  # fmt: skip
def test_each_leaves_out_its_part_again_and_again(way: str, most: float) -> None:
    model, forward = small_wan()
    full = operations_of(forward)
    found = ways("wan", model, forward, torch.randn(1, 16, 5, 16, 16))
    with torch.no_grad(), found[way] as run:
        shares = [operations_of(run) / full for _ in range(3)]
    assert len(set(shares)) == 1
    assert shares[0] <= most
    assert operations_of(forward) == full


def test_all_of_them_are_known() -> None:
    model, forward = small_wan()
    found = ways("wan", model, forward, torch.randn(1, 16, 5, 16, 16))
    assert [*found][:2] == ["rehash", "adaptive"]
    assert len(found) == 6
