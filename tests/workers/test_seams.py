"""The seam ratio on films whose seams are known."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from workers.seams import NEIGHBOURS, SeamMeter, nearest

#: A film of one shot: places every four frames, three of them where windows meet.
FRAMES, BORDERS = 121, (33, 61, 89)
INTERIOR = [place for place in range(5, FRAMES, 4) if place not in BORDERS]
BORDER = {"shot": 0, "window": 1, "border": "enters", "begins": 0}


def moving(frames: int = FRAMES) -> np.ndarray:
    """A ramp that moves by the same amount in every frame."""
    x = np.arange(48)[None, None, :, None]
    t = np.arange(frames)[:, None, None, None]
    return np.broadcast_to(np.abs((2 * x + 3 * t) % 200 - 100), (frames, 32, 48, 3)).astype(
        np.uint8
    )


def still(frames: int = FRAMES) -> np.ndarray:
    return np.full((frames, 32, 48, 3), 100, np.uint8)


def measured(film: np.ndarray, *, shots: int = 1) -> list[float]:
    return [row["ratio"] for row in rows(film, shots=shots)]


def rows(film: np.ndarray, *, shots: int = 1) -> list[dict[str, Any]]:
    borders = [
        {**BORDER, "shot": shot, "window": number, "frame": shot * FRAMES + frame}
        for shot in range(shots)
        for number, frame in enumerate(BORDERS)
    ]
    interiors = {(shot, 0): [shot * FRAMES + place for place in INTERIOR] for shot in range(shots)}
    meter = SeamMeter(borders, interiors)
    for frame in film:
        meter.add(frame)
    return meter.ratios()


def test_a_film_without_seams() -> None:
    assert measured(moving()) == pytest.approx([1.0, 1.0, 1.0], rel=0.1)


def test_a_jump_shows_where_it_is_and_nowhere_else() -> None:
    film = moving()
    film[BORDERS[1] :] += 60
    before, at, after = measured(film)
    assert at > 10
    assert (before, after) == pytest.approx((1.0, 1.0), rel=0.1)


def test_a_jump_inside_a_window_is_not_the_borders() -> None:
    film = moving()
    film[INTERIOR[3] :] += 60
    assert measured(film) == pytest.approx([1.0, 1.0, 1.0], rel=0.1), "one of sixteen places"


def test_a_film_that_stands_still() -> None:
    """Nothing moves, so nothing is seen; a jump in it is seen all the more, and is a number."""
    assert measured(still()) == [1.0, 1.0, 1.0]
    film = still()
    film[BORDERS[1] :] += 1
    before, at, after = measured(film)
    assert (before, after) == (1.0, 1.0)
    assert 10 < at < 1e6 and np.isfinite(at)


def test_what_nobody_sees_counts_as_nothing() -> None:
    film = still()
    film[BORDERS[0] :, 0, 0, 0] += 1  # a level in one of 4,608 values
    assert measured(film)[0] == 1.0


def test_a_border_is_compared_within_its_shot() -> None:
    """The second shot moves; the cut between the two is no border."""
    film = np.concatenate([still(), moving()])
    film[FRAMES + BORDERS[2] :] += 60
    found = measured(film, shots=2)
    assert found[:5] == pytest.approx([1.0] * 5, rel=0.1)
    assert found[5] > 10


def test_every_frames_change_over_its_neighbours() -> None:
    film = moving()
    film[BORDERS[1] :] += 60
    meter = SeamMeter([], {})
    for frame in film:
        meter.add(frame)
    changes = meter.changes()
    assert len(changes) == FRAMES - 1
    assert changes.pop(BORDERS[1] - 1) > 10
    assert changes == pytest.approx([1.0] * (FRAMES - 2), rel=0.2)
    short = SeamMeter([], {})
    short.add(film[0])
    assert short.changes() == []
    short.add(film[1])
    assert short.changes() == [1.0], "there is nothing to compare with"


def test_rows_name_the_border() -> None:
    assert rows(moving())[1] == {
        "shot": 0,
        "window": 1,
        "border": "enters",
        "begins": 0,
        "frame": BORDERS[1],
        "ratio": pytest.approx(1.0, rel=0.1),
    }


def test_a_film_that_is_too_short() -> None:
    assert np.isfinite(measured(moving(40))).all() and np.isfinite(measured(moving(0))).all()


def test_a_shot_without_places_inside_windows() -> None:
    meter = SeamMeter([BORDER | {"frame": 5}], {})
    meter.add(still(1)[0])
    assert meter.ratios() == []


def pyramid(film: np.ndarray) -> SeamMeter:
    """As if frames of a first stage began at every second place."""
    begins = {place: n % 2 for n, place in enumerate(range(5, FRAMES, 4))}
    inside = {(0, stage): [p for p in INTERIOR if begins[p] == stage] for stage in (0, 1)}
    meter = SeamMeter([BORDER | {"begins": begins[f], "frame": f} for f in BORDERS], inside)
    for frame in film:
        meter.add(frame)
    return meter


def test_a_pyramids_borders_are_compared_with_places_that_beat_alike() -> None:
    """What changes wherever a coarse frame begins is no fault of the window that begins there."""
    film = np.full((FRAMES, 32, 48, 3), 100, np.uint8)
    level = np.cumsum([3 if n % 8 == 5 else n % 8 == 1 for n in range(FRAMES)])
    film += level.astype(np.uint8)[:, None, None, None]
    beating = pyramid(film)
    assert beating.beat(0) == 3.0
    assert [row["ratio"] for row in beating.ratios()] == [1.0, 1.0, 1.0]
    assert {place % 8 for place in BORDERS} == {1, 5}, "borders of both kinds"
    assert sorted(measured(film)) == [0.5, 0.5, 1.5], "beside places of any kind"
    film[BORDERS[1] :] += 40
    assert pyramid(film).ratios()[1]["ratio"] > 10


def test_a_border_is_never_left_out() -> None:
    """Where all places at which coarse frames begin are borders, it is compared with the others."""
    inside = {(0, 1): INTERIOR}
    meter = SeamMeter([BORDER | {"begins": 0, "frame": BORDERS[0]}], inside)
    for frame in moving():
        meter.add(frame)
    assert [row["ratio"] for row in meter.ratios()] == pytest.approx([1.0], rel=0.1)
    assert meter.beat(0) is None, "no frame of the first stage begins inside a window"


def test_a_film_without_a_pyramid_has_no_beat() -> None:
    assert pyramid(still()).beat(0) == 1.0
    assert SeamMeter([], {(0, 0): [5, 9]}).beat(0) is None and pyramid(still()).beat(1) is None


def test_the_nearest_places() -> None:
    """As if all places were sorted by their distance."""
    dice = random.Random(3)
    for _ in range(200):
        places = sorted(dice.sample(range(300), dice.randint(0, 60)))
        place, count = dice.randrange(-5, 305), dice.randint(1, 2 * NEIGHBOURS)
        distances = sorted(abs(each - place) for each in places)[:count]
        assert [abs(each - place) for each in nearest(places, place, count)] == distances
