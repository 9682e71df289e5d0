"""What a job may say already but Longtake does not do yet: its form is fixed, its use refused.

Each field is typed and checked like any other, so a job written for it now means the same later;
a value that would change the film is then refused by name.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from jobs.accelerations import ACCELERATIONS
from jobs.spec_checks import MAX_FILM_S
from jobs.spec_errors import describe, unknown

_T = TypeVar("_T")

NOT_BUILT = "not built yet; remove it"

FilePath = Annotated[str, Field(min_length=1, max_length=4096)]


class Part(BaseModel):
    """A part of a job spec."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Lora(Part):
    """Weights that are added to the model's. ``sha256`` None: whatever the file holds."""

    path: FilePath
    scale: Annotated[float, Field(ge=-100, le=100)] = 1.0
    sha256: str | None = None

    @field_validator("sha256")
    @classmethod
    def _hex(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-f]{64}", value):
            raise ValueError(f"needs 64 hex digits (0-9, a-f), got {describe(value)}")
        return value


class Audio(Part):
    """A sound track; the film begins ``offset_s`` into it."""

    file: FilePath
    offset_s: Annotated[float, Field(ge=0, le=MAX_FILM_S)] = 0.0


def _refuse(value: _T) -> _T:
    if value:
        raise ValueError(NOT_BUILT)
    return value


def _none_to(empty: _T) -> BeforeValidator:
    return BeforeValidator(lambda value: empty if value is None else value)


def _known_accelerations(value: dict[str, Any]) -> dict[str, Any]:
    for name in value:
        if name not in ACCELERATIONS:
            raise ValueError(f"{unknown(name, ACCELERATIONS, 'acceleration')}; all {NOT_BUILT}")
    return value


#: The first frame of a shot.
Image = Annotated[FilePath | None, AfterValidator(_refuse)]

#: How long two shots overlap; goes with ``transition: crossfade``.
CrossfadeSeconds = Annotated[float, Field(gt=0, le=MAX_FILM_S)]

Loras = Annotated[
    tuple[Lora, ...],
    Field(strict=False, max_length=100),
    _none_to(()),
    AfterValidator(_refuse),
]

Accelerations = Annotated[
    dict[str, dict[str, Any]],
    _none_to({}),
    AfterValidator(_known_accelerations),
    AfterValidator(_refuse),
]

SoundTrack = Annotated[Audio | None, AfterValidator(_refuse)]
