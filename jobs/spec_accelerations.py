"""What a job's accelerations ask of the rest of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.spec_errors import Problem

if TYPE_CHECKING:
    from jobs.spec import JobSpec


def acceleration_problems(spec: JobSpec, stage_steps: tuple[int, ...]) -> list[Problem]:
    """An acceleration that was asked for and could not do anything."""
    adaptive = spec.accelerations.adaptive
    if adaptive is None or not stage_steps:
        return []
    always = adaptive.first + adaptive.last
    if max(stage_steps) > always:
        return []
    stages = "the stages' steps are " if len(stage_steps) > 1 else "steps are "
    shown = "-".join(map(str, stage_steps))
    said = (
        f"has nothing to skip: {stages}{shown}, and {always} of a stage always run (first + last); "
        "give more steps, or remove it"
    )
    return [Problem(("accelerations", "adaptive"), said)]
