"""A render state without a cluster: a test says what happens, and compares the commands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jobs.errors import FailureKind
from jobs.units import Unit
from orchestrator import events as e
from orchestrator.plan import Plan
from orchestrator.roster import Policy
from orchestrator.simcluster import profile
from orchestrator.state import RenderState

ENCODE = Unit("encode", 0)


def step(window: int, number: int, *, shot: int = 0) -> Unit:
    return Unit("step", shot, 0, window, 0, number)


def piece(index: int, *, shot: int = 0) -> Unit:
    return Unit("decode", shot, index=index)


class Bare:
    """``happens`` feeds one event; ``sent`` finds where a unit is."""

    def __init__(
        self,
        plan: Plan,
        *,
        workers: int = 1,
        durable: Iterable[Unit] = (),
        pinned: str | None = None,
        **policy: Any,
    ) -> None:
        self.state = RenderState(
            plan, Policy(workers=workers, **policy), durable=durable, pinned=pinned
        )
        self.now_s = 0.0
        self.log: list[e.Command] = []

    def happens(self, event: type[e.Event], **fields: Any) -> list[e.Command]:
        commands = self.state.handle(event(at_s=self.now_s, **fields))
        self.state.validate()
        self.log += commands
        return commands

    def start(self) -> list[e.Command]:
        return self.happens(e.RenderStarted)

    def joins(self, worker: str = "w1", **fields: Any) -> list[e.Command]:
        return self.happens(e.WorkerJoined, worker=worker, profile=profile(worker, **fields))

    def sent(self, unit: Unit) -> e.RunUnit:
        """The last command that sent a unit to a worker."""
        return next(c for c in reversed(self.log) if isinstance(c, e.RunUnit) and c.unit == unit)

    def attempt(self, unit: Unit) -> int:
        record = self.state.book.records[unit]
        return record.attempt

    def finishes(self, unit: Unit, elapsed_s: float = 1.0) -> list[e.Command]:
        run = self.sent(unit)
        return self.happens(
            e.UnitFinished,
            unit=unit,
            attempt=run.attempt,
            worker=run.worker,
            elapsed_s=elapsed_s,
        )

    def fails(
        self, unit: Unit, kind: FailureKind, message: str = "it broke", lost: tuple[Unit, ...] = ()
    ) -> list[e.Command]:
        run = self.sent(unit)
        return self.happens(
            e.UnitFailed,
            unit=unit,
            attempt=run.attempt,
            worker=run.worker,
            kind=kind,
            message=message,
            lost=lost,
        )

    def is_stored(self, unit: Unit) -> list[e.Command]:
        return self.happens(e.OutputStored, unit=unit, attempt=self.attempt(unit))

    def is_loaded(self, unit: Unit) -> list[e.Command]:
        return self.happens(e.OutputLoaded, unit=unit)

    def passes(self, seconds: float) -> list[e.Command]:
        self.now_s += seconds
        return self.happens(e.TimePassed)

    def ready(self) -> Bare:
        """Started, with all workers joined."""
        self.start()
        for worker in list(self.state.workers):
            self.joins(worker)
        return self

    def computes(self, *units: Unit) -> Bare:
        for unit in units:
            self.finishes(unit)
        return self


def only(commands: list[e.Command], kind: type[Any]) -> list[Any]:
    return [command for command in commands if isinstance(command, kind)]
