"""How visible window borders are: the frame difference across a border against the difference
at places inside windows. 1.0 means invisible."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

#: Interior places on either side of a border that it is compared with.
NEIGHBOURS = 8

#: A border is plain to see if the change across it is so much more than usual.
PLAIN_SEAM = 2.0

#: So much more than usual, and at least so many levels of 255, is taken as a cut between shots.
CUT_RATIO = 8.0
CUT_LEVELS = 8.0

#: In levels of 255. Differences below it count as this much: nobody sees them, and a film that
#: stands still has ratios of 1.0, not of rounding errors.
LEAST_DIFFERENCE = 0.01


class SeamMeter:
    """Takes the film frame by frame and keeps one number per frame: constant memory.

    ``borders`` are dicts with ``shot``, ``window``, ``border`` (its kind), ``begins``, the coarsest
    stage of which a frame begins there, and ``frame``, the pixel frame right after it.
    ``interiors`` holds, by shot and ``begins``, sorted places of the same kind that are no border:
    where one latent frame ends and the next begins.
    """

    def __init__(
        self,
        borders: Sequence[dict[str, Any]],
        interiors: Mapping[tuple[int, int], Sequence[int]],
    ) -> None:
        self._borders = borders
        self._interiors = interiors
        self._differences = [0.0]
        self._last: np.ndarray | None = None

    def add(self, frame: np.ndarray) -> None:
        """The next frame, uint8 [H, W, 3]."""
        now = frame.astype(np.int16)
        if self._last is not None:
            self._differences.append(float(np.abs(now - self._last).mean()))
        self._last = now

    def ratios(self) -> list[dict[str, Any]]:
        """Per border its dict, with its ratio to places near by that begin a frame of the same
        stage, or to any where all of those are borders; none for a shot without places inside
        windows."""
        rows = []
        for border in self._borders:
            alike = self._interiors.get((border["shot"], border["begins"])) or self._inside(border)
            near = nearest(alike, border["frame"], 2 * NEIGHBOURS)
            if near:
                usual = np.median([self._difference(place) for place in near])
                across = self._difference(border["frame"])
                rows.append(border | {"ratio": across / float(usual)})
        return rows

    def _inside(self, border: dict[str, Any]) -> list[int]:
        """All places inside windows of a border's shot."""
        mine = [places for key, places in self._interiors.items() if key[0] == border["shot"]]
        return sorted(place for places in mine for place in places)

    def beat(self, shot: int) -> float | None:
        """How much more a shot of a pyramid changes where frames of its first stage begin than
        where only those of its last do, inside windows: 1 is even. None of other shots."""
        stages = sorted(begins for number, begins in self._interiors if number == shot)
        if len(stages) < 2 or stages[0] > 0:
            return None
        first, last = (
            median(self._difference(place) for place in self._interiors[shot, stage])
            for stage in (stages[0], stages[-1])
        )
        return first / last

    def changes(self) -> list[float]:
        """Of every frame from the second on, its change over the usual one of the places near by,
        wherever windows meet."""
        every = range(1, len(self._differences))
        found = []
        for frame in every:
            near = nearest(every, frame, 2 * NEIGHBOURS + 1)[1:]  # the first is itself
            usual = np.median([self._difference(place) for place in near]) if near else np.nan
            found.append(self._difference(frame) / float(usual) if near else 1.0)
        return found

    def cuts(self) -> list[int]:
        """The frames at which a cut seems to be: where the film changes far more than near by, and
        at no border that is known. Two close together are a flash, and none."""
        borders = {border["frame"] for border in self._borders}
        jumps = [
            frame
            for frame, ratio in enumerate(self.changes(), 1)
            if ratio >= CUT_RATIO and self._difference(frame) >= CUT_LEVELS
        ]
        close = {n for a, b in pairwise(jumps) if b - a <= NEIGHBOURS for n in (a, b)}
        return [frame for frame in jumps if frame not in borders | close]

    def _difference(self, frame: int) -> float:
        """Between a frame and the one before; a film that is too short is still from there on."""
        known = self._differences[frame] if frame < len(self._differences) else 0.0
        return max(known, LEAST_DIFFERENCE)


def nearest(places: Sequence[int], place: int, count: int) -> Sequence[int]:
    """The ``count`` of the sorted ``places`` that are nearest to ``place``."""
    middle = bisect_left(places, place)
    around = places[max(0, middle - count) : middle + count]
    return sorted(around, key=lambda each: abs(each - place))[:count]
