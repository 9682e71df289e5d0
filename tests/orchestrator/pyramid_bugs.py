"""Bugs planted in what a pyramid's stages hand on to each other."""

from __future__ import annotations

from jobs.units import Unit, Window
from orchestrator.plan import Plan, StagePlan
from orchestrator.records import UnitRecord
from orchestrator.units import UnitBook
from tests.orchestrator.hunt import Patch, bug


@bug
def jumps_from_one_window(patch: Patch) -> None:
    """A later stage's window starts from the window of its own place in time alone."""
    owners = StagePlan.owners

    def one(self: StagePlan, start: int, stop: int) -> tuple[Window, ...]:
        return owners(self, start, stop)[:1] if self.stride > 1 else owners(self, start, stop)

    patch.setattr(StagePlan, "owners", one)


@bug
def jumps_from_unfinished_windows(patch: Patch) -> None:
    """A later stage starts when the one before has made its last prediction."""

    def last(self: Plan, shot: int, stage: int, window: Window) -> Unit:
        plan = self.shots[shot]
        steps = plan.stages[stage].steps - (stage + 1 < len(plan.stages))
        return Unit("step", shot, stage, window.index, 0, steps)

    patch.setattr(Plan, "_last_step", last)


@bug
def coarse_stages_are_not_awaited(patch: Patch) -> None:
    """What a later stage starts from need not be durable."""
    available = UnitBook._is_available

    def held(self: UnitBook, record: UnitRecord) -> bool:
        is_coarse = record.unit.stage + 1 < len(self.plan.shots[record.unit.shot].stages)
        if record.unit.kind == "step" and is_coarse:
            return record.status == "held"
        return available(self, record)

    patch.setattr(UnitBook, "_is_available", held)
