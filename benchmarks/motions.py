"""What a body does: its silhouette over a clip against the paths on which the world would move it.

Shapes: F frames, H rows, W columns, G rows and columns of a coarse grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training import world
from training.world import Background, Body

Mask = NDArray[np.bool_]

LEAVING = ("left", "right", "up", "down", "hide")
#: Motions in which a body's place and size say nothing of the tempo.
TIMELESS = ("still", "spin")
GRID = 24
PHASES = 24
#: What is all but still is still: other motions can fit its noise.
STILL_FAVOUR = 1.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How well a body's clip fits a motion at its best tempo, phase and place.

    ``overlap`` is the common part of silhouette and discs in their joint one, over the clip;
    ``apart`` the mean distance between their centres, as a share of the frame's side.
    """

    overlap: float
    apart: float
    tempo: str


def fits(
    mask_FHW: Mask, whole_F: Mask, radius: float, disc: float, background: Background, fps: float
) -> dict[str, Fit]:
    """By motion, how well it explains a silhouette that is seen whole in the frames ``whole_F``.
    ``radius`` is the body's, a share of the frame's side; ``disc`` that of a disc with the area of
    a body whose radius is 1."""
    side_px = mask_FHW.shape[1]
    cell_px = side_px // GRID
    seen_FGG = mask_FHW.reshape(-1, GRID, cell_px, GRID, cell_px).mean(axis=(2, 4))
    times_s = world.frame_times(len(mask_FHW), fps)
    best: dict[str, tuple[float, Body, float]] = {}
    for body, its_radius in _candidates(_home(mask_FHW[whole_F]), radius):
        drawn_FGG = _discs(body, times_s, disc * its_radius, background)
        common = np.minimum(seen_FGG, drawn_FGG).sum()
        overlap = float(common / (seen_FGG.sum() + drawn_FGG.sum() - common))
        if body.motion not in best or overlap > best[body.motion][0]:
            best[body.motion] = overlap, body, its_radius
    found = {}
    for motion, (overlap, body, its_radius) in best.items():
        drawn_FGG = _discs(body, times_s, disc * its_radius, background)
        apart = _apart(seen_FGG, drawn_FGG, body, times_s)
        found[motion] = Fit(overlap=overlap, apart=apart, tempo=body.tempo)
    return found | {"spin": found["still"]}


def likeliest(found: dict[str, Fit], background: Background) -> str:
    """The motion that fits best; "still" for a body that stays and may also spin. Behind a pillar
    something hides, or stays, and nothing hides where there is none."""
    scores = {
        motion: fit.overlap * (STILL_FAVOUR if motion == "still" else 1)
        for motion, fit in found.items()
        if motion != "spin" and (motion == "still" or (motion == "hide") == bool(background.pillar))
    }
    return max(scores, key=lambda motion: scores[motion])


def _home(mask_FHW: Mask) -> tuple[float, float]:
    """The median of the frames' middles of area."""
    side = mask_FHW.shape[1]
    grid, area_F = (np.arange(side) + 0.5) / side, mask_FHW.sum(axis=(1, 2))
    x, y = (
        float(np.median((mask_FHW.sum(axis=axis) * grid).sum(axis=1) / area_F)) for axis in (1, 2)
    )
    return x, y


def nearest_size(radius: float) -> str:
    """The size of the world that is nearest to a radius."""
    return min(world.RADII, key=lambda name: abs(world.RADII[name] - radius))


def _candidates(home: tuple[float, float], radius: float) -> Iterator[tuple[Body, float]]:
    """A still body and every moving one, and what radius it has; one that pulses has seldom its
    usual one."""
    size = nearest_size(radius)
    yield Body(shape="circle", colour="red", size=size, start=home), radius
    for motion in world.MOTIONS:
        if motion in TIMELESS:
            continue
        starts = [(x, 0.5) for x in np.arange(12) / 12] if motion == "zigzag" else [home]
        radii = [radius, *world.RADII.values()] if motion == "pulse" else [radius]
        for tempo, phase, start, its_radius in itertools.product(
            world.TEMPOS, np.arange(PHASES) / PHASES, starts, radii
        ):
            yield Body(
                shape="circle", colour="red", size=size, motion=motion, tempo=tempo,
                start=start, phase=float(phase),
            ), its_radius  # fmt: skip


def _discs(
    body: Body, times_s: world.Floats, radius: float, background: Background
) -> world.Floats:
    """How much of each cell a disc covers, FGG; nothing behind the pillar."""
    where = world.pose(body, times_s)
    grid = ((np.arange(GRID) + 0.5) / GRID).astype(np.float32)
    square_x_FG, square_y_FG = ((grid - at_F[:, None]) ** 2 for at_F in (where.x_F, where.y_F))
    distance_FGG = np.sqrt(square_y_FG[:, :, None] + square_x_FG[:, None, :])
    radius_F11 = where.radius_F[:, None, None] * np.float32(radius / world.RADII[body.size])
    inside_FGG = np.clip((radius_F11 - distance_FGG) * GRID + 0.5, 0, 1)
    inside_FGG[:, :, np.abs(grid - 0.5) < background.pillar] = 0
    return inside_FGG


def _apart(
    seen_FGG: NDArray[np.float64],
    drawn_FGG: world.Floats,
    body: Body,
    times_s: world.Floats,
) -> float:
    """The mean distance between what is seen and the path, over the frames that show anything. A
    path is where its disc is to be seen, or where it would be out of sight."""
    where = world.pose(body, times_s)
    path_F2 = np.stack([where.x_F, where.y_F], axis=1).astype(np.float64)
    shown_F = drawn_FGG.any(axis=(1, 2))
    path_F2[shown_F] = _middles(drawn_FGG[shown_F])
    seen_F = seen_FGG.any(axis=(1, 2))
    return float(np.linalg.norm(_middles(seen_FGG[seen_F]) - path_F2[seen_F], axis=1).mean())


def _middles(cover_FGG: NDArray[Any]) -> NDArray[np.float64]:
    """The middle of what is covered in each frame, x and y, as shares of the side."""
    grid, area_F = (np.arange(GRID) + 0.5) / GRID, cover_FGG.sum(axis=(1, 2))
    x_F, y_F = ((cover_FGG.sum(axis=axis) * grid).sum(axis=1) / area_F for axis in (1, 2))
    return np.stack([x_F, y_F], axis=1)
