"""What follows from a model's geometry alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.orchestrator.plans import GEOMETRY


@pytest.mark.parametrize(
    ("guidance", "guided"), [((5.0,), True), ((1.0,), False), ((0.0,), False), ((1.0, 2.0), True)]
)
def test_a_step_has_two_branches_only_with_guidance(
    guidance: tuple[float, ...], guided: bool
) -> None:
    assert GEOMETRY.has_two_branches(guidance) == guided
    assert not replace(GEOMETRY, embedded_guidance=True).has_two_branches(guidance), (
        "it is told, and runs once"
    )
