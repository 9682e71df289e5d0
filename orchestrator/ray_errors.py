"""What an error of Ray means for a render: whose fault it is, and what is gone."""

from __future__ import annotations

import re
from typing import Literal

from ray import exceptions as ray_exceptions
from ray.exceptions import RayError, RayTaskError

#: ``actor``: its process or node is gone. ``object``: an output is gone. ``disk``: Ray has no
#: room to spill. ``cluster``: Ray itself is gone. ``task``: the code in the actor raised.
Meaning = Literal["actor", "object", "disk", "cluster", "task"]

#: How long a cause may be on a person's screen.
MOST_CHARACTERS = 400

#: What Ray's texts say of the death of a node, and of a process that took too much memory.
_NODE_SIGNS = ("its node has died", "node was terminated")
_MEMORY_SIGNS = ("running low on memory", "memory usage threshold", "due to memory pressure")

#: A line of a Ray error that names the actor and not the cause.
_FACT = re.compile(r"(class_name|actor_id|pid|name|namespace|ip): ")

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
    if died_before(error):
        return "object"
    error = _root(error)
    for name, kinds in _MEANINGS:
        known = tuple(getattr(ray_exceptions, kind) for kind in kinds if _exists(kind))
        if isinstance(error, known):
            return name
    return "task" if isinstance(error, RayTaskError) or not isinstance(error, RayError) else "actor"


def died_before(error: Exception) -> bool:
    """Whether a task never began, since another actor died that was to give it an input."""
    return isinstance(error, RayTaskError) and isinstance(
        _root(error), ray_exceptions.RayActorError
    )


def lost_object(error: Exception) -> str | None:
    """The hexadecimal id of the object that an ``object`` error is about."""
    return getattr(_root(error), "object_ref_hex", None)


def in_words(error: Exception) -> str:
    """One line for a person: the cause, not the wrapping."""
    error = _root(error)
    text = str(error).strip()
    if not isinstance(error, RayError):
        return f"{type(error).__name__}: {text}".splitlines()[0][:MOST_CHARACTERS]
    if isinstance(error, ray_exceptions.RayActorError):
        return _why_it_died(text)[:MOST_CHARACTERS]
    return (text or type(error).__name__).splitlines()[0][:MOST_CHARACTERS]


def lost_with_its_node(error: Exception) -> bool:
    """Whether an ``actor`` error is the loss of a whole node: the cluster's fault."""
    text = str(_root(error))
    return any(sign in text for sign in _NODE_SIGNS)


def _why_it_died(text: str) -> str:
    """Ray says first that an actor died, then facts, each on a line of its own, then why."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines[1:] if not _FACT.match(line)]
    why = " ".join(told) or " ".join(lines) or "nobody knows why"
    if any(sign in why for sign in _MEMORY_SIGNS):
        return f"its process was killed for lack of memory: {why}"
    if any(sign in why for sign in _NODE_SIGNS):
        return f"its node was lost: {why}"
    if "connection error code 2" in why:  # Ray then lists all that it can think of
        return "its process was killed or crashed; look for an out-of-memory kill in the system log"
    return why


def _root(error: Exception) -> Exception:
    cause = getattr(error, "cause", None)
    while isinstance(error, RayTaskError) and isinstance(cause, Exception):
        error, cause = cause, getattr(cause, "cause", None)
    return error


def _exists(kind: str) -> bool:
    return hasattr(ray_exceptions, kind)
