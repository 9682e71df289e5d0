"""The book of units: demand, retention, settling, and what is illegal."""

from __future__ import annotations

import pytest

from jobs.units import Unit
from orchestrator import events as e
from orchestrator.records import TRANSITIONS, IllegalTransition
from orchestrator.units import UnitBook
from tests.orchestrator.bare import ENCODE, piece, step
from tests.orchestrator.plans import frames_for, make_plan


class Book(UnitBook):
    """A book that keeps its commands, and computes units when told to."""

    def __init__(self, plan, durable=()) -> None:  # type: ignore[no-untyped-def]
        self.commands: list[e.Command] = []
        self.attempts = 0
        super().__init__(plan, durable, self.commands.append)

    def compute(self, *units: Unit, remembers: bool = False) -> None:
        for unit in units:
            self.attempts += 1
            record = self.records[unit]
            self.run(record, self.attempts, "w1")
            self.hold(record, "finished", remembers=remembers and unit.kind == "step")
            self.validate()

    def store(self, *units: Unit) -> None:
        for unit in units:
            self.stored(unit, self.records[unit].attempt)
            self.validate()

    def order(self) -> list[Unit]:
        """What is ready, first things first; it stays so."""
        popped = []
        while (record := self.pop_ready()) is not None:
            popped.append(record)
        for record in popped:
            self.push_ready(record)
        return [record.unit for record in popped]

    def dropped(self) -> set[Unit]:
        return {c.unit for c in self.commands if isinstance(c, e.DropOutput)}

    def forgotten(self) -> list[Unit]:
        return [c.unit for c in self.commands if isinstance(c, e.DropMemory)]

    def deleted(self) -> set[Unit]:
        return {c.unit for c in self.commands if isinstance(c, e.DeleteResult)}


def test_demand_reaches_down_to_what_is_durable() -> None:
    book = Book(make_plan(6, steps=4), durable=[ENCODE, step(0, 2)])
    book.need(piece(0))
    statuses = {unit: record.status for unit, record in book.records.items()}
    assert statuses == {
        piece(0): "waiting",
        step(0, 4): "waiting",
        step(0, 3): "waiting",
        step(0, 2): "loading",
        ENCODE: "loading",
    }


def test_ready_units_come_once_and_in_order() -> None:
    book = Book(make_plan(frames_for(3), steps=2))
    for goal in book.plan.goals():
        book.need(goal)
    book.compute(ENCODE)
    assert book.order() == [step(0, 0), step(1, 0), step(2, 0)]
    book.lose(ENCODE, "gone")
    assert book.order() == [ENCODE]
    book.compute(ENCODE)
    assert book.order() == [step(0, 0), step(1, 0), step(2, 0)]


def two_windows_at_step_one() -> Book:
    book = Book(make_plan(frames_for(2), steps=4, checkpoint_every=2))
    for goal in book.plan.goals():
        book.need(goal)
    book.compute(ENCODE, step(0, 0), step(1, 0), step(0, 1), step(1, 1))
    return book


def test_outputs_are_kept_until_their_tiles_have_a_later_durable_state() -> None:
    book = two_windows_at_step_one()
    assert book.dropped() == set(), "step 0 has no reader, but is not settled"
    book.compute(step(0, 2), step(1, 2))
    book.store(step(0, 2))
    assert book.dropped() == set(), "the neighbour may still go back to step 0"
    book.store(step(1, 2))
    assert book.dropped() == {step(w, s) for w in (0, 1) for s in (0, 1)}


def test_a_tile_that_goes_back_finds_its_neighbours_states() -> None:
    book = two_windows_at_step_one()
    book.compute(step(0, 2))
    book.lose(step(0, 2), "gone")
    assert book.order() == [step(0, 2), step(1, 2)], "no step before it is asked for again"


def two_windows_that_remember(*, steps: int = 6, checkpoint_every: int = 2) -> Book:
    book = Book(make_plan(frames_for(2), steps=steps, checkpoint_every=checkpoint_every))
    for goal in book.plan.goals():
        book.need(goal)
    book.compute(ENCODE, step(0, 0), step(1, 0), remembers=True)
    return book


def test_what_a_tile_remembers_is_kept_until_its_next_step_has_run() -> None:
    book = two_windows_that_remember()
    assert book.forgotten() == []
    book.compute(step(0, 1), remembers=True)
    assert book.forgotten() == [step(0, 0)], "the neighbour reads the rest of it"
    assert book.dropped() == set()


def test_what_a_tile_remembers_goes_into_its_checkpoint() -> None:
    book = two_windows_that_remember()
    for number in (1, 2, 3):
        book.compute(step(0, number), step(1, number), remembers=True)
    assert step(0, 2) not in book.forgotten(), "it is on its way to the store"
    book.store(step(0, 2))
    assert book.forgotten()[-1] == step(0, 2)


def test_a_tile_that_has_forgotten_goes_back_to_its_durable_state() -> None:
    book = two_windows_that_remember()
    for number in (1, 2):
        book.compute(step(0, number), step(1, number), remembers=True)
    book.store(step(0, 2), step(1, 2))
    book.compute(step(0, 3), step(1, 3), step(0, 4), remembers=True)
    book.lose(step(0, 4), "gone")
    book.validate()
    statuses = [book.records[step(0, number)].status for number in (2, 3, 4)]
    assert statuses == ["loading", "waiting", "waiting"]
    assert book.records[step(1, 3)].status == "held", "the neighbour has lost nothing"
    for window in (0, 1):  # the neighbour's state of then had been let go, too
        book.loaded(step(window, 2), remembers=True)
    book.compute(step(0, 3), step(0, 4), remembers=True)
    assert book.order() == [step(1, 4)]


def test_a_tile_without_a_durable_state_goes_back_to_its_start() -> None:
    """However far that is."""
    book = two_windows_that_remember(steps=400, checkpoint_every=400)
    for number in range(1, 380):
        book.compute(step(0, number), step(1, number), remembers=True)
    book.lose(step(0, 379), "gone")
    book.validate()
    assert book.order()[0] == step(0, 0)
    assert book.records[step(0, 379)].status == "waiting"


def test_a_step_that_fails_finds_what_its_tile_remembers() -> None:
    book = two_windows_that_remember()
    record = book.records[step(0, 1)]
    book.run(record, 99, "w1")
    book.requeue(record, "its worker was lost")
    assert book.order()[0] == step(0, 1) and book.forgotten() == []


def test_checkpoints_are_deleted_when_all_near_tiles_have_a_later_one() -> None:
    book = two_windows_at_step_one()
    book.compute(step(0, 2), step(1, 2))
    book.store(step(0, 2), step(1, 2))
    book.compute(step(0, 3), step(1, 3), step(0, 4))
    book.store(step(0, 4))
    assert book.deleted() == set()
    book.compute(step(1, 4))
    book.store(step(1, 4))
    assert book.deleted() == {step(0, 2), step(1, 2)}


def test_a_dead_writer_does_not_write_what_another_made_durable() -> None:
    book = Book(make_plan(6))
    book.need(piece(0))
    book.compute(ENCODE)
    book.lose(ENCODE, "gone")
    book.compute(ENCODE)
    book.stored(ENCODE, 1)
    before = list(book.commands)
    assert book.write_failed(ENCODE, 2) == 0
    assert book.commands == before


def test_a_loss_of_another_attempt_is_ignored() -> None:
    book = Book(make_plan(6))
    book.need(piece(0))
    book.compute(ENCODE)
    book.lose(ENCODE, "stale", attempt=7)
    assert book.records[ENCODE].status == "held"


def test_a_result_that_turns_out_durable_is_read_not_computed() -> None:
    book = Book(make_plan(6))
    book.need(piece(0))
    book.compute(ENCODE)
    book.lose(ENCODE, "gone while it was written")
    assert book.records[ENCODE].status == "ready"
    book.stored(ENCODE, 1)
    assert book.records[ENCODE].status == "loading"
    assert book.order() == []


def test_an_illegal_change_tells_the_units_story() -> None:
    book = Book(make_plan(6))
    book.need(piece(0))
    with pytest.raises(IllegalTransition, match="waiting: needed"):
        book.hold(book.records[piece(0)], "nobody computed it")


def test_every_status_can_be_left_and_reached() -> None:
    sources = {old for old, _ in TRANSITIONS}
    targets = {new for _, new in TRANSITIONS}
    assert sources - targets == {"new"}
    assert targets - sources == {"released"}
