"""What a plan is said to cost is what a run of it multiplies and carries."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from accel.attention_cost import Attention, full_flops, kept_bytes, plan_flops
from accel.windowed import Geometry
from jobs.attention_plan import AttentionPlan
from tests.accel.fast_attention_helpers import GRID, WINDOW, run_plan, tiny_wan
from tests.accel.test_fast_attention import random_plan

SIZE = Attention(Geometry(GRID, WINDOW), heads=2, head_dim=12)
TEXT_TOKENS = 4


class Counting(TorchFunctionMode):
    """Query-key pairs of every self-attention that torch really computes."""

    pairs = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key"), args, strict=False)) | kwargs
            queries, keys = given["query"].shape[2], given["key"].shape[2]
            self.pairs += queries * keys if keys != TEXT_TOKENS else 0
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("seed", range(4))
def test_flops_and_bytes_are_those_of_a_run(seed: int) -> None:
    plan, counting = random_plan(seed), Counting()
    with counting:
        run = run_plan(tiny_wan(), plan)
    expected = plan_flops(plan, SIZE, guided=True)
    assert 4 * 2 * 12 * counting.pairs == sum(expected)
    assert sum(expected) < sum(full_flops(plan, SIZE, guided=True))
    carried = [sum(x.numel() * 8 for x in tile.kept.values()) for tile in run.tiles]
    assert carried == kept_bytes(plan, SIZE, 8, guided=True)
    assert max(carried) > 0


def test_a_plan_of_full_costs_what_none_does() -> None:
    plan = AttentionPlan((("full",) * 2,) * 3, WINDOW)
    assert plan_flops(plan, SIZE, guided=False) == full_flops(plan, SIZE, guided=False)
    assert sum(plan_flops(plan, SIZE, guided=True)) == 3 * 2 * 2 * 4 * 2 * 12 * 36**2
    assert kept_bytes(plan, SIZE, 2, guided=True) == [0, 0, 0]
