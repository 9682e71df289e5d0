"""Which worker takes a unit."""

from __future__ import annotations

from orchestrator.placement import HOME_ADVANTAGE, Seat, choose_seat, fits, unequal


def seat(worker: str, queued: int = 0, step_s: float = 1.0) -> Seat:
    return Seat(worker=worker, queued=queued, step_s=step_s)


def test_nobody_free_means_wait() -> None:
    assert choose_seat([], preferred="a") is None


def test_the_shortest_queue_among_equals() -> None:
    assert choose_seat([seat("a", queued=1), seat("b")], preferred=None) == "b"


def test_names_break_ties() -> None:
    assert choose_seat([seat("b"), seat("a")], preferred=None) == "a"


def test_a_fast_second_place_beats_a_slow_first() -> None:
    seats = [seat("slow", step_s=5.0), seat("fast", queued=1, step_s=1.0)]
    assert choose_seat(seats, preferred=None) == "fast"


def test_the_holder_of_the_state_goes_first_unless_clearly_slower() -> None:
    close = 1.0 / (1 - HOME_ADVANTAGE) - 0.01
    far = close + 0.02
    assert choose_seat([seat("a"), seat("b", step_s=close)], preferred="b") == "b"
    assert choose_seat([seat("a"), seat("b", step_s=far)], preferred="b") == "a"


def test_an_unmeasured_worker_counts_as_average() -> None:
    seats = [seat("slow", step_s=3.0), seat("fast", step_s=1.0), seat("new", step_s=0.0)]
    assert choose_seat(seats, preferred=None) == "fast"
    assert choose_seat([seats[0], seats[2]], preferred="new") == "new"


def test_a_busy_fast_worker_is_worth_waiting_for() -> None:
    seats = [seat("fast", queued=2, step_s=1.0), seat("slow", step_s=8.0)]
    assert choose_seat(seats, preferred=None) == "fast"
    assert choose_seat([seat("fast", queued=9, step_s=1.0), seats[1]], preferred=None) == "slow"


def test_only_clearly_slower_workers_are_unequal() -> None:
    assert not unequal([seat("a", step_s=1.0), seat("b", step_s=1.4), seat("new", step_s=0.0)])
    assert unequal([seat("a", step_s=1.0), seat("b", step_s=1.6)])
    assert not unequal([])


def test_memory() -> None:
    assert fits(10, 10)
    assert not fits(9, 10)
