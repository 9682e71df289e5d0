"""What the books say of one unit and one tile, and which changes of a unit's status are legal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Literal

from jobs.units import Unit

Tile = tuple[int, int, int]  # shot, stage, window

Status = Literal["new", "waiting", "ready", "running", "loading", "held", "released"]

#: Every legal change of a unit's status.
TRANSITIONS: frozenset[tuple[Status, Status]] = frozenset(
    {
        ("new", "waiting"),  # needed, and must be computed
        ("new", "loading"),  # needed, and durable
        ("waiting", "ready"),  # the last missing input arrived
        ("ready", "waiting"),  # an input was lost
        ("ready", "running"),
        ("running", "held"),
        ("running", "waiting"),  # failed or its worker was lost, and so was an input
        ("running", "ready"),  # failed, or its worker was lost
        ("running", "loading"),  # the same, and an earlier attempt turned out to be durable
        ("running", "released"),  # failed, or its worker was lost, and nobody needs it
        ("loading", "held"),
        ("loading", "waiting"),  # the durable copy is damaged
        ("loading", "released"),  # the durable copy is damaged, and nobody needs it
        ("held", "loading"),  # lost, and durable
        ("held", "waiting"),  # lost
        ("held", "released"),
        ("waiting", "released"),  # nobody needs it any more
        ("ready", "released"),
        ("waiting", "loading"),  # a write that had been given up succeeded after all
        ("ready", "loading"),
    }
)


@dataclass(slots=True)
class UnitRecord:
    unit: Unit
    inputs: tuple[Unit, ...]
    status: Status = "new"
    attempt: int = 0
    worker: str | None = None
    reads: tuple[tuple[Unit, int], ...] = ()  # the outputs that it was sent with
    missing: set[Unit] = field(default_factory=set)
    consumers: set[Unit] = field(default_factory=set)
    writing: bool = False
    remembers: bool = False  # its output holds much for its tile's next step alone
    forgotten: bool = False  # and no longer, since that step has run
    lies_with: str | None = None  # the worker that has it, if no other place does
    # Failures, by blame. They outlive attempts, but not the need for the unit.
    faults: list[str] = field(default_factory=list)
    deaths: int = 0
    died_s: float = float("-inf")  # when the last of them was
    cluster_failures: int = 0
    write_failures: int = 0
    avoid: set[str] = field(default_factory=set)


@dataclass(slots=True)
class TileLine:
    """The durable states of one tile, those that will be, and what is kept of it in memory."""

    stored: set[int] = field(default_factory=set)
    unwritten: set[int] = field(default_factory=set)  # wanted, and to be stored
    retained: set[int] = field(default_factory=set)

    @property
    def durable_step(self) -> int:
        """The last stored step before any that is still to be stored; 0 if there is none."""
        end = min(self.unwritten, default=None)
        return max((step for step in self.stored if end is None or step < end), default=0)


class IllegalTransition(AssertionError):
    """A bug of ours: a unit changed its status in a way that no rule allows."""


class Story:
    """What happened to the units of late. The one place where a status changes."""

    def __init__(self) -> None:
        self._changes: deque[tuple[float, Unit, Status, Status, str]] = deque(maxlen=2000)

    def change(self, record: UnitRecord, status: Status, reason: str, at_s: float) -> None:
        """Raises IllegalTransition, with what happened to the unit."""
        change = (record.status, status)
        if record.status == status == "waiting":
            return
        if change not in TRANSITIONS:
            raise IllegalTransition(f"{record.unit}: {change} ({reason})\n{self.tell(record.unit)}")
        self._changes.append((at_s, record.unit, record.status, status, reason))
        record.status = status

    def tell(self, unit: Unit) -> str:
        """What happened to a unit, line by line."""
        return "\n".join(
            f"{at_s:10.3f} {old} -> {new}: {reason}"
            for at_s, name, old, new, reason in self._changes
            if name == unit
        )


def tile_of(unit: Unit) -> Tile:
    return unit.shot, unit.stage, unit.index


def step_of(tile: Tile, step: int) -> Unit:
    shot, stage, window = tile
    return Unit("step", shot, stage, window, 0, step)


def before(unit: Unit, records: Mapping[Unit, UnitRecord]) -> UnitRecord | None:
    """The record of the same tile's step before, if there is one."""
    if unit.kind != "step" or unit.step == 0:
        return None
    return records.get(step_of(tile_of(unit), unit.step - 1))


def forgetful_before(
    unit: Unit, records: Mapping[Unit, UnitRecord], durable: Container[Unit]
) -> list[Unit]:
    """The held outputs of a tile that have forgotten what their next step reads, from the one
    before a unit back to one that is durable, which has it."""
    found: list[Unit] = []
    record = before(unit, records)
    while record is not None and record.status == "held" and record.forgotten:
        found.append(record.unit)
        if record.unit in durable:
            break
        record = before(record.unit, records)
    return found


def check(records: Mapping[Unit, UnitRecord], is_available: Callable[[UnitRecord], bool]) -> None:
    """Assert every invariant that the records of a render's units must keep."""
    for unit, record in records.items():
        if record.status in ("waiting", "ready", "running"):
            for name in record.inputs:
                assert unit in records[name].consumers, (unit, name)
        if record.status in ("waiting", "ready"):
            missing = {n for n in record.inputs if not is_available(records[n])}
            assert missing == record.missing, (unit, missing, record.missing)
            assert bool(missing) == (record.status == "waiting"), unit
        if record.status == "held" and record.remembers and not record.writing:
            after = step_of(tile_of(unit), unit.step + 1)
            assert record.forgotten == (after not in record.consumers), unit
        for consumer in record.consumers:
            assert records[consumer].status in ("waiting", "ready", "running"), unit
