"""What a job's accelerations ask of the rest of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.spec_errors import Problem

if TYPE_CHECKING:
    from jobs.spec import JobSpec


def acceleration_problems(spec: JobSpec, stage_steps: tuple[int, ...]) -> list[Problem]:
    """An acceleration that was asked for and could not do anything."""
    if not stage_steps:
        return []
    return [*_adaptive_problems(spec, stage_steps), *_rehash_problems(spec, stage_steps)]


def _rehash_problems(spec: JobSpec, stage_steps: tuple[int, ...]) -> list[Problem]:
    rehash = spec.accelerations.rehash
    if rehash is None:
        return []
    path, stages = ("accelerations", "rehash"), len(stage_steps)
    if rehash.key_steps is not None and len(rehash.key_steps) != stages:
        said = f"key_steps has {len(rehash.key_steps)} lists, but there "
        said += f"{'is one stage' if stages == 1 else f'are {stages} stages'}; give one for each"
        return [Problem(path, said)]
    if any(len(rehash.keys(stage, n)) < n for stage, n in enumerate(stage_steps)):
        return []
    said = f"has nothing to reuse: every one of the {sum(stage_steps)} steps is a key step; "
    return [Problem(path, said + "give more steps, or remove it")]


def _adaptive_problems(spec: JobSpec, stage_steps: tuple[int, ...]) -> list[Problem]:
    adaptive = spec.accelerations.adaptive
    if adaptive is None:
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
