"""Named commit points in product code, where a test may kill the process or fail a write.

A point does nothing unless the environment names it:

    LONGTAKE_FAULT=result.mid_write:kill:3     at its third passage in this process
    LONGTAKE_FAULT=journal.before_write:enospc,data.mid_write:eio
    LONGTAKE_FAULT=worker.before_unit:hang     stays there for ever
    LONGTAKE_FAULT=worker.before_model:nomem   as if no memory were left
    LONGTAKE_FAULT_ON=shot 1 window 2 step 3   only passages with this unit count
    LONGTAKE_FAULT_ONCE=/some/file             fires only while this file does not exist

Every atomic write passes five points, in this order: ``before_write``, ``mid_write`` (half of
the bytes are in the temporary file), ``before_publish`` (all bytes are on storage, under the
temporary name), ``after_publish`` (the file has its name, but the folder is not yet synced) and
``after_write`` (durable, but the caller does not know it yet).
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter

#: The kinds of atomic write, by the label that they pass to ``jobs.files.publish``.
FAULT_WRITES = ("store", "data", "result", "journal", "snapshot", "lease")

#: The commit points of one atomic write, in order.
FAULT_STAGES = ("before_write", "mid_write", "before_publish", "after_publish", "after_write")

#: Every commit point of the store.
FAULT_POINTS = (
    *(f"{write}.{stage}" for write in FAULT_WRITES for stage in FAULT_STAGES),
    "job.before_publish",
    "job.after_publish",
    "result.before_delete",
    "result.after_delete",
    "result.before_quarantine",
    "result.after_quarantine",
)

#: Around the moment when a film gets its name.
FILM_POINTS = ("film.before_publish", "film.after_publish")

#: Points of a worker; each is passed with the unit's name.
WORKER_POINTS = ("worker.before_unit", "worker.before_model", "worker.before_hand_over")

_VALID = (*FAULT_POINTS, *FILM_POINTS, *WORKER_POINTS)
_ERRNOS = {"enospc": errno.ENOSPC, "eio": errno.EIO, "erofs": errno.EROFS}
_ACTIONS = ("kill", "hang", "nomem", *_ERRNOS)

#: How often each point was passed, by process and by what the environment asked for.
_passages: Counter[tuple[int, str, str]] = Counter()


def fault_point(name: str, on: str = "") -> None:
    """Mark a commit point; fire the fault that the environment asks for here, if any.

    ``on`` names what is worked on.

    Raises OSError or MemoryError where that is injected, and ValueError for a fault that cannot be:
    a test that injects nothing would prove nothing.
    """
    wanted = os.environ.get("LONGTAKE_FAULT")
    if not wanted:
        return
    if name not in _VALID:
        raise ValueError(f"fault point {name!r} is not in FAULT_POINTS or WORKER_POINTS")
    if os.environ.get("LONGTAKE_FAULT_ON", on) != on:
        return
    passed = (os.getpid(), wanted, name)
    _passages[passed] += 1
    for fault in wanted.split(","):
        point, action, passage = _parse(fault)
        if point == name and passage == _passages[passed] and _first_time():
            _fire(name, action)


def _parse(fault: str) -> tuple[str, str, int]:
    point, _, rest = fault.strip().partition(":")
    action, _, passage = rest.partition(":")
    if point not in _VALID:
        raise ValueError(f"LONGTAKE_FAULT: no point {point!r}; valid: {', '.join(_VALID)}")
    if action not in _ACTIONS:
        raise ValueError(f"LONGTAKE_FAULT: no action {action!r}; valid: {', '.join(_ACTIONS)}")
    return point, action, int(passage or 1)


def _first_time() -> bool:
    once = os.environ.get("LONGTAKE_FAULT_ONCE")
    if not once:
        return True
    try:
        os.close(os.open(once, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    return True


def _fire(name: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    while action == "hang":
        time.sleep(3600)
    if action == "nomem":
        raise MemoryError(f"injected at {name}")
    number = _ERRNOS[action]
    raise OSError(number, f"{os.strerror(number)} (injected at {name})")
