"""A simulated cluster with a virtual clock, on which the scheduler runs unchanged.

Outputs are stand-ins: the "content" of a unit is a hash of its name and of its inputs' contents,
so a wrong, stale or missing input shows in the film. Faults are drawn from a seed: workers that
are lost, slow, hang, fail or lie, objects that vanish, writes that fail, reports that are late,
and the loss of everything. A referee checks the scheduler while it runs:

* every run ends with the film, complete and right, or with a failure that names its reason;
* a unit is never computed by two live workers at a time;
* nothing is read after it was dropped or deleted, unless a fault took it;
* no result is committed twice, no command follows the end, nothing is left in memory or store;
* what is computed twice had been lost itself, as far as DESIGN's promise goes: a lost worker
  costs nobody else anything, a lost cluster costs no more than what came after the last
  checkpoint line that all tiles near by had reached.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from jobs.errors import FailureKind
from jobs.units import Unit
from orchestrator.events import (
    Command,
    DeleteResult,
    DropMemory,
    DropOutput,
    EndRender,
    Event,
    LoadOutput,
    RenderStarted,
    RunUnit,
    StartWorker,
    StitchFilm,
    StopRequested,
    StopWorker,
    StoreOutput,
    TimePassed,
    UnitFailed,
    UnitFinished,
    WorkerJoined,
    WorkerLost,
)
from orchestrator.plan import Plan
from orchestrator.referee import Key, Violation, digest
from orchestrator.roster import Policy
from orchestrator.simcluster import Faults, SimCluster, SimReport, SimWorker, profile
from orchestrator.state import RenderState

#: Seconds of work per unit kind, on a worker of speed 1.
UnitCost = Callable[[Unit], float]

#: A run with more events than this per unit of the film does not end by itself.
MAX_EVENTS_PER_UNIT = 300
#: So many deadlines pass without a command only if the scheduler waits for what never comes.
MAX_IDLE_TICKS = 100


def even_cost(unit: Unit) -> float:
    return {"encode": 0.5, "step": 1.0, "decode": 0.3}[unit.kind]


class Simulation(SimCluster):
    """One seeded run of a plan on a simulated cluster."""

    def __init__(
        self,
        plan: Plan,
        policy: Policy,
        faults: Faults | None = None,
        *,
        speeds: tuple[float, ...] = (1.0,),
        cost: UnitCost = even_cost,
        overhead_s: float = 0.0,
        state_class: type[RenderState] = RenderState,
    ) -> None:
        super().__init__(plan, faults or Faults())
        self.policy, self.cost = policy, cost
        self.speeds = itertools.cycle(speeds)
        self.overhead_s = overhead_s
        self.state_class = state_class
        self.cluster_losses = 0
        self.peak_held = 0
        self.busy_s = 0.0
        self.fed = 0
        self._max_events = 5000 + MAX_EVENTS_PER_UNIT * sum(1 for _ in plan.units())
        self._begin()

    def _begin(self) -> None:
        """A fresh driver and an empty cluster over the same store."""
        self._empty()
        self.workers: dict[str, SimWorker] = {}
        self.made_by: dict[Key, str] = {}
        self.unreported: set[Key] = set()
        self.idle_ticks = 0
        self.ended: EndRender | None = None
        self.state = self.state_class(self.plan, self.policy, durable=set(self.results))

    # -- the loop

    def run(self) -> SimReport:
        self._feed(RenderStarted(at_s=self.now_s))
        while self.ended is None:
            self._tick()
            if self.fed > self._max_events:
                raise Violation("the render never ends")
            if self.ended is not None and self.ended.outcome == "interrupted":
                if left := self.writes.keys() - self.gone:  # of one that is lost, who knows
                    raise Violation(f"interrupted while {left} are written")
                self._new_life()
        self._check_end(self.ended)
        return SimReport(
            outcome=self.ended.outcome,
            message=self.ended.message,
            wall_s=self.now_s,
            completed=self.referee.completed,
            cluster_losses=self.cluster_losses,
            first_piece_s=self.first_piece_s,
            peak_held=self.peak_held,
            busy_s=self.busy_s,
            events=self.fed,
        )

    def _tick(self) -> None:
        floor_s = self.policy.hang_floor_s
        if not self.events or self.events[0][0] - self.now_s > floor_s:
            self.now_s += floor_s
            self._feed(TimePassed(at_s=self.now_s))
            self.idle_ticks = 0 if self.events else self.idle_ticks + 1
            if self.idle_ticks > MAX_IDLE_TICKS:
                raise Violation("the scheduler waits for what never comes")
            return
        at_s, _, happen = heapq.heappop(self.events)
        self.now_s = max(self.now_s, at_s)
        event = happen()
        if event is not None:
            self._feed(event)

    def _feed(self, event: Event) -> None:
        commands = self.state.handle(event)
        self.fed += 1
        if self.fed % (1 + len(self.state.book.records) // 8) == 0:
            self.state.validate()
        for command in commands:
            if self.ended is not None:
                raise Violation(f"{command} after the end")
            self.idle_ticks = 0
            self._execute(command)
        self.peak_held = max(self.peak_held, len(self.held))

    # -- carrying out commands

    def _execute(self, command: Command) -> None:
        match command:
            case StartWorker(worker):
                self._start(worker)
            case StopWorker(worker, _):
                self._give_up(worker)
            case RunUnit():
                self._enqueue(command)
            case StoreOutput(unit, attempt):
                self._store((unit, attempt))
            case LoadOutput(unit):
                self._load(unit)
            case DropOutput(unit, attempt):
                self._drop((unit, attempt))
            case DropMemory(unit, attempt):
                self._drop_memory((unit, attempt))
            case DeleteResult(unit):
                self.referee.check_delete(unit)
                self.deleted.append((self.now_s, unit, self.results.pop(unit)))
            case StitchFilm():
                self.referee.check_stitch()
                self._later(0.1, self._stitch)
            case EndRender():
                self.ended = command

    def _start(self, name: str) -> None:
        speed = next(self.speeds) / (5.0 if self._strikes(self.faults.slow) else 1.0)
        worker = self.workers[name] = SimWorker(name, speed)
        fails = self._strikes(self.faults.start_fails)

        def join() -> Event | None:
            if worker.given_up:
                return None
            if fails:
                return self._die(worker, node=False)
            worker.joined = True
            return WorkerJoined(at_s=self.now_s, worker=name, profile=profile(name))

        self._later(self.random.uniform(0.0, 2.0) if self.faults.seed else 0.0, join)

    def _give_up(self, name: str) -> None:
        """The driver counts the worker as lost. Its process may go on, if it lies."""
        worker = self.workers.get(name)
        if worker is None or worker.given_up:
            return
        worker.given_up = True
        self._lose_memory(worker)
        self.referee.lost_worker()
        worker.dead = worker.dead or not self.faults.worker_lies
        for job in worker.queue:
            self.with_worker.pop(job.unit, None)
            self._stops_reading(job)
        if worker.wakes is not None and not worker.dead:
            self._later(self.random.uniform(0.0, 3.0), worker.wakes)

    # -- units

    def _enqueue(self, command: RunUnit) -> None:
        worker = self.workers[command.worker]
        if worker.given_up or not worker.joined:
            raise Violation(f"{command} to a worker that is not there")
        if command.unit in self.with_worker:
            raise Violation(f"{command.unit} is already with another worker")
        self.referee.check_run(command.unit, command.attempt, command.inputs)
        for key in command.inputs:
            if key not in self.held and key not in self.gone:
                raise Violation(f"{command.unit} reads {key}, which is not there")
        self._bring_memory(command)
        self.with_worker[command.unit] = worker
        self.readers.update(command.inputs)
        worker.queue.append(command)
        self._work(worker)

    def _stops_reading(self, command: RunUnit) -> None:
        self.readers.subtract(command.inputs)

    def _work(self, worker: SimWorker) -> None:
        """Begin the next unit of a worker, if it is idle."""
        if worker.busy or worker.dead or not worker.queue:
            return
        worker.busy = True
        command = worker.queue[0]
        self._receive_memory(command)
        seconds = self.cost(command.unit) / worker.speed
        if self.faults.seed:
            seconds *= self.random.uniform(0.8, 1.2)
        early = None
        if self._strikes(0.5 if self.faults.seed else 0.0):  # it reads its inputs at once
            early = self._content(command)
        fate = self._fate(command)
        self._later(
            seconds + self.overhead_s,
            lambda: self._finish(worker, command, seconds, early, fate),
        )

    def _fate(self, command: RunUnit) -> str:
        if command.unit == self.faults.poison:
            return "worker_dies"
        for name in (
            "cluster_lost", "interrupted", "node_lost", "worker_dies", "worker_hangs",
            "unit_fails", "cluster_fails", "worker_lies",
        ):  # fmt: skip
            if self._strikes(getattr(self.faults, name)):
                return name
        return "finishes"

    def _finish(
        self, worker: SimWorker, command: RunUnit, seconds: float, early: str | None, fate: str
    ) -> Event | None:
        if worker.dead:
            return None
        if fate == "cluster_lost":
            self._lose_cluster()
            return None
        if fate in ("worker_dies", "node_lost"):
            return self._die(worker, node=fate == "node_lost")
        if fate == "worker_hangs":
            self._suspect(worker, "death")
            if self._strikes(0.5):  # as if it had been suspended: it goes on once it is given up
                worker.wakes = lambda: self._finish(worker, command, seconds, early, "finishes")
            return None
        worker.busy = False
        worker.queue.popleft()
        if not worker.given_up:
            self._stops_reading(command)
            self.with_worker.pop(command.unit, None)
        self._work(worker)
        if fate == "interrupted":
            self._later(0.0, lambda: StopRequested(
                at_s=self.now_s, outcome="interrupted", message="stopped by the person"
            ))  # fmt: skip
        content = early or self._content(command)
        if content is None or fate in ("unit_fails", "cluster_fails"):
            return self._fail(worker, command, fate)
        return self._deliver(worker, command, content, seconds, fate)

    def _deliver(
        self, worker: SimWorker, command: RunUnit, content: str, seconds: float, fate: str
    ) -> Event | None:
        key = (command.unit, command.attempt)
        self.held[key] = content
        if remembers := self.remembers(command.unit):
            self.memory.add(key)
        if stays := remembers and self.faults.stays and not self.plan.is_durable(command.unit):
            self.lies_with[key] = worker
        self.made_by[key] = worker.name
        self.unreported.add(key)
        self.busy_s += seconds
        if self._strikes(self.faults.object_lost):
            self._later(self.random.uniform(0.0, 2.0), lambda: self._vanish(key))

        def arrive() -> Event:
            if key in self.unreported and not worker.given_up:
                self.referee.finished(command.unit)
                if key in self.gone | self.lost_memory:
                    self.referee.lost(command.unit)
            self.unreported.discard(key)
            return UnitFinished(
                at_s=self.now_s,
                unit=command.unit,
                attempt=command.attempt,
                worker=worker.name,
                elapsed_s=seconds,
                remembers=remembers,
                stays=stays,
            )

        if fate == "worker_lies":  # the same report a second time
            self._later(self.random.uniform(0.0, 3.0) + self.faults.late_s, arrive)
        return self._report(arrive)

    def _fail(self, worker: SimWorker, command: RunUnit, fate: str) -> Event | None:
        there = self.held.keys() | self.pinned.keys()
        lost = tuple(
            key[0] for key in command.inputs if key not in there or self._has_lost_it(command, key)
        )
        kind: FailureKind = "cluster"
        if fate == "unit_fails" and not lost:
            kind = self.random.choice(("worker", "out_of_memory", "not_finite"))
        self.referee.struck("cluster" if kind == "cluster" else "fault", command.unit)
        return self._report(
            lambda: UnitFailed(
                at_s=self.now_s,
                unit=command.unit,
                attempt=command.attempt,
                worker=worker.name,
                kind=kind,
                message="inputs are gone" if lost else "an error",
                lost=lost,
            )
        )

    def _content(self, command: RunUnit) -> str | None:
        contents = [self.held.get(key, self.pinned.get(key)) for key in command.inputs]
        if None in contents or any(self._has_lost_it(command, key) for key in command.inputs):
            return None
        return digest(command.unit, [each for each in contents if each is not None])

    # -- losses

    def _die(self, worker: SimWorker, *, node: bool) -> Event | None:
        worker.dead = True
        self._lose_memory(worker)
        self._suspect(worker, "cluster" if node else "death")
        if node:
            for key, maker in list(self.made_by.items()):
                if maker == worker.name:
                    self._vanish(key)

        def arrive() -> Event:
            self._give_up(worker.name)
            return WorkerLost(at_s=self.now_s, worker=worker.name, message="died", node=node)

        return self._report(arrive)

    def _suspect(self, worker: SimWorker, kind: str) -> None:
        """Strike what the driver may believe it is at: a unit before, if its report is late."""
        late = [key[0] for key in self.unreported if self.made_by.get(key) == worker.name]
        for unit in {*late, *(command.unit for command in list(worker.queue)[:1])}:
            self.referee.struck(kind, unit)

    def _lose_cluster(self) -> None:
        """Everything but the store is gone. Of what was on its way there, some arrived."""
        self.cluster_losses += 1
        for (unit, _), content in self.writes.items():
            if content is not None and self._strikes(0.5):
                self.results.setdefault(unit, content)
        for at_s, unit, content in self.deleted:
            if self.now_s - at_s < 5.0 and self._strikes(0.5):
                self.results.setdefault(unit, content)
        self._new_life()

    def _new_life(self) -> None:
        self.referee.new_life()
        self._begin()
        self._feed(RenderStarted(at_s=self.now_s))

    def _check_end(self, ended: EndRender) -> None:
        self.state.validate()
        if ended.outcome == "done":
            if not self.stitched:
                raise Violation("done without a film")
            busy = {*self.with_worker, *(unit for unit, _ in self.writes)}
            self.referee.check_done(self.held.keys() - self.unreported, busy)
        elif ended.outcome in ("failed", "store_failed"):
            self.referee.check_failed(ended.message, self.policy)
