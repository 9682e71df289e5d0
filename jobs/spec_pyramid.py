"""What a job says of the temporal pyramid, and what becomes of it with a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from jobs.families.family import ModelDefaults
from jobs.pyramid import MOST_STAGES
from jobs.spec_errors import Problem, describe

if TYPE_CHECKING:
    from jobs.spec import JobSpec


def checked_pyramid(value: Any) -> Any:
    """One message for a field that takes words and numbers. Raises ValueError."""
    if value is False:  # YAML reads a bare `off` as false
        return "off"
    if value not in ("auto", "off") and not (type(value) is int and 2 <= value <= MOST_STAGES):
        valid = f"must be off, auto or a whole number from 2 to {MOST_STAGES}"
        raise ValueError(f"{valid}, got {describe(value)}")
    return value


def _shares(value: Any) -> Any:
    """``2-1-1`` is the same as [2, 1, 1]."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,3}(-\d{1,3})+", value):
        return tuple(int(share) for share in value.split("-"))
    return value


#: How many levels of frame rate a film is made in; auto: as many as the weights were trained for.
Pyramid = Annotated[
    Literal["auto", "off"] | Annotated[int, Field(ge=2, le=MOST_STAGES)],
    BeforeValidator(checked_pyramid),
]

#: Whether the coarsest stage has windows as all others have, or one that holds the whole shot.
FirstStage = Literal["windows", "whole"]

#: How the steps are shared out over the stages.
StepShares = Annotated[
    tuple[Annotated[int, Field(ge=1, le=100)], ...],
    Field(strict=False, min_length=2, max_length=MOST_STAGES),
    BeforeValidator(_shares),
]


@dataclass(frozen=True, slots=True)
class Untrained:
    """What a pyramid that weights were not trained for did to them. In 100 cases, how much was as
    told, with it and without."""

    right: int
    instead_of: int
    what: Literal["motions", "properties"]  # properties: all that detectors look for
    on: str
    expect: str


#: Families whose models ``training.tpdiff`` trains for a pyramid.
TRAINABLE = ("wan", "animatediff")

#: By family, the stages that weights were trained for, and those asked of them. By
#: ``benchmarks/twins.py``, in windows that start a shot and in those inside one; its result files
#: are dated, and a test holds these to them.
UNTRAINED: dict[tuple[str, int, int], Untrained] = {
    ("wan", 1, 2): Untrained(44, 48, "motions", "the demo model", "expect hardly worse motion"),
    ("wan", 1, 3): Untrained(31, 48, "motions", "the demo model", "expect worse motion"),
    ("wan", 1, 4): Untrained(25, 48, "motions", "the demo model", "expect broken motion"),
    ("wan", 3, 1): Untrained(57, 61, "motions", "demo-pyramid", "expect hardly worse motion"),
    ("wan", 3, 2): Untrained(62, 61, "motions", "demo-pyramid", "expect no worse motion"),
    ("wan", 3, 4): Untrained(55, 61, "motions", "demo-pyramid", "expect hardly worse motion"),
    ("animatediff", 1, 3): Untrained(
        72,
        72,
        "properties",
        "demo-animatediff, which hardly knows motion,",
        "what it does to motion is not known",
    ),
}


def stage_count(pyramid: int | str, defaults: ModelDefaults) -> int:
    """Stages that a job's ``pyramid`` means with a model; one without a pyramid."""
    if isinstance(pyramid, int):
        return pyramid
    return 1 if pyramid == "off" else max(1, len(defaults.pyramid_steps))


def step_shares(spec: JobSpec, defaults: ModelDefaults) -> tuple[int, ...]:
    """The shares of the stages; a single one without a pyramid."""
    trained, stages = defaults.pyramid_steps, stage_count(spec.pyramid, defaults)
    if spec.pyramid_steps is not None and stages != 1:
        return spec.pyramid_steps
    return trained if len(trained) == stages else (1,) * stages


def pyramid_problems(
    spec: JobSpec, defaults: ModelDefaults, steps: int, shares: tuple[int, ...]
) -> list[Problem]:
    problems: list[Problem] = []
    given, stages = spec.pyramid_steps, stage_count(spec.pyramid, defaults)
    if given is not None and stages == 1:
        why = "it is off" if spec.pyramid == "off" else "these weights were trained for none"
        fix = f"say pyramid: {len(given)}, or remove it"
        problems.append(Problem(("pyramid_steps",), f"there is no pyramid, for {why}; {fix}"))
    elif given is not None and len(given) != stages:
        said = f"has {len(given)} shares, but the pyramid has {stages} stages; give one for each"
        problems.append(Problem(("pyramid_steps",), said))
    if spec.pyramid_first_stage == "whole" and stages == 1:
        said = "there is no pyramid whose first stage could be whole; say pyramid: 3, or remove it"
        problems.append(Problem(("pyramid_first_stage",), said))
    if steps < len(shares):
        said = f"{steps} steps are too few for a pyramid of {len(shares)} stages: each needs one"
        problems.append(Problem(("steps",), said))
    return problems


def pyramid_warnings(stages: int, defaults: ModelDefaults, family: str) -> tuple[str, ...]:
    """What a person should know who asks for a pyramid that the weights were not trained for."""
    trained = max(1, len(defaults.pyramid_steps))
    if stages == trained:
        return ()
    known = f"a pyramid of {trained} stages" if trained > 1 else "no pyramid"
    expect = _expected(UNTRAINED.get((family, trained, stages)))
    if stages == 1:
        return (f"these weights were trained for {known}, which is off: {expect}",)
    fix = "; python -m training.tpdiff trains them for one" if family in TRAINABLE else ""
    return (
        f"a pyramid of {stages} stages is asked for, but these weights were trained for {known}: "
        f"{expect}{fix}",
    )


def _expected(measured: Untrained | None) -> str:
    if measured is None:
        return "its fidelity has not been measured"
    return (
        f"{measured.expect} ({measured.on} then made {measured.right} {measured.what} of "
        f"100 as told, instead of {measured.instead_of})"
    )
