"""Which shape a body has: its mask against drawings of the world's shapes.

Shapes of arrays: F frames, H rows, W columns.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from training import world

Mask = NDArray[np.bool_]


def whole_shape(mask_FHW: Mask) -> str:
    """The shape whose drawing, at the best size, angle and place, overlaps the body's best."""
    scores = dict.fromkeys(world.SHAPES, 0.0)
    for mask_HW in _some(mask_FHW):
        for shape in world.SHAPES:
            scores[shape] += _best_overlap(mask_HW, shape)
    return max(scores, key=lambda shape: scores[shape])


def _some(mask_FHW: Mask) -> Mask:
    return mask_FHW[:: max(1, len(mask_FHW) // 5)]


def cut_shape(mask_FHW: Mask, open_HW: NDArray[np.float64]) -> tuple[str, float]:
    """Shape and radius of a body that a border or the pillar always cuts: those of the world's
    drawings whose part in the open, at the best place, overlaps it best. What is cut has left or
    hidden, and so neither turns nor pulses."""
    scores: Counter[tuple[str, float]] = Counter()
    for mask_HW, (shape, radius) in itertools.product(
        _some(mask_FHW), itertools.product(world.SHAPES, world.RADII.values())
    ):
        drawn = _drawing(shape, radius * len(mask_HW))
        common = signal.fftconvolve(mask_HW.astype(np.float64), drawn[::-1, ::-1])
        joint = signal.fftconvolve(open_HW, drawn[::-1, ::-1]) + mask_HW.sum() - common
        scores[shape, radius] += float((common / joint).max())
    return max(scores, key=lambda each: scores[each])


def _drawing(shape: str, radius_px: float) -> NDArray[np.float64]:
    """A shape as the world draws it, 1 inside, in a square that holds it."""
    side_px = int(np.ceil(1.3 * radius_px))
    grid = np.arange(-side_px, side_px + 1, dtype=np.float32) / np.float32(radius_px)
    return (world.signed_distance(shape, *np.meshgrid(grid, grid)) < 0).astype(np.float64)


def _best_overlap(mask_HW: Mask, shape: str) -> float:
    """The best share of the common area in the joint one: the drawing's middle of area lies on the
    mask's, and its area is the mask's."""
    area, middle, turns = outline(shape)
    rows, columns = np.nonzero(mask_HW)
    radius_px = np.sqrt(len(rows) / area)
    # Neither reaches beyond this box: a drawing's corners are at most 1.5 radii from its middle.
    top, left, bottom, right = _box(rows, columns, 1.5 * radius_px)
    mask_HW = mask_HW[top:bottom, left:right]
    u, v = np.meshgrid(np.arange(left, left + mask_HW.shape[1]), np.arange(top, top + len(mask_HW)))
    u, v = (u - columns.mean()) / radius_px, (v - rows.mean()) / radius_px
    best = 0.0
    for angle in np.arange(turns) * 2 * np.pi / turns / _SYMMETRY[shape]:
        cos, sin = np.cos(angle), np.sin(angle)
        p, q = cos * u + sin * v + middle[0], cos * v - sin * u + middle[1]
        drawn_HW = _is_inside(shape, p, q)
        best = max(best, float((drawn_HW & mask_HW).sum() / (drawn_HW | mask_HW).sum()))
    return best


def _is_inside(shape: str, u: NDArray[np.float64], v: NDArray[np.float64]) -> Mask:
    """Whether places lie in a shape of radius 1, to a hundredth of it."""
    table = _table(shape)
    middle = len(table) // 2
    row, column = (np.clip(np.rint(100 * at) + middle, 0, 2 * middle).astype(int) for at in (v, u))
    return np.asarray(table[row, column])


@functools.cache
def _table(shape: str) -> Mask:
    """What is inside, in steps of a hundredth of the radius from -1.3 to 1.3."""
    side = np.arange(-130, 131, dtype=np.float32) / 100
    return np.asarray(world.signed_distance(shape, *np.meshgrid(side, side)) < 0)


def _box(
    rows: NDArray[np.int64], columns: NDArray[np.int64], reach_px: float
) -> tuple[int, int, int, int]:
    """First row and column, and the ends, of what lies within reach of pixels' middle and of all of
    them; not before the frame."""
    first = [min(each.min(), each.mean() - reach_px) for each in (rows, columns)]
    last = [max(each.max(), each.mean() + reach_px) for each in (rows, columns)]
    top, left = (max(0, int(place)) for place in first)
    bottom, right = (int(place) + 2 for place in last)
    return top, left, bottom, right


#: After which share of a full turn a shape looks the same.
_SYMMETRY = {"circle": 1, "ring": 1, "square": 4, "triangle": 3, "star": 5, "cross": 4, "heart": 1}


@functools.cache
def outline(shape: str) -> tuple[float, tuple[float, float], int]:
    """Of a shape of radius 1: its area, the middle of it, and how many angles tell it."""
    inside = _table(shape)
    v, u = (at / 100 - 1.3 for at in np.nonzero(inside))
    turns = 1 if shape in world.ROUND_SHAPES else 24 // _SYMMETRY[shape]
    return inside.sum() / 100**2, (float(u.mean()), float(v.mean())), turns


@functools.cache
def disc(shape: str) -> float:
    """The radius of a disc that covers as much as a shape of radius 1 without its holes."""
    return float(np.sqrt(ndimage.binary_fill_holes(_table(shape)).sum() / 100**2 / np.pi))
