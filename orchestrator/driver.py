"""The driver: the only place that waits on Ray.

It feeds what happens on the cluster into the state as events, and carries the state's commands
out. It owns every object reference, and looks into none: tensors stay on the workers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from jobs.units import Stayed, TaskReport, Unit
from orchestrator import actors
from orchestrator.cluster import ClusterLost, install_root
from orchestrator.engagement import deepened, engagement, is_told, moved
from orchestrator.events import (
    Command,
    DeleteResult,
    DropMemory,
    DropOutput,
    EndRender,
    Event,
    LoadOutput,
    OutputLost,
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
    WorkerRefused,
)
from orchestrator.handing import HandOvers
from orchestrator.keeping import KeeperLink, Output
from orchestrator.ray_errors import (
    died_before,
    in_words,
    lost_object,
    lost_with_its_node,
    meaning,
)
from orchestrator.session import Session
from orchestrator.state import RenderState

#: How long the loop waits for something to happen before it looks at deadlines.
TICK_S = 0.25

#: Journal records are gathered for so long: results are found without them.
JOURNAL_EVERY_S = 1.0


class Driver:
    """One session of a render, on one cluster. Raises ClusterLost if that cluster dies."""

    def __init__(self, session: Session, state: RenderState) -> None:
        self._session = session
        self._state = state
        self._root = install_root()
        self._workers: dict[str, Any] = {}
        self._outputs: dict[tuple[Unit, int], Output] = {}
        self._numerics: dict[tuple[Unit, int], tuple[str, str]] = {}  # digest, worker
        self._pending: dict[Any, Callable[[Any], Event | None]] = {}
        # Less than any limit of a unit, which waits for it.
        self._handing = HandOvers(0.75 * state.policy.hang_floor_s)
        self._records: list[dict[str, Any]] = []
        self._flushed_s = self._checked_s = time.monotonic()
        self._ended: EndRender | None = None
        self._stopping = False
        self._pinned = state.roster.pinned
        self._keeper = KeeperLink(
            self._root,
            session.store_uri,
            session.cluster,
            session.plan,
            session.recipes,
            self._watch,
            self._note,
            lambda unit, output: self._outputs.__setitem__((unit, 0), output),
        )

    def _watch(self, ref: Any, handler: Callable[[Any], Event | None]) -> None:
        self._pending[ref] = handler

    # -- the loop

    def run(self) -> EndRender:
        try:
            self._feed(RenderStarted(at_s=time.monotonic()))
            while self._ended is None:
                for event in self._wait():
                    self._feed(event)
                self._write_journal()
        finally:  # also when Ray died: what it did before is not done again
            self._write_journal(now=True)
        return self._ended

    def _feed(self, event: Event) -> None:
        self._session.watcher.saw(event, self._state)
        commands = self._state.handle(event)
        self._pin()
        for command in commands:
            self._session.watcher.did(command, self._state)
            self._execute(command)

    def _wait(self) -> Iterator[Event]:
        """What happened since the last look; at least that time passed."""
        ready: list[Any] = []
        if self._pending:
            refs = list(self._pending)
            ready, _ = ray.wait(refs, num_returns=1, timeout=TICK_S)
            if ready:
                ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        else:
            time.sleep(TICK_S)
        for ref in ready:
            handler = self._pending.pop(ref, None)
            event = handler(ref) if handler is not None else None
            if event is not None:
                yield event
        self._check()
        now_s = time.monotonic()
        yield from self._silent(now_s)
        reason = self._session.stop_reason(now_s)
        if reason is not None and not self._stopping:
            self._stopping = True
            yield StopRequested(at_s=now_s, outcome=reason[0], message=reason[1])
        yield TimePassed(at_s=now_s)

    def _check(self) -> None:
        """Look after the keeper, and raise ClusterLost if Ray died: now and then, since each look
        reads /proc."""
        if time.monotonic() - self._checked_s >= TICK_S:
            self._checked_s = time.monotonic()
            self._session.cluster.check()
            self._keeper.check()

    def _execute(self, command: Command) -> None:
        match command:
            case StartWorker(worker):
                self._start_worker(worker)
            case StopWorker(worker, _):
                self._stop_worker(worker)
            case RunUnit():
                self._run_unit(command)
            case StoreOutput(unit, attempt):
                output, facts = self._outputs[unit, attempt], self._numerics[unit, attempt]
                self._keeper.store(unit, attempt, output, *facts)
            case LoadOutput(unit):
                self._keeper.load(unit)
            case DropOutput(unit, attempt):
                self._clear((unit, attempt), self._outputs.pop((unit, attempt), None))
                self._numerics.pop((unit, attempt), None)
            case DropMemory(unit, attempt):
                output = self._outputs[unit, attempt]
                self._clear((unit, attempt), output)
                self._outputs[unit, attempt] = replace(output, memory=None, stays_with=None)
            case DeleteResult(unit):
                self._keeper.delete(unit)
            case StitchFilm():
                self._keeper.stitch(self._session.out, self._session.provenance)
            case EndRender():
                self._ended = command

    # -- workers

    def _start_worker(self, worker: str) -> None:
        gpus = self._session.gpu_per_worker
        remote: Any = ray.remote  # its types know no concurrency groups
        shell = remote(concurrency_groups={"shelf": 1})(actors.worker_shell())
        actor = self._workers[worker] = shell.options(
            num_cpus=0 if gpus else self._session.plan.threads,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
        ).remote(self._root)
        setup = replace(self._session.setup, worker=self._writer(worker))
        joined = actor.join.remote(setup, self._session.plan.model_identity)
        self._watch(joined, partial(self._on_joined, worker))

    def _writer(self, worker: str) -> str:
        """A worker's name that no other session of the job has."""
        return f"{worker}.{self._session.journal.epoch}"

    def _on_joined(self, worker: str, ref: Any) -> Event:
        now_s = time.monotonic()
        try:
            what, answer = ray.get(ref, timeout=0)
        except RayError as error:
            return self._gone(worker, error)
        if what == "joined":
            self._session.cluster.note_process(answer.process)
            self._note({"type": "joined", "worker": worker, "numerics": answer.numerics.digest()})
            return WorkerJoined(at_s=now_s, worker=worker, profile=answer)
        self._stop_worker(worker)
        if what == "refused":
            return WorkerRefused(at_s=now_s, worker=worker, message=answer)
        return WorkerLost(at_s=now_s, worker=worker, message=answer)

    def _pin(self) -> None:
        """A job that pins its numerics keeps the first class that took part, at once."""
        pinned = self._state.roster.pinned
        if pinned is not None and self._pinned is None:
            self._pinned = pinned
            self._session.journal.append([{"type": "pinned", "key": "pinned", "numerics": pinned}])

    def _stop_worker(self, worker: str) -> None:
        actor = self._workers.pop(worker, None)
        if actor is not None:
            with contextlib.suppress(RayError):
                ray.kill(actor, no_restart=True)

    def _gone(self, worker: str, error: Exception) -> Event:
        """A worker's process died or cannot be reached: it is killed, to be sure."""
        self._session.cluster.check()
        if meaning(error) == "cluster":
            raise ClusterLost(in_words(error))
        self._stop_worker(worker)
        return WorkerLost(
            at_s=time.monotonic(),
            worker=worker,
            message=in_words(error),
            node=lost_with_its_node(error),
        )

    # -- units

    def _run_unit(self, command: RunUnit) -> None:
        task = self._session.plan.task(command.unit, command.attempt)
        inputs = {unit: self._outputs[unit, attempt] for unit, attempt in command.inputs}
        may_stay = not self._session.plan.is_durable(command.unit)
        actor = self._workers[command.worker]
        report, *refs = actor.run.options(num_returns=3).remote(
            task, self._memory(command), may_stay, *(output.shown for output in inputs.values())
        )
        self._outputs[command.unit, command.attempt] = Output(*refs)
        self._pending[report] = partial(self._on_report, command)

    def _memory(self, command: RunUnit) -> Any:
        """What the tile's step before kept for this one: a reference, a name on the worker's own
        shelf, or None."""
        own = self._own(command)
        keys = (key for key in command.inputs if key[0] in own)
        return next((self._bring(key, command.worker) for key in keys), None)

    def _bring(self, key: tuple[Unit, int], worker: str) -> Any:
        """What is on the shelf of another is handed over. Ray sees to it that the unit waits for
        that, which waits for nothing that was sent later."""
        output = self._outputs[key]
        if output.stays_with is None:
            return output.memory
        if output.stays_with == worker:
            return Stayed(*key)
        hand_over = self._workers[output.stays_with].hand_over
        shelf = hand_over.options(concurrency_group="shelf", num_returns=2)
        answer, memory = shelf.remote(Stayed(*key))
        self._handing.asked(answer, output.stays_with, time.monotonic())
        self._watch(answer, partial(self._on_handed, key, output.stays_with))
        self._outputs[key] = replace(output, memory=memory, stays_with=None)
        return memory

    def _on_handed(self, key: tuple[Unit, int], worker: str, ref: Any) -> Event | None:
        now_s = time.monotonic()
        self._handing.answered(ref, now_s)
        try:
            ray.get(ref, timeout=0)
        except RayError as error:
            if meaning(error) in ("actor", "cluster"):
                return self._gone(worker, error)
            return OutputLost(at_s=now_s, unit=key[0], attempt=key[1])
        return None

    def _silent(self, now_s: float) -> Iterator[Event]:
        worker = self._handing.silent(now_s)
        if worker is not None:
            self._stop_worker(worker)
            message = f"it did not hand over a tile for {self._handing.limit_s:.0f} s"
            yield WorkerLost(at_s=now_s, worker=worker, message=message)

    def _clear(self, key: tuple[Unit, int], output: Output | None) -> None:
        """Nobody will ask for what an output keeps for its tile: not on a shelf either."""
        if output is not None and output.stays_with is not None:
            self._forget(Stayed(*key), output.stays_with)

    def _forget(self, what: Stayed, worker: str) -> None:
        holder = self._workers.get(worker)
        if holder is not None:
            holder.drop.options(concurrency_group="shelf").remote(what)

    def _on_report(self, command: RunUnit, ref: Any) -> Event:
        try:
            report = ray.get(ref, timeout=0)
        except RayError as error:
            return self._on_error(command, error)
        if report[0] == "failed":  # by the cluster: what the tile had kept is not there
            lost = self._own(command) if report[1] == "cluster" else ()
            return self._failed(command, report[1], report[2], lost)
        facts = report[1]
        key = (command.unit, command.attempt)
        self._numerics[key] = (facts.numerics, self._writer(command.worker))
        if facts.stays:
            self._outputs[key] = replace(self._outputs[key], memory=None, stays_with=command.worker)
        if is_told(command.unit, facts.engaged, self._session.plan):
            self._note(engagement(command.unit, facts.engaged))
        return UnitFinished(
            at_s=time.monotonic(),
            unit=command.unit,
            attempt=command.attempt,
            worker=command.worker,
            elapsed_s=facts.elapsed_s,
            remembers=facts.remembers,
            stays=facts.stays,
            made_do=self._made_do(command, facts),
        )

    def _made_do(self, command: RunUnit, facts: TaskReport) -> str:
        """How a worker had to do without memory, for the journal and for whoever watches."""
        writer, asked = self._writer(command.worker), self._session.plan.accelerations
        if facts.deeper is not None:
            told = deepened(command.unit, writer, facts.deeper, facts.numerics, asked)
        elif facts.on_processor:
            told = moved(writer, facts.numerics)
        else:
            return ""
        facts_told = {"worker": writer, "on_processor": facts.on_processor, "message": told}
        self._note({"type": "made_do", "unit": str(command.unit)} | facts_told)
        return told

    def _on_error(self, command: RunUnit, error: RayError) -> Event:
        """Ray, not the unit, had trouble; or our own code did."""
        what = meaning(error)
        if what == "object":
            return self._failed(command, "cluster", in_words(error), self._lost(command, error))
        if what == "task":
            return self._failed(command, "worker", in_words(error))
        if what == "disk":
            return StopRequested(
                at_s=time.monotonic(), outcome="cannot_run", message=in_words(error)
            )
        self._outputs.pop((command.unit, command.attempt), None)
        return self._gone(command.worker, error)

    def _failed(
        self, command: RunUnit, kind: Any, message: str, lost: tuple[Unit, ...] = ()
    ) -> UnitFailed:
        self._outputs.pop((command.unit, command.attempt), None)
        self._forget(Stayed(command.unit, command.attempt), command.worker)  # if it got so far
        return UnitFailed(
            at_s=time.monotonic(),
            unit=command.unit,
            attempt=command.attempt,
            worker=command.worker,
            kind=kind,
            message=message,
            lost=lost,
        )

    def _lost(self, command: RunUnit, error: RayError) -> tuple[Unit, ...]:
        """The inputs that the cluster cannot deliver: the one that it names, or else all; what the
        tile had kept, if the worker died that was to hand it over."""
        if died_before(error):
            return self._own(command)
        name = lost_object(error)
        inputs = {key[0]: self._outputs.get(key) for key in command.inputs}
        named = tuple(
            unit for unit, output in inputs.items() if output is None or name in output.names()
        )
        return named or tuple(inputs)

    def _own(self, command: RunUnit) -> tuple[Unit, ...]:
        """The input that is of the unit's own tile."""
        before = replace(command.unit, step=command.unit.step - 1)
        return tuple(unit for unit, _ in command.inputs if unit == before)

    # -- the journal

    def _note(self, record: dict[str, Any]) -> None:
        self._records.append(record)

    def _write_journal(self, *, now: bool = False) -> None:
        due = now or time.monotonic() - self._flushed_s >= JOURNAL_EVERY_S
        if self._records and due:
            self._session.journal.append(self._records)
            self._records = []
            self._flushed_s = time.monotonic()
