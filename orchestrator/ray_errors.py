"""What an error of Ray means for a render: whose fault it is, and what is gone."""

from __future__ import annotations

from typing import Literal

from ray import exceptions as ray_exceptions
from ray.exceptions import RayError, RayTaskError

#: ``actor``: its process or node is gone. ``object``: an output is gone. ``disk``: Ray has no
#: room to spill. ``cluster``: Ray itself is gone. ``task``: the code in the actor raised.
Meaning = Literal["actor", "object", "disk", "cluster", "task"]

_MEANINGS: tuple[tuple[Meaning, tuple[str, ...]], ...] = (
    ("disk", ("OutOfDiskError",)),
    ("cluster", ("LocalRayletDiedError", "RaySystemError")),
    ("object", ("ObjectLostError", "ObjectFreedError", "GetTimeoutError")),
    (
        "actor",
        (
            "RayActorError",
            "WorkerCrashedError",
            "NodeDiedError",
            "OutOfMemoryError",
            "ActorUnschedulableError",
        ),
    ),
)


def meaning(error: Exception) -> Meaning:
    """Classify an error that ``ray.get`` raised. A task that could not get its inputs raises a
    task error around the object error."""
    error = _root(error)
    for name, kinds in _MEANINGS:
        known = tuple(getattr(ray_exceptions, kind) for kind in kinds if _exists(kind))
        if isinstance(error, known):
            return name
    return "task" if isinstance(error, RayTaskError) or not isinstance(error, RayError) else "actor"


def lost_object(error: Exception) -> str | None:
    """The hexadecimal id of the object that an ``object`` error is about."""
    return getattr(_root(error), "object_ref_hex", None)


def in_words(error: Exception) -> str:
    """One line for a person: the cause, not the wrapping."""
    error = _root(error)
    text = str(error).strip()
    if not isinstance(error, RayError):
        return f"{type(error).__name__}: {text}".splitlines()[0][:300]
    return (text or type(error).__name__).splitlines()[0][:300]


def _root(error: Exception) -> Exception:
    cause = getattr(error, "cause", None)
    while isinstance(error, RayTaskError) and isinstance(cause, Exception):
        error, cause = cause, getattr(cause, "cause", None)
    return error


def _exists(kind: str) -> bool:
    return hasattr(ray_exceptions, kind)
