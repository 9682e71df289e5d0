"""Reads a generated clip back: which scene of the demo world does it show?

Each property is told by comparing the frames with what the world itself would draw, so a model can
be scored on how well it follows its prompts without anybody watching.

Shapes: F frames, H rows, W columns, C colours.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training import world
from training.world import Background, Body, Scene

FEWEST_BODY_PX = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a clip seems to show; `None` where nothing moves before the background."""

    pattern: str
    background_colour: str
    colour: str | None = None
    shape: str | None = None
    motion: str | None = None

    def matches(self, scene: Scene) -> dict[str, bool]:
        """Which properties of a scene with one body this reading agrees with."""
        body, background = scene.bodies[0], scene.background
        return {
            "pattern": self.pattern == background.pattern,
            "background_colour": self.background_colour == background.colour,
            "colour": self.colour == body.colour,
            "shape": self.shape == body.shape,
            "motion": self.motion == body.motion,
        }


def read(frames_FHWC: NDArray[np.uint8], fps: float = 12.0) -> Reading:
    """Read a clip of a scene with one body."""
    background = _background(frames_FHWC)
    backdrop_HWC = world.render(Scene(bodies=(), background=background), np.zeros(1, np.float32))[0]
    apart_FHW = np.abs(frames_FHWC.astype(np.int16) - backdrop_HWC).max(axis=-1)
    mask_FHW = apart_FHW > 60
    seen = Reading(pattern=background.pattern, background_colour=background.colour)
    whole_F = _whole(mask_FHW)
    if not whole_F.any():
        return seen
    colour = _colour(frames_FHWC[mask_FHW])
    shape = _shape(mask_FHW[whole_F])
    return replace(seen, colour=colour, shape=shape, motion=_motion(mask_FHW, whole_F, fps))


def _background(frames_FHWC: NDArray[np.uint8]) -> Background:
    """The backdrop that is nearest to the frames in the median pixel."""

    def distance(background: Background) -> float:
        still = Scene(bodies=(), background=background)
        backdrop_HWC = world.render(still, np.zeros(1, np.float32))[0].astype(np.int16)
        apart_FHW = np.abs(frames_FHWC[::4].astype(np.int16) - backdrop_HWC).sum(axis=-1)
        return float(np.minimum(apart_FHW, 120).mean())

    choices = itertools.product(world.PATTERNS, world.BACKGROUND_COLOURS)
    return min((Background(pattern=p, colour=c) for p, c in choices), key=distance)


def _whole(mask_FHW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Frames in which a body is seen whole, away from the borders."""
    border_F = mask_FHW[:, [0, -1]].any(axis=(1, 2)) | mask_FHW[:, :, [0, -1]].any(axis=(1, 2))
    return (mask_FHW.sum(axis=(1, 2)) >= FEWEST_BODY_PX) & ~border_F


def _colour(pixels_NC: NDArray[np.uint8]) -> str:
    """The named colour that most of a body's pixels, its darker rim's too, are nearest to."""
    fills = np.asarray(list(world.COLOURS.values()), dtype=np.float32)
    table = np.concatenate([fills, fills * world.RIM_SHADE])
    apart = np.abs(pixels_NC[:, None].astype(np.float32) - table).sum(axis=-1)
    near = apart.argmin(axis=1)[apart.min(axis=1) < 150]
    votes = np.bincount(near % len(fills), minlength=len(fills))
    return list(world.COLOURS)[int(votes.argmax())]


def _shape(mask_FHW: NDArray[np.bool_]) -> str:
    """The shape whose drawing, at the best size and angle, overlaps the body's best."""
    scores = dict.fromkeys(world.SHAPES, 0.0)
    picked = mask_FHW[:: max(1, len(mask_FHW) // 5)]
    for mask_HW in picked:
        rows, columns = np.nonzero(mask_HW)
        middle = ((columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2)
        extent_px = max(np.ptp(columns), np.ptp(rows)) + 1
        for shape in world.SHAPES:
            scores[shape] += _best_overlap(mask_HW, shape, middle, extent_px)
    return max(scores, key=lambda shape: scores[shape])


def _best_overlap(
    mask_HW: NDArray[np.bool_], shape: str, middle_px: tuple[float, float], extent_px: float
) -> float:
    side_px = mask_HW.shape[0]
    grid = np.arange(side_px, dtype=np.float32) + 0.5
    u, v = np.meshgrid(grid - middle_px[0], grid - middle_px[1])
    best = 0.0
    for scale, angle, lift in itertools.product(
        (0.46, 0.52, 0.58), (0, 0.26, 0.52, 0.78), (0, 0.2)
    ):
        radius_px = extent_px * scale
        cos, sin = np.cos(angle), np.sin(angle)
        p, q = (cos * u + sin * v) / radius_px, (cos * v - sin * u) / radius_px - lift
        drawn_HW = world.signed_distance(shape, p, q) < 0
        union = (drawn_HW | mask_HW).sum()
        best = max(best, float((drawn_HW & mask_HW).sum() / union))
    return best


def _motion(mask_FHW: NDArray[np.bool_], whole_F: NDArray[np.bool_], fps: float) -> str:
    """The motion whose track, at the best tempo, phase and place, is nearest to the body's."""
    seen_F = mask_FHW.sum(axis=(1, 2)) >= FEWEST_BODY_PX
    grid = (np.arange(mask_FHW.shape[1]) + 0.5) / mask_FHW.shape[1]
    area_F = np.maximum(mask_FHW.sum(axis=(1, 2)), 1)
    x_F = (mask_FHW.sum(axis=1) * grid).sum(axis=1) / area_F
    y_F = (mask_FHW.sum(axis=2) * grid).sum(axis=1) / area_F
    size_F = np.sqrt(area_F) / np.sqrt(np.median(area_F[whole_F])) * 0.2
    times_s = world.frame_times(len(mask_FHW), fps)
    use_F = whole_F if whole_F.sum() >= 4 else seen_F
    track = np.stack([x_F, y_F, size_F])[:, use_F]
    errors = {}
    for motion in (m for m in world.MOTIONS if m != "spin"):
        errors[motion] = min(
            _track_error(track, motion, tempo, phase, times_s, use_F)
            for tempo in (world.TEMPOS if motion != "still" else ("normal",))
            for phase in (np.arange(24) / 24 if motion != "still" else (0.0,))
        )
    errors["still"] = errors["still"] * 0.8
    best = min(errors, key=lambda motion: errors[motion])
    return "spin" if best == "still" and _turns(mask_FHW[whole_F]) else best


def _track_error(
    track: NDArray[np.float64],
    motion: str,
    tempo: str,
    phase: float,
    times_s: NDArray[np.float32],
    use_F: NDArray[np.bool_],
) -> float:
    body = Body(shape="circle", colour="red", motion=motion, tempo=tempo, phase=phase)
    where = world.pose(body, times_s)
    size_F = where.radius_F / world.RADII["medium"] * 0.2
    told = np.stack([where.x_F, where.y_F, size_F])[:, use_F]
    apart = told - track
    apart = apart - np.median(apart, axis=1, keepdims=True)
    return float(np.abs(apart).mean())


def _turns(mask_FHW: NDArray[np.bool_]) -> bool:
    """Whether a body that stays in place changes within its outline, as a turning one does."""
    ever, always = mask_FHW.any(axis=0).sum(), mask_FHW.all(axis=0).sum()
    return bool(always < 0.8 * ever)
