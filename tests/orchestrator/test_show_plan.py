"""What ``longtake plan`` says of time, of a film whose steps are not all of the same length, and of
memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jobs.accelerations import Accelerations, FastAttention
from jobs.attention_plan import AttentionPlan
from jobs.presets import combined
from orchestrator.show_plan import plan_report, plan_text
from tests.orchestrator.plans import make_plan


def told(*shots: int, whole: bool) -> dict[str, Any]:
    plan = make_plan(*shots, window=8, stage_steps=(4, 2), whole_first_stage=whole)
    return plan_report(plan, 1, 10.0)


def test_a_long_step_costs_more() -> None:
    windows, whole = told(61, whole=False), told(61, whole=True)
    count = len(windows["shots"][0]["stages"][0]["windows"])
    more_s = 4 * 10.0 * (31 / 8 - count) + 10.0 * 0.02 * (31 / 8 - count)
    assert whole["wall_s"] - windows["wall_s"] == pytest.approx(more_s, abs=1.0)
    said = "10 s a step of 8 latent frames, others in proportion (of up to 31: attention takes more"
    assert said in whole["wall_basis"]
    assert "at 10 s a step; start-up" in windows["wall_basis"]


def test_a_short_shots_steps_cost_less() -> None:
    both = told(8, 4, whole=False)
    assert "a step of 8 latent frames, others in proportion; start" in both["wall_basis"]


def test_what_decodes_in_half_precision_is_said() -> None:
    plan = make_plan(8)
    assert "model demo in float32, preset" in plan_text(plan_report(plan, 1, None))
    half = plan_report(replace(plan, decoder_dtype="bfloat16"), 1, None)
    assert half["decoder_dtype"] == "bfloat16"
    assert "model demo in float32, decoded in bfloat16, preset" in plan_text(half)


def test_memory_is_in_the_reports_unit() -> None:
    plan = replace(make_plan(8), model_bytes=28_400_000_000, tile_bytes=67_108_864)
    said = plan_text(plan_report(plan, 1, None))
    assert "memory per worker: 28.40 GB model + 0.0671 GB tile (estimated" in said


def test_a_plan_of_attention_is_a_line_and_not_of_the_preset() -> None:
    found = AttentionPlan((("full", "full"), ("window", "full")), (3, 3, 3))
    own = Accelerations(fast_attention=FastAttention(stages=(found, found)))
    for preset, said in (("exact", "own accelerations"), ("fast", "preset fast, own acc")):
        plan = replace(make_plan(8), preset=preset, accelerations=combined(preset, own, "wan"))
        lines = plan_text(plan_report(plan, 1, None)).splitlines()
        assert f"float32, {said}" in lines[0]
        assert (
            "fast_attention: stages of window 25%, full 75% | window 25%, full 75% of layers and "
            "steps (--json has all)"
        ) in lines
    chosen = replace(plan, accelerations=combined("fast", Accelerations(), "wan"))
    assert plan_text(plan_report(chosen, 1, None)).splitlines()[0].endswith("preset fast")
