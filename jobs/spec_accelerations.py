"""What a job's accelerations ask of the rest of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.accelerations import Accelerations, Adaptive, Rehash
from jobs.spec_errors import Path, Problem

if TYPE_CHECKING:
    from jobs.spec import JobSpec


def acceleration_problems(
    spec: JobSpec, asked: Accelerations, stage_steps: tuple[int, ...]
) -> list[Problem]:
    """An acceleration that was asked for and could not do anything. ``asked`` has the preset's."""
    if not stage_steps:
        return []
    problems: list[Problem] = []
    if asked.adaptive and (said := adaptive_problem(asked.adaptive, stage_steps)):
        problems.append(Problem(acceleration_place(spec, "adaptive"), said))
    if asked.rehash and asked.rehash.threshold is not None and asked.rehash.key_steps is not None:
        said = "key_steps are found by the threshold; remove one of them"
        problems.append(Problem(("accelerations", "rehash"), said))
    elif asked.rehash and (said := rehash_problem(asked.rehash, stage_steps)):
        problems.append(Problem(acceleration_place(spec, "rehash"), said))
    if asked.slicing and asked.slicing.slices is not None and asked.slicing.budget_gb is not None:
        said = "slices are found for budget_gb; remove one of them"
        problems.append(Problem(("accelerations", "slicing"), said))
    if spec.pyramid_first_stage == "whole":
        problems += _uncalibrated(spec, asked)
    if spec.accelerations.fast_attention and spec.accelerations.fast_attention.stages:
        said = "plans cannot stand in a job: longtake calibrate finds them; remove them"
        problems.append(Problem(("accelerations", "fast_attention", "stages"), said))
    return problems


def _uncalibrated(spec: JobSpec, asked: Accelerations) -> list[Problem]:
    """What is calibrated is calibrated on windows."""
    found = {
        "fast_attention": asked.fast_attention is not None,
        "rehash": asked.rehash is not None and asked.rehash.threshold is not None,
    }
    said = "goes by a calibration on windows: remove it, or give pyramid_first_stage: windows"
    return [Problem(acceleration_place(spec, name), said) for name, is_on in found.items() if is_on]


def acceleration_place(spec: JobSpec, name: str) -> Path:
    """Where a job asked for it: by itself, or with a preset."""
    own = getattr(spec.accelerations, name) is not None
    return ("accelerations", name) if own else ("preset",)


def adaptive_problem(adaptive: Adaptive, stage_steps: tuple[int, ...]) -> str:
    """Why nothing could be skipped; empty if something can."""
    always = adaptive.first + adaptive.last
    if max(stage_steps) > always:
        return ""
    stages = "the stages' steps are " if len(stage_steps) > 1 else "steps are "
    shown = "-".join(map(str, stage_steps))
    return (
        f"has nothing to skip: {stages}{shown}, and {always} of a stage always run (first + last); "
        "give more steps, or remove it"
    )


def rehash_problem(rehash: Rehash, stage_steps: tuple[int, ...]) -> str:
    """Why there is nothing to reuse, or which key steps cannot be; empty if all is well, or not
    known before planning has found the key steps."""
    if rehash.key_steps is None and rehash.every is None:
        return ""
    stages = len(stage_steps)
    for keys, steps in zip(rehash.key_steps or (), stage_steps, strict=False):
        if max(keys) >= steps:
            return f"key step {max(keys)} is none of a stage of {steps}: they count from 0"
    if rehash.key_steps is not None and len(rehash.key_steps) != stages:
        there = "is one stage" if stages == 1 else f"are {stages} stages"
        return f"key_steps has {len(rehash.key_steps)} lists, but there {there}; give one for each"
    if any(len(rehash.keys(stage, n)) < n for stage, n in enumerate(stage_steps)):
        return ""
    fixes = [
        *(["a lower threshold"] if rehash.threshold is not None else []),
        *(["a smaller first"] if (rehash.first or 1) > 1 else []),
    ]
    return (
        f"has nothing to reuse: every one of the {sum(stage_steps)} steps is a key step; "
        f"{', '.join(['give more steps', *fixes])}, or remove it"
    )
