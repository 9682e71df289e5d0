"""Sweeps of settings compared at equal fidelity. Pure: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

#: A setting of a sweep: how many times faster, and how near to the full render in dB.
Point = tuple[float, float]

LEVELS_DB = (50.0, 40.0, 36.0, 32.0, 28.0)


def front(points: Iterable[Point]) -> list[Point]:
    """The settings of a sweep that none of its others beats on both axes, slowest first: what a
    person would pick from. Along it speed rises and fidelity falls."""
    kept: list[Point] = []
    for speed, fidelity_db in sorted(points, reverse=True):
        if not kept or fidelity_db > kept[-1][1]:
            kept.append((speed, fidelity_db))
    return kept[::-1]


def speed_at(points: Iterable[Point], fidelity_db: float) -> float | None:
    """How fast a sweep is at a fidelity, on straight lines between its own settings. None outside
    of what was swept: nothing is said of settings that nobody ran."""
    for (slow, high_db), (fast, low_db) in pairwise(front(points)):
        if low_db <= fidelity_db <= high_db:
            return slow + (fast - slow) * (high_db - fidelity_db) / (high_db - low_db)
    return None


def at_levels(
    sweeps: Mapping[str, Sequence[Point]], levels_db: Sequence[float] = LEVELS_DB
) -> dict[str, dict[float, float | None]]:
    """The speed of each sweep at each fidelity."""
    return {
        kind: {level_db: speed_at(points, level_db) for level_db in levels_db}
        for kind, points in sweeps.items()
    }


def as_table(table: Mapping[str, Mapping[float, float | None]]) -> str:
    """For people; the fastest at each fidelity has a star."""
    levels_db = list(next(iter(table.values())))
    best = {
        level_db: max((row[level_db] for row in table.values() if row[level_db]), default=None)
        for level_db in levels_db
    }
    width = max(map(len, table))
    lines = [" " * width + "".join(f"{level_db:>9.0f} dB" for level_db in levels_db)]
    for kind, row in table.items():
        cells = "".join(_cell(row[level_db], best[level_db]) for level_db in levels_db)
        lines.append(f"{kind:<{width}}{cells}")
    return "\n".join(lines)


def _cell(speed: float | None, best: float | None) -> str:
    if speed is None:
        return f"{'–':>12}"
    return f"{speed:>10.2f}x{'*' if speed == best else ' '}"
