"""What a render knows before it has a cluster."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.render import slow_on_processors
from tests.orchestrator.plans import make_plan


def test_what_processors_are_slow_at_is_named() -> None:
    plan = replace(make_plan(8), dtype="bfloat16")
    assert slow_on_processors(plan) == ""
    said = slow_on_processors(replace(plan, decoder_dtype="float16"))
    assert said.startswith("decoder_dtype: float16 can take ten times as long")
    both = slow_on_processors(replace(plan, dtype="float16", decoder_dtype="float16"))
    assert both.startswith("dtype: float16 and decoder_dtype: float16 can")
