"""What a reused step's share comes to over a film's steps."""

from __future__ import annotations

import json

import pytest

from benchmarks.common import RESULTS
from benchmarks.rehash_cost import EVERY_OTHER, KEY_STEPS, STEPS, times_less


def test_the_papers_setting() -> None:
    assert (KEY_STEPS, STEPS) == (13, 25)
    assert max(EVERY_OTHER.keys(0, STEPS)) == STEPS - 1


def test_what_25_steps_take() -> None:
    assert times_less(4.0, 4.0) == 1
    assert times_less(1.0, 0.0) == pytest.approx(25 / 13)
    assert times_less(10.0, 1.0) == pytest.approx(250 / (130 + 12))


@pytest.mark.parametrize("model", ["animatediff", "svd"])
def test_the_newest_result_reaches_the_goal(model: str) -> None:
    found = json.loads(max(RESULTS.glob("rehash_cost_cpu_*.json")).read_text())
    counted = found[f"{model} 576x1024"]
    assert counted["times_fewer_flops"] == pytest.approx(
        times_less(counted["full_flops"], counted["reused_flops"])
    )
    assert counted["times_fewer_flops"] > 1.6
