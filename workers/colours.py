"""How a film's colours change: mean and spread of its windows in CIE Lab, and their slopes.

Lab (D65, 2 degrees) is a space in which distances are about what a person sees: a difference of
2 is just seen side by side. L is 0 (black) to 100 (white), a runs from green to red, b from blue
to yellow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import linregress
from skimage.color import rgb2lab

AXES = ("L", "a", "b")


class ColourMeter:
    """Takes a film frame by frame and keeps six numbers per frame."""

    def __init__(self) -> None:
        self._mean_F3: list[np.ndarray] = []
        self._spread_F3: list[np.ndarray] = []

    @property
    def frames(self) -> int:
        """How many have come."""
        return len(self._mean_F3)

    def add(self, frame: np.ndarray) -> None:
        """The next frame, uint8 [H, W, 3]."""
        lab_P3 = rgb2lab(frame).reshape(-1, 3)
        self._mean_F3.append(lab_P3.mean(axis=0))
        self._spread_F3.append(lab_P3.std(axis=0))

    def drift(self, windows: Sequence[tuple[int, int]], fps: float) -> dict[str, Any]:
        """``windows`` are pixel frames ``[start, stop)`` of one shot. Per axis of Lab the straight
        line through the windows' means, and through their spreads (deviations over a frame's
        pixels), as change per minute with its standard error, 0 where there is one window; how
        much the last window's mean is above the first's; and how far it lies from it."""
        middles_min = [(start + stop) / 2 / fps / 60 for start, stop in windows]
        mean_W3 = self._over(self._mean_F3, windows)
        spread_W3 = self._over(self._spread_F3, windows)
        return {
            "windows": [
                {"start": start, "stop": stop, "mean": mean.tolist(), "spread": spread.tolist()}
                for (start, stop), mean, spread in zip(windows, mean_W3, spread_W3, strict=True)
            ],
            "mean_per_minute": _slopes(middles_min, mean_W3),
            "spread_per_minute": _slopes(middles_min, spread_W3),
            "mean_change": dict(zip(AXES, (mean_W3[-1] - mean_W3[0]).tolist(), strict=True)),
            "first_to_last": float(np.linalg.norm(mean_W3[-1] - mean_W3[0])),
            "farthest_from_first": float(np.linalg.norm(mean_W3 - mean_W3[0], axis=1).max()),
        }

    @staticmethod
    def _over(value_F3: list[np.ndarray], windows: Sequence[tuple[int, int]]) -> np.ndarray:
        return np.stack([np.mean(value_F3[start:stop], axis=0) for start, stop in windows])


def _slopes(middles_min: Sequence[float], value_W3: np.ndarray) -> dict[str, dict[str, float]]:
    if len(middles_min) == 1:
        return {axis: {"slope": 0.0, "error": 0.0} for axis in AXES}
    lines = {axis: linregress(middles_min, value_W3[:, n]) for n, axis in enumerate(AXES)}
    return {
        axis: {"slope": float(line.slope), "error": float(line.stderr)}
        for axis, line in lines.items()
    }
