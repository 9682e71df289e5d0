"""Which worker takes a unit. Pure: functions from a frozen snapshot to a decision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A worker as placement sees it."""

    worker: str
    queued: int  # units sent and not finished
    step_s: float  # seconds that it takes per step; 0 if not measured yet


#: A worker that holds a tile's previous state takes the tile's next unit unless another would
#: finish it sooner by more than this share: moving the state costs time, too.
HOME_ADVANTAGE = 0.15


#: Workers whose speeds differ by less than this are equals: none of them is worth waiting for.
EQUAL_SPEED = 1.5


def unequal(seats: Iterable[Seat]) -> bool:
    """Whether some worker is so much slower that a unit may better wait for another."""
    measured = [seat.step_s for seat in seats if seat.step_s > 0]
    return bool(measured) and max(measured) > EQUAL_SPEED * min(measured)


def choose_seat(seats: Iterable[Seat], *, preferred: str | None) -> str | None:
    """The worker that would finish the next unit first, or None if there is none.

    Several units are sent to a worker at a time, so that it need not wait for the coordinator
    between two. On unequal cards a fast worker's second place may beat a slow worker's first, and
    a fast worker without a free place may be worth waiting for: ``seats`` may hold such, with all
    that waits for them counted as queued. ``preferred`` holds the unit's previous state.
    """
    free = list(seats)
    measured = [seat.step_s for seat in free if seat.step_s > 0]
    guess = sum(measured) / len(measured) if measured else 1.0

    def rank(seat: Seat) -> tuple[float, str]:
        finish_s = (seat.queued + 1) * (seat.step_s or guess)
        home = seat.worker == preferred
        return finish_s * (1 - HOME_ADVANTAGE if home else 1), seat.worker

    return min(free, key=rank).worker if free else None


def fits(free_bytes: int, needed_bytes: int) -> bool:
    """Whether a worker's measured free memory holds one tile."""
    return free_bytes >= needed_bytes
