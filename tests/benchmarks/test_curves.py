"""Comparing at equal fidelity."""

from __future__ import annotations

import pytest

from benchmarks.curves import as_table, at_levels, front, speed_at


def test_a_setting_that_another_beats_on_both_axes_is_not_on_the_front() -> None:
    points = [(2.0, 30.0), (1.5, 29.0), (1.0, 40.0), (1.8, 30.0), (3.0, 20.0)]
    assert front(points) == [(1.0, 40.0), (2.0, 30.0), (3.0, 20.0)]


def test_between_two_settings_speed_lies_on_their_line() -> None:
    assert speed_at([(1.0, 40.0), (2.0, 30.0), (4.0, 20.0)], 25.0) == pytest.approx(3.0)
    assert speed_at([(1.0, 40.0), (2.0, 30.0)], 37.5) == pytest.approx(1.25)


def test_a_setting_that_was_swept_has_its_own_speed() -> None:
    points = [(1.0, 40.0), (2.0, 30.0), (4.0, 20.0)]
    assert [speed_at(points, db) for db in (40.0, 30.0, 20.0)] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("level_db", [40.1, 19.9])
def test_nothing_is_said_outside_of_what_was_swept(level_db: float) -> None:
    assert speed_at([(1.0, 40.0), (4.0, 20.0)], level_db) is None


def test_one_setting_is_no_line() -> None:
    assert speed_at([(2.0, 30.0)], 30.0) is None


def test_the_table_marks_the_fastest() -> None:
    sweeps = {"slow": [(1.0, 45.0), (1.5, 35.0)], "quick": [(2.0, 41.0), (3.0, 31.0)]}
    table = at_levels(sweeps, [40.0, 32.0])
    assert table["slow"] == {40.0: pytest.approx(1.25), 32.0: None}
    first, second = as_table(table).splitlines()[1:]
    assert "1.25x " in first and "*" not in first and "–" in first
    assert "2.10x*" in second and "2.90x*" in second
