"""Who is taken for silent, of those that are asked for what a tile remembers."""

from __future__ import annotations

from orchestrator.handing import HandOvers


def test_each_answer_gives_a_worker_its_time_anew() -> None:
    handing = HandOvers(30.0)
    for number in range(3):
        handing.asked(number, "w1", 0.0)
    handing.answered(0, 25.0)
    assert handing.silent(50.0) is None, "it hands over one after the other"
    assert handing.silent(56.0) == "w1"
    assert handing.silent(99.0) is None, "it is given up"


def test_who_answers_all_is_not_waited_for() -> None:
    handing = HandOvers(30.0)
    handing.asked("a", "w1", 0.0)
    handing.answered("a", 1.0)
    assert handing.silent(1000.0) is None
    handing.asked("b", "w1", 1000.0)
    assert handing.silent(1020.0) is None, "its time begins when it is asked again"


def test_others_may_have_waited_for_the_one_that_is_given_up() -> None:
    handing = HandOvers(30.0)
    handing.asked("a", "w1", 0.0)
    handing.asked("b", "w2", 1.0)
    assert handing.silent(32.0) == "w1"
    assert handing.silent(33.0) is None and handing.silent(61.0) is None
    assert handing.silent(63.0) == "w2"


def test_an_answer_after_the_end_is_ignored() -> None:
    HandOvers(30.0).answered("late", 5.0)
