"""The state of a render: events in, commands out.

``RenderState.handle`` is the only way in. It is pure: no clock (events carry the time), no I/O,
no randomness. The driver feeds it what happens on Ray; the simulator feeds it what happens on a
simulated cluster.

Blame is told apart. ``bad_job`` fails the render at once; ``worker``, ``out_of_memory`` and
``not_finite`` count against the worker and the unit; ``cluster`` (a lost object, a lost node)
counts against nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import singledispatchmethod

from jobs.units import Unit
from orchestrator.events import (
    Command,
    EndRender,
    Event,
    FilmStitched,
    LoadFailed,
    Outcome,
    OutputLoaded,
    OutputLost,
    OutputStored,
    RenderStarted,
    RunUnit,
    StitchFailed,
    StitchFilm,
    StopRequested,
    StopWorker,
    StoreFailed,
    TimePassed,
    UnitFailed,
    UnitFinished,
    WorkerJoined,
    WorkerLost,
    WorkerRefused,
)
from orchestrator.lanes import Lanes
from orchestrator.placement import choose_seat, unequal
from orchestrator.plan import Plan
from orchestrator.records import UnitRecord
from orchestrator.roster import Policy, Roster, WorkerRecord
from orchestrator.units import UnitBook


class RenderState:
    """All that the coordinator knows. ``durable`` are the units whose results are stored;
    ``pinned`` is the digest of the only numerics class allowed, if the job pins one."""

    def __init__(
        self, plan: Plan, policy: Policy, *, durable: Iterable[Unit] = (), pinned: str | None = None
    ) -> None:
        self.plan = plan
        self.policy = policy
        self.outcome: Outcome | None = None
        self.message = ""
        self.roster = Roster(plan, policy, pinned, self._emit)
        self.book = UnitBook(plan, durable, self._emit)
        self.goals_left = {goal for goal in plan.goals() if goal not in self.book.durable}
        self._now_s = 0.0
        self._commands: list[Command] = []
        self._next_attempt = 1
        self._damages: Counter[Unit] = Counter()
        self._lanes = Lanes(plan)
        self._encoder: str | None = None
        self._homes: dict[tuple[int, int, int], str] = {}  # tile -> worker of its last step
        self._started = self._stitching = False
        self._stopping: EndRender | None = None

    @property
    def workers(self) -> dict[str, WorkerRecord]:
        return self.roster.workers

    # -- the way in

    def handle(self, event: Event) -> list[Command]:
        """Change the state by one event; returns what is to be done now."""
        if self.outcome is not None:
            return []
        self._now_s = self.book.now_s = event.at_s
        self._on(event)
        self._keep_going()
        commands, self._commands = self._commands, []
        return commands

    def _emit(self, command: Command) -> None:
        if self.outcome is None:  # nothing follows the end
            self._commands.append(command)

    @singledispatchmethod
    def _on(self, event: Event) -> None:
        raise TypeError(f"unknown event {event!r}")

    def _keep_going(self) -> None:
        """What follows from the state alone, after every event."""
        if self._stopping is not None:
            if not any(record.writing for record in self.book.records.values()):
                self._end(self._stopping.outcome, self._stopping.message)
            return
        if self.outcome is not None or not self._started:
            return
        if self.goals_left:
            self.roster.staff(self._now_s)
            end = self.roster.hopeless()
            if end is not None:
                self._end(*end)
            self._assign()
        elif not self._stitching:
            self._stitching = True
            self._emit(StitchFilm())

    def _end(self, outcome: Outcome, message: str) -> None:
        if self.outcome is None:
            self._emit(EndRender(outcome, message))
            self.outcome, self.message = outcome, message

    # -- the render as a whole

    @_on.register
    def _(self, event: RenderStarted) -> None:
        self._started = True
        for goal in sorted(self.goals_left, key=self.plan.priority):
            self.book.need(goal)
        self.book.settle()

    @_on.register
    def _(self, event: StopRequested) -> None:
        """Stop sending work; end once the writes in flight are durable."""
        self._stopping = EndRender(event.outcome, event.message)

    @_on.register
    def _(self, event: FilmStitched) -> None:
        self._end("done", event.path)

    @_on.register
    def _(self, event: StitchFailed) -> None:
        if not event.lost:
            self._end("cannot_run", event.message)
            return
        self._stitching = False
        for unit in event.lost:
            self.goals_left.add(unit)
            self._damaged(unit, event.message)

    @_on.register
    def _(self, event: TimePassed) -> None:
        for record in list(self.workers.values()):
            reason = self.roster.overdue(record, self._now_s)
            if reason:
                self._emit(StopWorker(record.worker, reason))
                self._suspect(record)
                self._drop_worker(record, reason)

    # -- workers

    @_on.register
    def _(self, event: WorkerJoined) -> None:
        record = self.workers.get(event.worker)
        if record is None:
            self._emit(StopWorker(event.worker, "it joined after it had been given up"))
            return
        refusal = self.roster.join(record, event.profile)
        if refusal is not None:
            self._emit(StopWorker(event.worker, refusal))

    @_on.register
    def _(self, event: WorkerRefused) -> None:
        record = self.workers.get(event.worker)
        if record is not None:
            self.roster.refuse(record, event.message)

    @_on.register
    def _(self, event: WorkerLost) -> None:
        record = self.workers.get(event.worker)
        if record is not None:
            self._suspect(record, node=event.node)
            self._drop_worker(record, event.message)

    def _drop_worker(self, record: WorkerRecord, reason: str) -> None:
        """The worker is gone: its units go back."""
        self.roster.remove(record, reason, self._now_s)
        self._lanes.end(record.worker)
        self.book.lose_worker(record.worker, f"{record.worker} was lost: {reason}")
        for name in record.queue:
            unit = self.book.records[name]
            self.book.requeue(unit, f"{record.worker} was lost: {reason}")
            self._give_up(unit, reason)

    def _suspect(self, record: WorkerRecord, *, node: bool = False) -> None:
        """A worker died or hangs, perhaps by what it was at; not if its whole node is lost.

        A host takes all its workers with it, one after another: the unit moves from each to the
        next. That is one loss.
        """
        unit = self.book.records[record.queue[0]] if record.queue else None
        if unit is not None and self._now_s - unit.died_s > self.policy.same_loss_s:
            unit.died_s = self._now_s
            unit.deaths += not node
            unit.cluster_failures += node

    # -- units

    def _current(self, unit: Unit, attempt: int, worker: str) -> UnitRecord | None:
        """The unit's record, if this attempt on this worker is the one that counts."""
        record = self.book.records.get(unit)
        if record is None or record.status != "running":
            return None
        return record if (record.attempt, record.worker) == (attempt, worker) else None

    @_on.register
    def _(self, event: UnitFinished) -> None:
        record = self._current(event.unit, event.attempt, event.worker)
        if record is None:
            self.book.reject(event.unit, event.attempt)
            return
        worker = self.workers[event.worker]
        self.roster.returned(worker, event.unit, self._now_s)
        self.roster.finished(worker, event.unit, event.elapsed_s)
        if event.unit.kind == "step":
            self._homes[event.unit.shot, event.unit.stage, event.unit.index] = event.worker
        self.book.hold(
            record,
            f"finished by {event.worker}",
            remembers=event.remembers,
            lies_with=event.worker if event.stays else None,
        )

    @_on.register
    def _(self, event: UnitFailed) -> None:
        record = self._current(event.unit, event.attempt, event.worker)
        if record is None:
            return
        for name, attempt in record.reads:
            if name in event.lost:
                self.book.lose(name, event.message, attempt)
        worker = self.workers[event.worker]
        self.roster.returned(worker, event.unit, self._now_s)
        if event.unit.kind == "decode":
            self._lanes.end(event.worker, event.unit.shot)
        if event.kind == "bad_job":
            self._end("failed", f"{event.unit}: {event.message}")
        elif event.kind == "cluster":
            record.cluster_failures += 1
        else:
            self._blame(record, worker, event.message)
        self.book.requeue(record, event.message)
        self._give_up(record, event.message)

    def _blame(self, record: UnitRecord, worker: WorkerRecord, message: str) -> None:
        record.faults.append(message)
        record.avoid.add(worker.worker)
        worker.faults += 1
        if worker.faults >= self.policy.max_worker_faults and worker.worker in self.workers:
            reason = f"{worker.faults} failures in a row, the last: {message}"
            self._emit(StopWorker(worker.worker, reason))
            self._drop_worker(worker, reason)  # what waits in its queue has done no harm

    def _give_up(self, record: UnitRecord, message: str) -> None:
        if len(record.faults) >= self.policy.max_faults:
            tries = len(record.faults)
            self._end("failed", f"{record.unit} failed {tries} times, the last: {message}")
        elif record.deaths >= self.policy.max_deaths:
            deaths = record.deaths
            self._end("failed", f"{record.unit}: {deaths} workers died on it, the last: {message}")
        elif record.cluster_failures >= self.policy.max_cluster_failures:
            self._end("failed", f"{record.unit}: the cluster failed again and again: {message}")

    # -- outputs

    @_on.register
    def _(self, event: OutputLost) -> None:
        self.book.lose(event.unit, "the cluster lost it", event.attempt)

    @_on.register
    def _(self, event: OutputLoaded) -> None:
        self.book.loaded(event.unit, remembers=event.remembers)

    @_on.register
    def _(self, event: LoadFailed) -> None:
        self._damaged(event.unit, event.message)

    def _damaged(self, unit: Unit, message: str) -> None:
        self._damages[unit] += 1
        if self._damages[unit] > self.policy.max_damages:
            tries = self._damages[unit]
            self._end("store_failed", f"{unit}: its result was damaged {tries} times: {message}")
        self.book.damaged(unit, message)

    @_on.register
    def _(self, event: OutputStored) -> None:
        self.book.stored(event.unit, event.attempt)
        self.goals_left.discard(event.unit)

    @_on.register
    def _(self, event: StoreFailed) -> None:
        if not event.transient:
            self._end("store_failed", event.message)
            return
        tries = self.book.write_failed(event.unit, event.attempt)
        if tries > self.policy.max_write_failures:
            self._end("store_failed", f"{event.unit}: {tries} writers died: {event.message}")

    # -- assignment

    def _assign(self) -> None:
        """Send ready units to workers, earliest film time first.

        A unit may be left for a worker that is busy now, and counts as one of its queue then:
        so the most urgent units do not go to the slowest card because it alone has room.
        """
        passed: list[UnitRecord] = []
        claims: Counter[str] | None = None
        if self.roster.seats and unequal(self.roster.all_seats({}).values()):
            claims = Counter()
        while self.roster.seats and (record := self.book.pop_ready()) is not None:
            choice = self._choose(record, claims)
            if choice in self.roster.seats:
                self._send(record, self.workers[choice])
                continue
            passed.append(record)
            if choice is not None and claims is not None:
                claims[choice] += 1
        for record in passed:
            self.book.push_ready(record)

    def _choose(self, record: UnitRecord, claims: Counter[str] | None) -> str | None:
        """The worker that takes a unit, which may be busy if there are ``claims``, or None. A
        unit that all workers have failed may go to any."""
        seats = self.roster.seats if claims is None else self.roster.all_seats(claims)
        avoid = record.avoid
        if all(worker.worker in avoid for worker in self.roster.joined()):
            avoid = set()
        seats = {name: seat for name, seat in seats.items() if name not in avoid}
        required, must = self._required(record.unit, avoid)
        if must:
            return required
        if record.unit.kind == "encode":
            able = self.roster.encoders(avoid)
            seats = {name: seat for name, seat in seats.items() if name in able}
        return choose_seat(seats.values(), preferred=self._home(record.unit))

    def _home(self, unit: Unit) -> str | None:
        return self._homes.get((unit.shot, unit.stage, unit.index))

    def _required(self, unit: Unit, avoid: set[str]) -> tuple[str | None, bool]:
        """The worker that holds what the unit needs, and whether the unit must wait for one."""
        if unit.kind == "encode":  # one worker loads the encoders, the others never do
            return self._encoder, self._encoder in self.roster.encoders(avoid)
        if unit.kind == "decode":
            return self._lanes.worker(unit, self.goals_left, avoid)
        return None, False

    def _send(self, record: UnitRecord, worker: WorkerRecord) -> None:
        attempt, self._next_attempt = self._next_attempt, self._next_attempt + 1
        inputs = self.book.run(record, attempt, worker.worker)
        self.roster.sent(worker, record.unit, self._now_s)
        if record.unit.kind == "encode":
            self._encoder = worker.worker
        if record.unit.kind == "decode":
            self._lanes.sent(record.unit, worker.worker)
        self._emit(RunUnit(record.unit, attempt, worker.worker, inputs))

    def validate(self) -> None:
        """Check what must always be true; for tests and the simulator."""
        self.book.validate()
        self.roster.validate()
        sent = [unit for worker in self.workers.values() for unit in worker.queue]
        assert len(sent) == len(set(sent)), "a unit was sent to two workers"
        running = {u for u, record in self.book.records.items() if record.status == "running"}
        if self.outcome is None:
            assert running == set(sent), (running, sent)
