"""Bugs planted on purpose: the simulator must find each of them.

Each is a small change to the scheduler that looks harmless. ``find`` runs seeds until the
referee, an invariant, or a render that does not end betrays it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from jobs.units import Unit
from orchestrator.events import DeleteResult, DropOutput, RunUnit, StitchFilm, StoreOutput
from orchestrator.lanes import Lanes
from orchestrator.plan import Plan
from orchestrator.records import TileLine, UnitRecord
from orchestrator.roster import Roster
from orchestrator.state import RenderState
from orchestrator.units import UnitBook
from tests.marks import few
from tests.orchestrator import memory_bugs, pyramid_bugs  # noqa: F401 (they plant their own)
from tests.orchestrator.hunt import BUGS, MAX_SEEDS, Patch, bug, find

pytestmark = pytest.mark.slow


# -- the catalogue


@bug
def no_fence(patch: Patch) -> None:
    """A report counts whoever sends it."""

    def current(self: RenderState, unit: Unit, attempt: int, worker: str) -> UnitRecord | None:
        record = self.book.records.get(unit)
        return record if record is not None and record.status == "running" else None

    patch.setattr(RenderState, "_current", current)


@bug
def no_retention(patch: Patch) -> None:
    """Outputs are dropped as soon as nobody waits for them."""
    patch.setattr(UnitBook, "_floor", lambda self, tile: 10**6)


@bug
def retention_of_neighbours_only(patch: Patch) -> None:
    """Outputs are dropped when the tile itself has a later durable state."""
    patch.setattr(UnitBook, "_floor", lambda self, tile: self._tiles[tile].durable_step)


@bug
def outputs_without_readers_dropped(patch: Patch) -> None:
    """No retention; checkpoints are deleted as they should be."""

    def release(self: UnitBook, record: UnitRecord) -> None:
        if record.status == "held" and not record.consumers and not record.writing:
            self.emit(DropOutput(record.unit, record.attempt))
            self._forget(record, "nobody waits for it")

    patch.setattr(UnitBook, "_release_if_idle", release)


@bug
def checkpoints_deleted_early(patch: Patch) -> None:
    """Each line deletes the one before, whatever the neighbours have."""
    floor = UnitBook._floor
    patch.setattr(UnitBook, "_floor", lambda self, tile: floor(self, tile) + 1)


@bug
def checkpoints_never_deleted(patch: Patch) -> None:
    emit = RenderState._emit
    patch.setattr(
        RenderState, "_emit", lambda s, c: None if isinstance(c, DeleteResult) else emit(s, c)
    )


@bug
def double_commit(patch: Patch) -> None:
    """A durable result is written again when it has been read back."""
    hold = UnitBook.hold

    def hold_and_write(self: UnitBook, record: UnitRecord, reason: str, **kept: Any) -> None:
        was_durable = record.unit in self.durable
        hold(self, record, reason, **kept)
        if was_durable:
            self.emit(StoreOutput(record.unit, record.attempt))

    patch.setattr(UnitBook, "hold", hold_and_write)


@bug
def wrong_neighbour(patch: Patch) -> None:
    """A tile reads only its direct neighbours, also where more windows cover a place."""
    inputs = Plan.inputs

    def direct(self: Plan, unit: Unit) -> tuple[Unit, ...]:
        near = inputs(self, unit)
        if unit.kind != "step":
            return near
        return tuple(n for n in near if n.kind != "step" or abs(n.index - unit.index) <= 1)

    patch.setattr(Plan, "inputs", direct)


@bug
def stale_input(patch: Patch) -> None:
    """The first attempt of an input is read, not the one that is held."""
    run = UnitBook.run

    def first(self: UnitBook, record: UnitRecord, attempt: int, worker: str) -> Any:
        first = self.__dict__.setdefault("first", {})
        return tuple(
            (name, first.setdefault(name, held))
            for name, held in run(self, record, attempt, worker)
        )

    patch.setattr(UnitBook, "run", first)


@bug
def lost_worker_not_requeued(patch: Patch) -> None:
    def drop(self: RenderState, record: Any, reason: str) -> None:
        self.roster.remove(record, reason, self._now_s)
        record.queue.clear()

    patch.setattr(RenderState, "_drop_worker", drop)
    patch.setattr(RenderState, "validate", lambda self: self.book.validate())


@bug
def second_unit_of_lost_worker_forgotten(patch: Patch) -> None:
    drop = RenderState._drop_worker

    def drop_first(self: RenderState, record: Any, reason: str) -> None:
        while len(record.queue) > 1:
            record.queue.pop()
        drop(self, record, reason)

    patch.setattr(RenderState, "_drop_worker", drop_first)
    patch.setattr(RenderState, "validate", lambda self: self.book.validate())


@bug
def never_released(patch: Patch) -> None:
    emit = RenderState._emit
    patch.setattr(
        RenderState, "_emit", lambda s, c: None if isinstance(c, DropOutput) else emit(s, c)
    )


@bug
def strays_never_dropped(patch: Patch) -> None:
    """The output of a fenced report stays in memory."""
    patch.setattr(UnitBook, "reject", lambda self, unit, attempt: None)


@bug
def duplicate_report_drops_the_output(patch: Patch) -> None:
    def reject(self: UnitBook, unit: Unit, attempt: int) -> None:
        self.emit(DropOutput(unit, attempt))

    patch.setattr(UnitBook, "reject", reject)


@bug
def decoded_before_durable(patch: Patch) -> None:
    patch.setattr(UnitBook, "_is_available", lambda self, record: record.status == "held")


@bug
def lane_kept_after_loss(patch: Patch) -> None:
    """Pieces wait for the worker that held the decoder's context, though it is gone."""

    patch.setattr(Lanes, "end", lambda self, worker, shot=None: None)


@bug
def lane_before_a_finished_piece(patch: Patch) -> None:
    """A piece waits for a lane that will never come: the piece before it is done."""
    plain = Lanes.worker

    class Everything:
        def __contains__(self, unit: object) -> bool:
            return True

    patch.setattr(
        Lanes,
        "worker",
        lambda self, piece, left, avoid=(): plain(self, piece, Everything(), avoid),  # type: ignore
    )


@bug
def leftovers_never_deleted(patch: Patch) -> None:
    """A resumed driver deletes only the checkpoints that its own progress settles."""
    patch.setattr(UnitBook, "settle", lambda self: None)


@bug
def lost_inputs_ignored(patch: Patch) -> None:
    patch.setattr(UnitBook, "lose", lambda self, unit, reason, attempt=None: None)


@bug
def loss_of_a_written_output_ignored(patch: Patch) -> None:
    """An output that vanished while it was written counts as being written for ever."""
    lose = UnitBook.lose

    def careless(self: UnitBook, unit: Unit, reason: str, attempt: int | None = None) -> None:
        record = self.records.get(unit)
        if record is None or not record.writing:
            lose(self, unit, reason, attempt)

    patch.setattr(UnitBook, "lose", careless)


@bug
def assigned_twice(patch: Patch) -> None:
    """A unit goes to a second worker while a first computes it."""
    send = RenderState._send

    def twice(self: RenderState, record: UnitRecord, worker: Any) -> None:
        send(self, record, worker)
        others = [w.worker for w in self.roster.joined() if w is not worker]
        if others and record.unit.step % 3 == 2:
            self._emit(RunUnit(record.unit, record.attempt + 10**6, others[0], record.reads))

    patch.setattr(RenderState, "_send", twice)


@bug
def ends_before_all_is_durable(patch: Patch) -> None:
    """A finished piece counts although its write is not acknowledged."""
    hold = UnitBook.hold

    def early(self: UnitBook, record: UnitRecord, reason: str, **kept: Any) -> None:
        hold(self, record, reason, **kept)
        if record.unit.kind == "decode":
            self.emit.__self__.goals_left.discard(record.unit)  # type: ignore[attr-defined]

    patch.setattr(UnitBook, "hold", early)


@bug
def stitches_once_only(patch: Patch) -> None:
    """A damaged piece is computed again, but the film is not stitched again."""
    emit = RenderState._emit

    def once(self: RenderState, command: Any) -> None:
        if isinstance(command, StitchFilm):
            if self.__dict__.get("stitched"):
                return
            self.__dict__["stitched"] = True
        emit(self, command)

    patch.setattr(RenderState, "_emit", once)


@bug
def attempt_reused(patch: Patch) -> None:
    """Attempts are counted per unit, by how often it failed: a lost output's is used again."""
    send = RenderState._send

    def by_failures(self: RenderState, record: UnitRecord, worker: Any) -> None:
        self._next_attempt = 1 + record.deaths + len(record.faults)
        send(self, record, worker)

    patch.setattr(RenderState, "_send", by_failures)


@bug
def resume_ignores_checkpoints(patch: Patch) -> None:
    init = UnitBook.__init__

    def forgetful(self: UnitBook, plan: Plan, durable: Any, emit: Any) -> None:
        init(self, plan, {u for u in durable if u.kind != "step" or plan.is_last_step(u)}, emit)

    patch.setattr(UnitBook, "__init__", forgetful)


@bug
def resume_ignores_pieces(patch: Patch) -> None:
    init = UnitBook.__init__

    def forgetful(self: UnitBook, plan: Plan, durable: Any, emit: Any) -> None:
        init(self, plan, {u for u in durable if u.kind != "decode"}, emit)

    patch.setattr(UnitBook, "__init__", forgetful)


@bug
def hangs_never_detected(patch: Patch) -> None:
    patch.setattr(Roster, "overdue", lambda self, record, now_s: None)


@bug
def dead_writer_not_replaced(patch: Patch) -> None:
    patch.setattr(UnitBook, "write_failed", lambda self, unit, attempt: 0)


@bug
def damaged_result_still_trusted(patch: Patch) -> None:
    damaged = UnitBook.damaged

    def trusting(self: UnitBook, unit: Unit, reason: str) -> None:
        damaged(self, unit, reason)
        self.durable.add(unit)

    patch.setattr(UnitBook, "damaged", trusting)


@bug
def stops_while_it_writes(patch: Patch) -> None:
    keep_going = RenderState._keep_going

    def hasty(self: RenderState) -> None:
        if self._stopping is not None:
            self._end(self._stopping.outcome, self._stopping.message)
        keep_going(self)

    patch.setattr(RenderState, "_keep_going", hasty)


@bug
def a_later_write_hides_an_earlier_one(patch: Patch) -> None:
    """A tile's last stored state counts, though one before it is still on its way."""
    patch.setattr(TileLine, "durable_step", property(lambda self: max(self.stored, default=0)))


@bug
def survivors_redo_work(patch: Patch) -> None:
    """When a worker is lost, its neighbours' last outputs are computed again, too."""
    drop = RenderState._drop_worker

    def wide(self: RenderState, record: Any, reason: str) -> None:
        heads = list(record.queue)
        drop(self, record, reason)
        for unit in heads[:1]:
            for name in self.plan.inputs(unit):
                self.book.lose(name, "to be safe")

    patch.setattr(RenderState, "_drop_worker", wide)


@bug
def all_failures_are_the_units_own(patch: Patch) -> None:
    """A lost object or a dead worker counts as if the unit itself had failed."""
    give_up = RenderState._give_up

    def harsh(self: RenderState, record: UnitRecord, message: str) -> None:
        failures = len(record.faults) + record.deaths + record.cluster_failures
        if failures >= self.policy.max_faults:
            self._end("failed", f"{record.unit} failed {failures} times: {message}")
        give_up(self, record, message)

    patch.setattr(RenderState, "_give_up", harsh)


@bug
def the_whole_queue_is_suspected(patch: Patch) -> None:
    """What only waited behind the unit that killed a worker is blamed, too."""
    drop = RenderState._drop_worker

    def harsh(self: RenderState, record: Any, reason: str) -> None:
        for name in list(record.queue)[1:]:
            self.book.records[name].deaths += 1
        drop(self, record, reason)

    patch.setattr(RenderState, "_drop_worker", harsh)


@bug
def gives_up_after_two_lost_workers(patch: Patch) -> None:
    patch.setattr(Roster, "_gives_up", property(lambda self: self._barren_losses > 1))


# -- the hunt


# -- the hunt


def test_nothing_is_found_without_a_bug() -> None:
    assert find(120) is None


#: Those that many renders do not show.
RARE = {
    "a_later_write_hides_an_earlier_one",
    "leftovers_never_deleted",
    "memory_is_dropped_while_it_is_written",
    "memory_on_a_lost_worker_is_trusted",
    "resume_ignores_checkpoints",
    "resume_ignores_pieces",
    "stops_while_it_writes",
    "the_whole_queue_is_suspected",
}


@pytest.fixture(params=few(sorted(BUGS), *sorted(BUGS.keys() - RARE)))
def planted(request: pytest.FixtureRequest, monkeypatch: Patch) -> Iterator[str]:
    BUGS[request.param](monkeypatch)
    yield request.param


def test_each_planted_bug_is_found(planted: str) -> None:
    found = find()
    assert found is not None, f"{planted} survived {MAX_SEEDS} seeds"
    print(f"{planted}: {found[0]} seeds, {found[1]}")
