"""The book of a render's units: what is waited for, held, durable, and no longer needed.

Pure. Demand flows down from the film's pieces (``need``), availability flows up (``hold``).
Losing an output puts the units under it back in demand, down to what is still held or durable:
a resumed render, a lost object and a first start are the same computation.

Retention. An output without consumers is kept until it is *settled*: every tile within
``checkpoint_every`` overlaps of its own has a durable state at a later step. A tile that must
go back to its last durable state asks its neighbours for at most that many steps, each one
overlap further away, so whatever it can ask for is still there. A write may be overtaken by the
one of a later state: until it is done, the later one counts for nothing, since the output on its
way may yet be lost while a neighbour needs it.

What accelerations keep for a tile's next step may be far larger than all else of an output, and
nobody but that step reads it: it is dropped when that step has run. Whoever must compute that step
once more goes back to the tile's last durable state, which has it.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable

from jobs.units import Unit
from orchestrator.events import (
    Command,
    DeleteResult,
    DropMemory,
    DropOutput,
    LoadOutput,
    StoreOutput,
)
from orchestrator.plan import Plan
from orchestrator.records import (
    Status,
    Story,
    Tile,
    TileLine,
    UnitRecord,
    before,
    check,
    forgetful_before,
    step_of,
    tile_of,
)


class UnitBook:
    """Statuses of all units that are needed or held.

    ``emit`` receives commands. ``durable`` are the units whose results are in the store.
    """

    def __init__(
        self, plan: Plan, durable: Iterable[Unit], emit: Callable[[Command], None]
    ) -> None:
        self.plan = plan
        self.emit = emit
        self.durable: set[Unit] = set(durable)
        self.records: dict[Unit, UnitRecord] = {}
        self.story = Story()
        self.now_s = 0.0
        self._ready: list[tuple[tuple[int, int, int, int], Unit]] = []
        self._tiles: dict[Tile, TileLine] = defaultdict(TileLine)
        self._reach = {
            (shot, stage): stage_plan.reach(plan.checkpoint_every)
            for shot, shot_plan in enumerate(plan.shots)
            for stage, stage_plan in enumerate(shot_plan.stages)
        }
        for unit in self.durable:
            if unit.kind == "step":
                line = self._tiles[tile_of(unit)]
                line.stored.add(unit.step)

    # -- demand

    def need(self, unit: Unit) -> None:
        """See to it that the unit's output becomes available."""
        created: list[UnitRecord] = []
        stack = [unit]
        while stack:
            wanted = stack.pop()
            if wanted in self.records:
                continue
            record = self.records[wanted] = UnitRecord(wanted, self.plan.inputs(wanted))
            if wanted in self.durable:
                self._load(record, "needed")
            else:
                created.append(record)
                stack.extend(record.inputs)
                self._to_be_stored(wanted)
        for record in created:
            self._set(record, "waiting", "needed")
            self._ask_for_inputs(record)
        for record in created:
            self._link(record)

    def _to_be_stored(self, unit: Unit) -> None:
        if unit.kind == "step" and self.plan.is_durable(unit):
            self._tiles[tile_of(unit)].unwritten.add(unit.step)

    def _ask_for_inputs(self, record: UnitRecord) -> None:
        for name in record.inputs:
            self.records[name].consumers.add(record.unit)

    def _link(self, record: UnitRecord) -> None:
        """Enter a waiting unit with its inputs; it is ready if none is missing."""
        self._ask_for_inputs(record)
        self._go_back(record)
        record.missing = {n for n in record.inputs if not self._is_available(self.records[n])}
        self._if_ready(record)

    def _go_back(self, record: UnitRecord) -> None:
        """Where a tile's step before has forgotten what this one needs, it is computed once more;
        so are those before it, from the last durable state on."""
        forgetful = forgetful_before(record.unit, self.records, self.durable)
        for unit in reversed(forgetful):
            self.lose(unit, "what it kept for its tile's next step is forgotten")

    def _is_available(self, record: UnitRecord) -> bool:
        """Whether readers may start. Finished latents are durable before they are decoded."""
        if record.status != "held":
            return False
        return record.unit in self.durable or not self.plan.is_last_step(record.unit)

    def _announce(self, record: UnitRecord) -> None:
        """Tell the readers of an available output."""
        for name in sorted(record.consumers):
            consumer = self.records[name]
            consumer.missing.discard(record.unit)
            self._if_ready(consumer)

    def _await_inputs(self, record: UnitRecord, reason: str) -> None:
        """Put a unit that has lost its output, or its worker, back in the queue."""
        for name in record.inputs:
            self.need(name)
        self._set(record, "waiting", reason)
        self._link(record)

    def _if_ready(self, record: UnitRecord) -> None:
        if record.status == "waiting" and not record.missing:
            self._set(record, "ready", "all inputs held")
            self.push_ready(record)

    def _load(self, record: UnitRecord, reason: str) -> None:
        self._set(record, "loading", reason)
        self.emit(LoadOutput(record.unit))

    def push_ready(self, record: UnitRecord) -> None:
        heapq.heappush(self._ready, (self.plan.priority(record.unit), record.unit))

    def pop_ready(self) -> UnitRecord | None:
        """The ready unit that goes first. It is to be run, or pushed back.

        The heap may hold units that are not ready any more, or are in it twice.
        """
        while self._ready:
            entry = heapq.heappop(self._ready)
            while self._ready and self._ready[0] == entry:
                heapq.heappop(self._ready)
            record = self.records.get(entry[1])
            if record is not None and record.status == "ready":
                return record
        return None

    # -- computing

    def run(self, record: UnitRecord, attempt: int, worker: str) -> tuple[tuple[Unit, int], ...]:
        """Mark a unit as sent to a worker; returns the held outputs that it reads."""
        self._set(record, "running", f"sent to {worker}")
        record.attempt, record.worker = attempt, worker
        record.reads = tuple((name, self.records[name].attempt) for name in record.inputs)
        own = before(record.unit, self.records)
        if own is not None and own.lies_with != worker:
            own.lies_with = None  # it is sent along
        return record.reads

    def hold(
        self,
        record: UnitRecord,
        reason: str,
        *,
        remembers: bool = False,
        lies_with: str | None = None,
    ) -> None:
        """The unit's output is in the cluster's memory; what it keeps for its tile may lie with the
        worker alone."""
        self._set(record, "held", reason)
        record.worker = None
        record.remembers, record.forgotten, record.lies_with = remembers, False, lies_with
        if self.plan.is_durable(record.unit) and record.unit not in self.durable:
            record.writing = True
            self.emit(StoreOutput(record.unit, record.attempt))
        if self._is_available(record):
            self._announce(record)
        self._free_inputs(record)
        self._release_if_idle(record)

    def reject(self, unit: Unit, attempt: int) -> None:
        """An output of an attempt that does not count: its worker had been given up.

        The same report may also arrive twice; then the output is the one that is held.
        """
        record = self.records.get(unit)
        if record is None or record.status != "held" or record.attempt != attempt:
            self.emit(DropOutput(unit, attempt))

    def requeue(self, record: UnitRecord, reason: str) -> None:
        """A sent unit will not come back: it is to be computed again, if anybody needs it."""
        record.worker = None
        self._recover(record, reason)

    def _recover(self, record: UnitRecord, reason: str) -> None:
        """Get an output that is not there in the cheapest way, if anybody needs it."""
        if not record.consumers and not self.is_goal(record.unit):
            self._forget(record, reason)
            self._free_inputs(record)
        elif record.unit in self.durable:
            self._load(record, reason)
            self._free_inputs(record)
        else:
            self._await_inputs(record, reason)

    def lose(self, unit: Unit, reason: str, attempt: int | None = None) -> None:
        """The cluster's memory no longer holds an output (of this attempt, if one is named)."""
        record = self.records.get(unit)
        if record is None or record.status != "held" or attempt not in (None, record.attempt):
            return
        self.emit(DropOutput(unit, record.attempt))
        record.writing = False
        if unit.kind == "step":
            self._tiles[tile_of(unit)].retained.discard(unit.step)
        for name in sorted(record.consumers):
            consumer = self.records[name]
            consumer.missing.add(unit)
            if consumer.status == "ready":
                self._set(consumer, "waiting", f"{unit} was lost")
        self._recover(record, reason)

    def lose_worker(self, worker: str, reason: str) -> None:
        """What tiles had left with it alone is gone."""
        lay = [each for each in self.records.values() if each.lies_with == worker]
        for record in lay:
            if not record.forgotten:
                self.lose(record.unit, reason)

    def loaded(self, unit: Unit, *, remembers: bool = False) -> None:
        record = self.records.get(unit)
        if record is None or record.status != "loading":
            self.emit(DropOutput(unit, 0))
            return
        record.attempt = 0
        self.hold(record, "read back from the store", remembers=remembers)

    def damaged(self, unit: Unit, reason: str) -> None:
        """A durable result turned out to be missing or damaged."""
        self.durable.discard(unit)
        if unit.kind == "step":
            line = self._tiles[tile_of(unit)]
            line.stored.discard(unit.step)
        record = self.records.get(unit)
        if record is not None:
            self._to_be_stored(unit)
        if record is not None and record.status == "loading":
            self._recover(record, reason)
        elif record is None and self.is_goal(unit):
            self.need(unit)

    # -- durability and release

    def stored(self, unit: Unit, attempt: int) -> None:
        """A result is durable."""
        record = self.records.get(unit)
        if record is not None and record.attempt == attempt:
            record.writing = False
        self.durable.add(unit)
        if unit.kind == "step":
            line = self._tiles[tile_of(unit)]
            line.stored.add(unit.step)
            line.unwritten.discard(unit.step)
            self._settle_near(tile_of(unit))
        if record is None:
            return
        if record.status == "held":
            self._announce(record)
            self._release_if_idle(record)
        elif record.status in ("waiting", "ready"):
            self._stored_after_all(record)

    def _stored_after_all(self, record: UnitRecord) -> None:
        """The output was lost while it was written, yet the write succeeded: no need to compute."""
        if not record.consumers:
            self._cancel_if_idle(record)
            return
        self._load(record, "stored though it had been given up")
        self._free_inputs(record)

    def write_failed(self, unit: Unit, attempt: int) -> int:
        """The writer died; the output is still held, and is written again.

        Returns how often that has happened to this output.
        """
        record = self.records.get(unit)
        if record is None or record.status != "held" or record.attempt != attempt:
            return 0
        if unit in self.durable:
            record.writing = False
            self._release_if_idle(record)
            return 0
        record.write_failures += 1
        self.emit(StoreOutput(unit, attempt))
        return record.write_failures

    def _settle_near(self, tile: Tile) -> None:
        """A tile's line may have advanced."""
        shot, stage, index = tile
        low, high = self._reach[shot, stage][index]
        for window in range(low, high):
            self._settle_tile((shot, stage, window))

    def settle(self) -> None:
        """Let go of what an earlier driver had no time to delete."""
        for tile in sorted(self._tiles):
            self._settle_tile(tile)

    def _settle_tile(self, tile: Tile) -> None:
        """Let go of what no resume can ask of a tile any more."""
        line = self._tiles[tile]
        floor = self._floor(tile)
        for step in sorted(step for step in line.retained if step < floor):
            line.retained.discard(step)
            record = self.records.get(step_of(tile, step))
            if record is not None:
                self._release_if_idle(record)
        for step in sorted(step for step in line.stored if step < floor):
            unit = step_of(tile, step)
            if unit not in self.records:
                line.stored.discard(step)
                self.durable.discard(unit)
                self.emit(DeleteResult(unit))

    def _floor(self, tile: Tile) -> int:
        """The least durable step of all tiles within reach: older states are settled."""
        shot, stage, window = tile
        low, high = self._reach[shot, stage][window]
        return min(self._tiles[shot, stage, i].durable_step for i in range(low, high))

    def _release_if_idle(self, record: UnitRecord) -> None:
        if record.status != "held" or record.writing:
            return
        self._forget_memory(record)
        if record.consumers:
            return
        unit = record.unit
        if unit not in self.durable and unit.kind == "step":
            tile = tile_of(unit)
            if unit.step >= self._floor(tile):
                self._tiles[tile].retained.add(unit.step)
                return
        self.emit(DropOutput(unit, record.attempt))
        self._forget(record, "nobody needs it")

    def _forget_memory(self, record: UnitRecord) -> None:
        """Unless the tile's next step has yet to read it."""
        if not record.remembers or record.forgotten:
            return
        if step_of(tile_of(record.unit), record.unit.step + 1) not in record.consumers:
            record.forgotten = True
            self.emit(DropMemory(record.unit, record.attempt))

    def _free_inputs(self, record: UnitRecord) -> None:
        for name in record.inputs:
            source = self.records.get(name)
            if source is not None:
                source.consumers.discard(record.unit)
                self._release_if_idle(source)
                self._cancel_if_idle(source)

    def _cancel_if_idle(self, record: UnitRecord) -> None:
        """Drop the demand for a lost output whose last reader had already read it."""
        if record.status in ("waiting", "ready") and not record.consumers:
            if self.is_goal(record.unit):
                return
            self._forget(record, "its reader has finished")
            self._free_inputs(record)

    def _forget(self, record: UnitRecord, reason: str) -> None:
        self._set(record, "released", reason)
        del self.records[record.unit]
        if record.unit.kind == "step":
            tile = tile_of(record.unit)
            if record.unit.step in self._tiles[tile].unwritten:
                self._tiles[tile].unwritten.discard(record.unit.step)
                self._settle_near(tile)
            else:
                self._settle_tile(tile)

    def is_goal(self, unit: Unit) -> bool:
        return unit.kind == "decode" and unit not in self.durable

    def _set(self, record: UnitRecord, status: Status, reason: str) -> None:
        self.story.change(record, status, reason, self.now_s)

    def validate(self) -> None:
        """Check every invariant that the records must keep; for tests and the simulator."""
        check(self.records, self._is_available)
