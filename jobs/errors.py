"""Every error that Longtake raises on purpose.

LongtakeError
├── BadJob            the person's mistake: exit 2
├── CannotRunHere     this machine, model or cluster cannot do it: exit 6
├── StoreError        the store cannot be used: exit 6
│   ├── StoreConflict     another driver owns the job: exit 7
│   ├── DamagedRecord     a file's content is not what was written
│   └── StoreFull         no space, or no permission to write
└── UnitError         a worker could not compute a unit; ``kind`` says whose fault it is
"""

from __future__ import annotations

from typing import Literal

EXIT_DONE = 0
EXIT_INTERNAL = 1
EXIT_BAD_JOB = 2
EXIT_JOB_FAILED = 3
EXIT_CANCELLED = 4
EXIT_TIMEOUT = 5
EXIT_CANNOT_RUN_HERE = 6
EXIT_STORE_CONFLICT = 7
EXIT_VERIFY_MISMATCH = 8
EXIT_IDLE_ACCELERATION = 9  # the film is done; what was asked for changed nothing in it
EXIT_INTERRUPTED = 130

#: Whose fault a failed unit is. ``bad_job`` fails the job at once; ``not_finite``,
#: ``out_of_memory`` and ``worker`` count against the unit and its worker; ``cluster`` is retried
#: without blame.
FailureKind = Literal["bad_job", "not_finite", "out_of_memory", "worker", "cluster"]


class LongtakeError(Exception):
    """An error whose message is meant for the person: what happened, where, and the fix."""

    exit_code = EXIT_INTERNAL


class BadJob(LongtakeError):
    """The job asks for something that cannot be."""

    exit_code = EXIT_BAD_JOB


class CannotRunHere(LongtakeError):
    """The job is fine, but this machine, model folder or cluster cannot run it."""

    exit_code = EXIT_CANNOT_RUN_HERE


class StoreError(LongtakeError):
    """The store cannot be opened, read or written."""

    exit_code = EXIT_CANNOT_RUN_HERE


class NoStore(StoreError):
    """There is no store at the place that was given."""


class StoreConflict(StoreError):
    """Another driver owns the job."""

    exit_code = EXIT_STORE_CONFLICT


class DamagedRecord(StoreError):
    """A stored file's content is not what its record says."""


class StoreFull(StoreError):
    """The store's file system refused a write: no space, no quota or no permission."""


class UnitError(LongtakeError):
    """A worker could not compute a unit.

    Picklable with its ``kind``, so that it crosses process borders unchanged.
    """

    exit_code = EXIT_JOB_FAILED

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(kind, message)
        self.kind: FailureKind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message
