"""What a job may say already but Longtake does not do yet: its form is fixed, its use refused.

Each field is typed and checked like any other, so a job written for it now means the same later;
a value that would change the film is then refused by name.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field

from jobs.spec_checks import MAX_FILM_S
from jobs.spec_part import FilePath, Part

_T = TypeVar("_T")

NOT_BUILT = "not built yet; remove it"


class Audio(Part):
    """A sound track; the film begins ``offset_s`` into it."""

    file: FilePath
    offset_s: Annotated[float, Field(ge=0, le=MAX_FILM_S)] = 0.0


def _refuse(value: _T) -> _T:
    if value:
        raise ValueError(NOT_BUILT)
    return value


#: How long two shots overlap; goes with ``transition: crossfade``.
CrossfadeSeconds = Annotated[float, Field(gt=0, le=MAX_FILM_S)]

SoundTrack = Annotated[Audio | None, AfterValidator(_refuse)]
