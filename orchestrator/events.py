"""What happens to a render (events, past tense) and what is to be done (commands, imperative).

All are frozen, carry no tensor, and cross no process border: the driver makes events of what it
sees and carries commands out; the simulator does the same with a virtual clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jobs.errors import FailureKind
from jobs.numerics import WorkerProfile
from jobs.units import Unit

Outcome = Literal[
    "done",
    "failed",
    "cannot_run",
    "store_failed",
    "conflict",
    "interrupted",
    "cancelled",
    "timeout",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    at_s: float  # the driver's clock; the state has none of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderStarted(Event):
    """The driver is ready to carry out commands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJoined(Event):
    worker: str
    profile: WorkerProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRefused(Event):
    """A worker cannot take part: its host lacks the model, or has another one of that name."""

    worker: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost(Event):
    """The process of a worker is gone, whether or not it had joined. ``node``: its whole node is,
    for which neither the worker nor what it computed is to blame."""

    worker: str
    message: str
    node: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFinished(Event):
    """``remembers``: it left so much for its tile's next step that it is kept until then only;
    ``stays``: with the worker. ``made_do``: how the worker went on without enough memory, in a
    sentence."""

    unit: Unit
    attempt: int
    worker: str
    elapsed_s: float
    remembers: bool = False
    stays: bool = False
    made_do: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFailed(Event):
    """``lost`` names inputs that the cluster could not deliver."""

    unit: Unit
    attempt: int
    worker: str
    kind: FailureKind
    message: str
    lost: tuple[Unit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLost(Event):
    """The cluster's memory no longer holds an output."""

    unit: Unit
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLoaded(Event):
    """A durable output is back in the cluster's memory. ``remembers`` as of ``UnitFinished``."""

    unit: Unit
    remembers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailed(Event):
    """A durable output could not be read back: missing or damaged, and set aside."""

    unit: Unit
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputStored(Event):
    """An output is durable: its data and its record are on storage. ``warnings``: another writer
    had stored other bits, though its numerics class is the same."""

    unit: Unit
    attempt: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFailed(Event):
    """The store refused a write. ``transient``: the writer died, the store is well."""

    unit: Unit
    attempt: int
    message: str
    transient: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmStitched(Event):
    """``kept`` is where another file is now that had the film's name; "" if there was none."""

    path: str
    kept: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StitchFailed(Event):
    """``lost`` names pieces whose stored result is missing or damaged."""

    message: str
    lost: tuple[Unit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePassed(Event):
    """Nothing happened for a while; deadlines may have passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested(Event):
    outcome: Outcome
    message: str


@dataclass(frozen=True, slots=True)
class StartWorker:
    worker: str


@dataclass(frozen=True, slots=True)
class StopWorker:
    """Kill the worker's process; whatever it still says is ignored."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class RunUnit:
    """Send a unit to a worker. ``inputs`` are held outputs, each named by unit and attempt."""

    unit: Unit
    attempt: int
    worker: str
    inputs: tuple[tuple[Unit, int], ...]


@dataclass(frozen=True, slots=True)
class LoadOutput:
    """Bring a durable output back into the cluster's memory, as attempt 0."""

    unit: Unit


@dataclass(frozen=True, slots=True)
class StoreOutput:
    """Make a held output durable."""

    unit: Unit
    attempt: int


@dataclass(frozen=True, slots=True)
class DropOutput:
    """Forget a held output: nobody needs it."""

    unit: Unit
    attempt: int


@dataclass(frozen=True, slots=True)
class DropMemory:
    """Forget what a held output keeps for its tile's next step, which has run. What others read of
    it stays."""

    unit: Unit
    attempt: int


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """Delete a checkpoint that no resume can need any more."""

    unit: Unit


@dataclass(frozen=True, slots=True)
class StitchFilm:
    """All pieces are durable: make the film of them."""


@dataclass(frozen=True, slots=True)
class EndRender:
    outcome: Outcome
    message: str


Command = (
    StartWorker
    | StopWorker
    | RunUnit
    | LoadOutput
    | StoreOutput
    | DropOutput
    | DropMemory
    | DeleteResult
    | StitchFilm
    | EndRender
)
