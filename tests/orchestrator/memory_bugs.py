"""Bugs planted in what is kept for a tile's next step."""

from __future__ import annotations

from typing import Any

from orchestrator.events import DropMemory
from orchestrator.records import UnitRecord, before, step_of, tile_of
from orchestrator.units import UnitBook
from tests.orchestrator.hunt import Patch, bug


@bug
def memory_is_never_dropped(patch: Patch) -> None:
    patch.setattr(UnitBook, "_forget_memory", lambda self, record: None)


@bug
def memory_is_dropped_before_it_is_read(patch: Patch) -> None:
    def forget(self: UnitBook, record: UnitRecord) -> None:
        if record.remembers and not record.forgotten:
            record.forgotten = True
            self.emit(DropMemory(record.unit, record.attempt))

    patch.setattr(UnitBook, "_forget_memory", forget)


@bug
def memory_is_dropped_while_it_is_written(patch: Patch) -> None:
    release = UnitBook._release_if_idle

    def careless(self: UnitBook, record: UnitRecord) -> None:
        if record.status == "held":
            self._forget_memory(record)
        release(self, record)

    patch.setattr(UnitBook, "_release_if_idle", careless)


@bug
def a_forgetful_tile_goes_on(patch: Patch) -> None:
    patch.setattr(UnitBook, "_go_back", lambda self, record: None)


@bug
def a_forgetful_tile_goes_back_by_one_step(patch: Patch) -> None:
    """It must do so once more for that step."""

    def go_back(self: UnitBook, record: UnitRecord) -> None:
        tile, step = tile_of(record.unit), record.unit.step
        before = self.records.get(step_of(tile, step - 1)) if step else None
        after = self.records.get(step_of(tile, step + 1))
        first = after is None or after.status == "held"
        if before is not None and before.status == "held" and before.forgotten and first:
            self.lose(before.unit, "forgotten")

    patch.setattr(UnitBook, "_go_back", go_back)


@bug
def memory_on_a_lost_worker_is_trusted(patch: Patch) -> None:
    patch.setattr(UnitBook, "lose_worker", lambda self, worker, reason: None)


@bug
def memory_that_was_handed_over_is_lost_with_its_maker(patch: Patch) -> None:
    run = UnitBook.run

    def forgetful(self: UnitBook, record: UnitRecord, attempt: int, worker: str) -> Any:
        own = before(record.unit, self.records)
        lay_with = own.lies_with if own is not None else None
        reads = run(self, record, attempt, worker)
        if own is not None:
            own.lies_with = lay_with
        return reads

    patch.setattr(UnitBook, "run", forgetful)
