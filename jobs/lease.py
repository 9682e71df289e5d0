"""One driver per job: a small file that says which process owns the job now.

The owner keeps the file open and touches it every ``HEARTBEAT_S``. Heartbeats are the file's
modification time, so one clock, the file system's, measures their age on every host. On the
owner's host the process itself is asked for, so a driver that was killed frees its job at once.

The lease spares two drivers from working at cross purposes. What makes it safe is the journal:
a driver that was replaced, even one that slept through it, cannot append (``jobs.journal``).
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from jobs.errors import DamagedRecord, StoreConflict, StoreError
from jobs.files import machine, process_start, publish, read_file, refusal, remove, seal, unseal

log = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
STALE_S = 30.0  # a lease of another host is free after this long without a heartbeat
GUARD_S = 10.0  # longest wait for another process that has the same lock


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that owns a job."""

    host: str
    machine: str  # of jobs.files.machine
    pid: int
    process_start: str | None
    since_s: float  # seconds since 1970
    nonce: str

    @classmethod
    def me(cls) -> Holder:
        return cls(
            host=socket.gethostname(),
            machine=machine(),
            pid=os.getpid(),
            process_start=process_start(os.getpid()),
            since_s=time.time(),
            nonce=uuid.uuid4().hex,
        )

    def is_alive(self, age_s: float) -> bool:
        """Whether the process may still be at work, ``age_s`` after its last heartbeat."""
        if self.machine == machine():
            return process_start(self.pid) == self.process_start
        return age_s < STALE_S

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since_s).isoformat(" ", "seconds")
        return f"process {self.pid} on {self.host}, since {since}"


class Lease:
    """Owned from ``acquire`` to ``release``, unless ``lost``."""

    def __init__(self, path: Path, holder: Holder, handle: int, heartbeat_s: float) -> None:
        self.path = path
        self.holder = holder
        self._handle = handle
        self._heartbeat_s = heartbeat_s
        self._stop = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(
        cls,
        path: Path,
        *,
        take_over: bool = False,
        heartbeat_s: float = HEARTBEAT_S,
        fix: str = "wait for it, stop it, or take the job from it with --take-over",
    ) -> Lease:
        """Own the job of this lease file.

        Raises StoreConflict, saying who owns it and the caller's ``fix``, unless that one is gone
        or ``take_over``.
        """
        with _guard(path) as now_s:
            owner, age_s = _owner(path, now_s)
            if owner and not take_over and owner.is_alive(age_s):
                raise StoreConflict(
                    f"{path.parent.name} is being rendered by {owner} "
                    f"(last sign of life {max(age_s, 0):.0f} s ago); {fix}"
                )
            mine = Holder.me()
            return cls(path, mine, _write(path, mine), heartbeat_s)

    @property
    def lost(self) -> bool:
        """Whether another driver has taken the job; known at the latest a heartbeat later."""
        return self._lost

    def release(self) -> None:
        """Free the job, if it is still ours. May be called twice."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        if self.path.parent.exists():  # else the job was removed
            with _guard(self.path):
                if self._is_mine():
                    remove(self.path)
        os.close(self._handle)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat_s):
            try:
                if not self._is_mine():
                    self._lost = True
                    return
                os.utime(self._handle)
            except OSError as error:  # a disk that fails now may work again soon
                log.warning("no heartbeat for %s: %s", self.path, error)

    def _is_mine(self) -> bool:
        """By identity, not name: a file that replaced ours has another inode."""
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self._handle))


def is_held(path: Path) -> bool:
    """Whether a driver owns the job now, as far as a reader can tell."""
    owner, age_s = _owner(path, time.time())
    return owner is not None and owner.is_alive(age_s)


def _owner(path: Path, now_s: float) -> tuple[Holder | None, float]:
    """Who owns the job, and the age of its last heartbeat."""
    try:
        age_s = now_s - path.stat().st_mtime
        return Holder(**unseal(read_file(path), path)), age_s
    except FileNotFoundError:
        return None, 0.0
    except (DamagedRecord, TypeError):
        unknown = Holder(
            host="an unknown host (its lease file is damaged)",
            machine="",
            pid=0,
            process_start=None,
            since_s=now_s - age_s,
            nonce="",
        )
        return unknown, age_s


def _write(path: Path, mine: Holder) -> int:
    """Write the lease and open it. A write that failed must not leave the job owned."""
    try:
        publish(path, seal(asdict(mine)), label="lease", how="replace", scratch=path.parent)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, StoreError):
        if _owner(path, 0.0)[0] == mine:
            remove(path)
        raise


@contextmanager
def _guard(path: Path) -> Iterator[float]:
    """Let one process at a time read and change a lease; yields the file system's time."""
    guard = path.with_name(f"{path.name}.guard")
    with locked(guard, f"another process is acquiring {path}; try again") as handle:
        os.utime(handle)
        yield os.fstat(handle).st_mtime


@contextmanager
def locked(path: Path, busy: str) -> Iterator[int]:
    """Hold a file's lock, which one process at a time has; yields the open file.

    The kernel frees the lock of a process that dies. Raises StoreConflict, saying ``busy``, if
    another has it for longer than ``GUARD_S``; StoreError.
    """
    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise refusal(error, path) from error
    try:
        _lock(handle, path, busy)
        yield handle
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _lock(handle: int, path: Path, busy: str) -> None:
    deadline = time.monotonic() + GUARD_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StoreConflict(busy) from None
            time.sleep(0.01)
        except OSError as error:
            raise StoreError(f"cannot lock {path}: {error.strerror}; use another disk") from error
