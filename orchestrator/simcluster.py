"""The passive half of the simulated cluster: its clock, its memory, its store, and their faults."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from jobs.numerics import NumericsClass, WorkerProfile
from jobs.units import Unit
from orchestrator.events import (
    Event,
    FilmStitched,
    LoadFailed,
    Outcome,
    OutputLoaded,
    OutputLost,
    OutputStored,
    RunUnit,
    StitchFailed,
    StoreFailed,
)
from orchestrator.plan import Plan
from orchestrator.referee import Key, Referee, Violation

#: Makes an event when its time has come.
Happening = Callable[[], Event | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong, as chances. Per unit sent unless said otherwise."""

    seed: int = 0  # 0: no faults and no jitter
    worker_dies: float = 0.0
    worker_hangs: float = 0.0  # half of them wake up when they had been given up
    unit_fails: float = 0.0
    cluster_fails: float = 0.0  # a unit fails, and it is nobody's fault
    worker_lies: float = 0.0  # reports twice; and if not 0, goes on after it was stopped
    object_lost: float = 0.0  # per output: it vanishes soon, found out by a reader or writer
    node_lost: float = 0.0  # per unit: a worker and all outputs that it made vanish
    write_dies: float = 0.0  # per write: the writer dies, or its answer is late
    result_damaged: float = 0.0  # per read of a durable result
    film_damaged: float = 0.0  # per piece when the film is stitched
    cluster_lost: float = 0.0  # per unit: everything but the store is gone
    interrupted: float = 0.0  # per unit: the person stops the render, and resumes it
    start_fails: float = 0.0  # per worker start
    slow: float = 0.0  # share of workers that are five times slower
    remembers: bool = False  # no fault: tiles keep much from a step to the next
    stays: bool = False  # and that stays with the worker where it can
    late_s: float = 0.0  # reports take up to so long, and may overtake each other
    poison: Unit | None = None  # kills every worker that touches it


@dataclass(slots=True)
class SimWorker:
    """A worker as it really is; the driver may know otherwise."""

    name: str
    speed: float
    joined: bool = False
    dead: bool = False  # its process is
    given_up: bool = False  # the driver stopped it, or knows that it died
    busy: bool = False
    wakes: Callable[[], Event | None] | None = None
    queue: deque[RunUnit] = field(default_factory=deque)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimReport:
    outcome: Outcome
    message: str
    wall_s: float
    completed: Counter[Unit]
    cluster_losses: int
    first_piece_s: float  # when the film's first piece became durable
    peak_held: int
    busy_s: float
    events: int


class SimCluster:
    """Outputs in memory, results in the store, and what is going to happen to both."""

    def __init__(self, plan: Plan, faults: Faults) -> None:
        self.plan, self.faults = plan, faults
        self.random = random.Random(faults.seed)
        self.now_s = 0.0
        self.results: dict[Unit, str] = {}
        self.referee = Referee(plan, self.results, remembers=faults.remembers)
        self.first_piece_s = 0.0
        self._empty()

    def _empty(self) -> None:
        """Forget everything but the store."""
        self.events: list[tuple[float, int, Happening]] = []
        self.sequence = itertools.count()
        self.held: dict[Key, str] = {}
        self.memory: set[Key] = set()  # of them, those that have what their tile's next step reads
        self.lost_memory: set[Key] = set()  # what a fault took
        self.lies_with: dict[Key, SimWorker] = {}  # the worker that alone has it
        self.handing: dict[Key, SimWorker] = {}  # the same, until a unit begins that reads it
        self.pinned: dict[Key, str] = {}  # given up while a worker read them
        self.gone: set[Key] = set()  # what a fault took
        self.writes: dict[Key, str | None] = {}
        self.deleted: list[tuple[float, Unit, str]] = []
        self.readers: Counter[Key] = Counter()  # queued or running units that read an output
        self.with_worker: dict[Unit, SimWorker] = {}  # live workers only
        self.stitched = False

    # -- time

    def _later(self, delay_s: float, happen: Happening) -> None:
        heapq.heappush(self.events, (self.now_s + delay_s, next(self.sequence), happen))

    def _report(self, make: Callable[[], Event]) -> Event | None:
        """A report on its way to the driver."""
        if not self.faults.late_s:
            return make()
        self._later(self.random.uniform(0.0, self.faults.late_s), make)
        return None

    def _strikes(self, chance: float) -> bool:
        return chance > 0 and self.random.random() < chance

    # -- memory

    def _drop(self, key: Key) -> None:
        if key in self.held and self.readers[key] > 0:
            if not self.remembers(key[0]) or key in self.memory:
                raise Violation(f"{key} is dropped while it is read")
            self.pinned[key] = self.held[key]
            self.referee.lost(key[0])
        self.held.pop(key, None)
        self.memory.discard(key)

    def remembers(self, unit: Unit) -> bool:
        """Whether a unit's output has something for its tile's next step alone."""
        return self.faults.remembers and unit.kind == "step" and unit.step < self.plan.steps(unit)

    def _drop_memory(self, key: Key) -> None:
        after = replace(key[0], step=key[0].step + 1)
        if key not in self.memory | self.lost_memory | self.gone:
            raise Violation(f"{key} has no memory to drop")
        if key in self.writes:
            raise Violation(f"the memory of {key} is dropped while it is written")
        if after in self.with_worker:
            raise Violation(f"the memory of {key} is dropped while {after} reads it")
        self.memory.discard(key)
        self.lies_with.pop(key, None)

    def _bring_memory(self, command: RunUnit) -> None:
        """What a tile's step goes on from, to the worker that it is sent to."""
        for key in command.inputs:
            if not self._is_own(command.unit, key) or key in self.gone:
                continue
            holder = self.lies_with.get(key)
            if holder is not None and holder.given_up:
                raise Violation(f"{command.unit} reads what lay with {holder.name}, which is lost")
            if holder is not None and holder.name != command.worker:
                self.handing[key] = self.lies_with.pop(key)
            if key not in self.memory | self.lost_memory:
                raise Violation(f"{command.unit} reads what {key} had kept, and it was dropped")

    def _receive_memory(self, command: RunUnit) -> None:
        """A unit begins: what was handed over for it has arrived."""
        for key in command.inputs:
            if self._is_own(command.unit, key):
                self.handing.pop(key, None)

    def _is_own(self, unit: Unit, key: Key) -> bool:
        """Whether an input is of the unit's own tile, and has something for it alone."""
        return key[0] == replace(unit, step=unit.step - 1) and self.remembers(key[0])

    def _has_lost_it(self, command: RunUnit, key: Key) -> bool:
        return self._is_own(command.unit, key) and key not in self.memory

    def _lose_memory(self, worker: SimWorker) -> None:
        """What lay with a worker alone."""
        for key, holder in (self.lies_with | self.handing).items():
            if holder is worker and key in self.memory:
                self.memory.discard(key)
                self.lost_memory.add(key)
                self.referee.lost(key[0])

    def _vanish(self, key: Key) -> None:
        if self.held.pop(key, None) is not None:
            self.memory.discard(key)
            self.gone.add(key)
            self.referee.lost(key[0])

    # -- the store

    def _store(self, key: Key) -> None:
        unit, attempt = key
        if unit in self.results:
            raise Violation(f"{unit} was committed twice")
        if key in self.writes:
            raise Violation(f"{key} is being written already")
        dies = self._strikes(self.faults.write_dies)
        content = self.held.get(key)
        if content is None and key not in self.gone:
            raise Violation(f"{key} is to be stored, and is not there")
        if content is not None and self.remembers(unit) and key not in self.memory:
            raise Violation(f"{key} is to be stored without its memory")
        self.writes[key] = content

        def write() -> Event | None:
            del self.writes[key]
            pulled = content is not None and (key in self.held or self._strikes(0.5))
            if not pulled:
                return OutputLost(at_s=self.now_s, unit=unit, attempt=attempt)
            if dies:
                self.referee.struck("write", unit)
                return StoreFailed(
                    at_s=self.now_s, unit=unit, attempt=attempt, message="died", transient=True
                )
            self.results.setdefault(unit, content or "")
            if unit.kind == "decode" and not self.first_piece_s:
                self.first_piece_s = self.now_s
            return OutputStored(at_s=self.now_s, unit=unit, attempt=attempt)

        self._later(self.random.uniform(0.01, 0.6) if self.faults.seed else 0.0, write)

    def _load(self, unit: Unit) -> None:
        if unit not in self.results:
            raise Violation(f"{unit} is loaded, but it is not stored")
        damaged = self._strikes(self.faults.result_damaged)

        def read() -> Event:
            if damaged:
                self._damage(unit)
                return LoadFailed(at_s=self.now_s, unit=unit, message="damaged")
            self.gone.discard((unit, 0))
            self.held[unit, 0] = self.results[unit]
            if remembers := self.remembers(unit):
                self.memory.add((unit, 0))
            return OutputLoaded(at_s=self.now_s, unit=unit, remembers=remembers)

        self._later(0.05, read)

    def _damage(self, unit: Unit) -> None:
        del self.results[unit]
        self.referee.damaged = True
        self.referee.struck("damage", unit)

    def _stitch(self) -> Event:
        goals = self.plan.goals()
        damaged = tuple(goal for goal in goals if self._strikes(self.faults.film_damaged))
        if damaged:
            for goal in damaged:
                self._damage(goal)
            return StitchFailed(at_s=self.now_s, message="damaged", lost=damaged)
        self.stitched = True
        return FilmStitched(at_s=self.now_s, path="film.mp4")


def profile(
    name: str, free_bytes: int = 2**40, device: str = "sim", host: str = ""
) -> WorkerProfile:
    """The profile of a simulated worker, on a host of its own unless one is named."""
    numerics = NumericsClass(
        device=device,
        capability="sim",
        dtype="float32",
        torch="0",
        diffusers="0",
        attention="native",
        slices=1,
        threads=1,
        deterministic=True,
    )
    return WorkerProfile(
        numerics=numerics, free_bytes=free_bytes, model_bytes=0, host=host or name, process=0
    )
