"""Reads a clip back: which scene of the demo world does it show?

Each property is told by comparing the frames with what the world itself would draw, so a model can
be scored on how well it follows its prompts without anybody watching.

Shapes: F frames, H rows, W columns, C colours, G rows and columns of a coarse grid, K candidates.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training import world
from training.world import Background, Body, Scene

Mask = NDArray[np.bool_]

#: A body's pixel differs by more, of 255, from the empty scene in some colour.
CONTRAST = 60
#: What is smaller is a speck, as a share of the frame.
SPECK = 0.004
#: Two bodies are there if both are seen in so many frames; either may leave for a while.
TWO_SEEN = 0.2
#: The share of its largest area that a body shows where it shows most.
MOST_OF_IT = 0.95
#: A body's faint rim is looked for so near the rest of it.
RIM_PX = 5
#: Pieces that are twice this apart, or nearer, are one.
CLOSE_PX = 3
GRID = 24
PHASES = 24
#: What is all but still is still: other motions can fit its noise.
STILL_FAVOUR = 1.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Appearance:
    """What a body looks like; its radius is a fraction of the frame's side."""

    colour: str
    shape: str
    radius: float

    @property
    def size(self) -> str:
        """The size of the world that is nearest."""
        return min(world.RADII, key=lambda name: abs(world.RADII[name] - self.radius))


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyReading:
    """What a body seems to be."""

    colour: str
    shape: str
    motion: str


LEAVING = ("left", "right", "up", "down", "hide")
BODY_PROPERTIES = ("colour", "shape", "motion")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a clip seems to show. ``count_F`` is the number of bodies seen in each frame."""

    background: Background
    bodies: tuple[BodyReading, ...]
    count_F: NDArray[np.int64]

    def matches(self, scene: Scene) -> dict[str, float]:
        """How much of a scene this reading agrees with, 0 to 1 by property. Bodies are compared in
        the order that fits best, for captions do not say which is on which side."""
        truth = scene.background
        said = {
            "pattern": float(self.background.pattern == truth.pattern),
            "background_colour": float(self.background.colour == truth.colour),
            "count": self._right_counts(scene),
        }
        return said | best_match(self.bodies, scene.bodies, BODY_PROPERTIES)

    def _right_counts(self, scene: Scene) -> float:
        """The share of frames with the right number of bodies; one that leaves the frame or hides
        may be seen or not."""
        most = len(scene.bodies)
        least = most - sum(body.motion in LEAVING for body in scene.bodies)
        return float(((self.count_F >= least) & (self.count_F <= most)).mean())


def best_match(
    seen: Sequence[Appearance | BodyReading], bodies: tuple[Body, ...], names: tuple[str, ...]
) -> dict[str, float]:
    """By property, how much of the bodies is right, in the order that fits best; one that is not
    seen is all wrong."""
    most = max(len(seen), len(bodies))
    orders = (
        _compare(order, bodies, names)
        for order in itertools.permutations((*seen, *[None] * (most - len(seen))))
    )
    return max(orders, key=lambda found: sum(found.values()))


def _compare(
    seen: tuple[Appearance | BodyReading | None, ...],
    bodies: tuple[Body, ...],
    names: tuple[str, ...],
) -> dict[str, float]:
    found = dict.fromkeys(names, 0.0)
    for reading, body in zip(seen, bodies, strict=False):
        for name in names if reading else ():
            found[name] += (getattr(reading, name) == getattr(body, name)) / len(bodies)
    return found


def read(frames_FHWC: NDArray[np.uint8], fps: float = 12.0) -> Reading:
    """Read a clip of a scene of the demo world."""
    background, parts = _find(frames_FHWC)
    count_F = np.sum([[_count(mask_HW) for mask_HW in part] for part in parts], axis=0)
    bodies = []
    for part_FHW in parts:
        if part_FHW.any():
            looks, mask_FHW, whole_F = _appearance(frames_FHWC, part_FHW, background)
            motion = _motion(mask_FHW, whole_F, looks, background, fps)
            bodies.append(BodyReading(colour=looks.colour, shape=looks.shape, motion=motion))
    return Reading(background=background, bodies=tuple(bodies), count_F=count_F)


def look(frames_FHWC: NDArray[np.uint8]) -> tuple[Appearance, ...]:
    """What the bodies of a clip look like: `read` without what they do, for clips of a moment."""
    background, parts = _find(frames_FHWC)
    return tuple(_appearance(frames_FHWC, part, background)[0] for part in parts if part.any())


def _find(frames_FHWC: NDArray[np.uint8]) -> tuple[Background, list[Mask]]:
    background = _background(frames_FHWC)
    mask_FHW = np.stack([_without_specks(m) for m in _differs(frames_FHWC, background)])
    return background, _parts(mask_FHW)


# -- what stands there


@functools.cache
def _backdrops(side_px: int) -> tuple[tuple[Background, NDArray[np.int16]], ...]:
    """Every backdrop of the world, HWC."""
    pillars = (0.0, world.PILLAR_WIDTH * world.RADII["small"])
    choices = itertools.product(world.PATTERNS, world.BACKGROUND_COLOURS, pillars)
    return tuple(
        (each, world.render(Scene(bodies=(), background=each), np.zeros(1, np.float32), side_px)[0])
        for each in (Background(pattern=p, colour=c, pillar=w) for p, c, w in choices)
    )


def _background(frames_FHWC: NDArray[np.uint8]) -> Background:
    """The backdrop that is nearest to the frames."""
    some_FHWC = frames_FHWC[::4].astype(np.int16)

    def distance(backdrop_HWC: NDArray[np.uint8]) -> float:
        apart_FHW = np.abs(some_FHWC - backdrop_HWC).sum(axis=-1)
        return float(np.minimum(apart_FHW, 120).mean())

    backdrops = _backdrops(frames_FHWC.shape[1])
    return min(backdrops, key=lambda pair: distance(pair[1]))[0]


def _differs(frames_FHWC: NDArray[np.uint8], background: Background) -> Mask:
    """Where something stands before the backdrop, and not behind its pillar."""
    backdrop_HWC = dict(_backdrops(frames_FHWC.shape[1]))[background]
    mask_FHW = np.abs(frames_FHWC.astype(np.int16) - backdrop_HWC).max(axis=-1) > CONTRAST
    mask_FHW[:, :, _covered(background, frames_FHWC.shape[1])] = False
    return mask_FHW


def _covered(background: Background, side_px: int) -> slice:
    """The columns of the pillar, and one more at each side."""
    if not background.pillar:
        return slice(0, 0)
    low, high = world.pillar_px(background, side_px)
    return slice(low - 1, high + 1)


def _without_specks(mask_HW: Mask) -> Mask:
    label_HW, count = ndimage.label(mask_HW, structure=np.ones((3, 3)))
    areas = ndimage.sum_labels(mask_HW, label_HW, np.arange(count + 1))
    keep = areas >= SPECK * mask_HW.size
    keep[0] = False
    return np.asarray(keep[label_HW], dtype=bool)


def _count(mask_HW: Mask) -> int:
    """Pieces of a frame; what is close together is one, as the two ends of a heart that leaves."""
    near_HW = ndimage.binary_dilation(mask_HW, np.ones((3, 3)), iterations=CLOSE_PX)
    return int(ndimage.label(near_HW, structure=np.ones((3, 3)))[1])


def _parts(mask_FHW: Mask) -> list[Mask]:
    """Each body's mask: two keep to their halves of the frame."""
    middle = mask_FHW.shape[2] // 2
    halves = []
    for half in (slice(0, middle), slice(middle, None)):
        part_FHW = np.zeros_like(mask_FHW)
        part_FHW[:, :, half] = mask_FHW[:, :, half]
        halves.append(part_FHW)
    pieces_F = np.array([ndimage.label(m, structure=np.ones((3, 3)))[1] for m in mask_FHW])
    both_F = np.logical_and.reduce([part.any(axis=(1, 2)) for part in halves])
    return halves if ((pieces_F >= 2) & both_F).mean() >= TWO_SEEN else [mask_FHW]


# -- what a body is


def _appearance(
    frames_FHWC: NDArray[np.uint8], mask_FHW: Mask, background: Background
) -> tuple[Appearance, Mask, Mask]:
    """What a body looks like, where it is, and in which frames it is seen whole."""
    colour = _colour(frames_FHWC[mask_FHW])
    backdrop_HWC = dict(_backdrops(frames_FHWC.shape[1]))[background]
    mask_FHW = _refine(frames_FHWC, mask_FHW, colour, backdrop_HWC)
    mask_FHW[:, :, _covered(background, mask_FHW.shape[2])] = False
    whole_F = _whole(mask_FHW, background)
    shape = _shape(mask_FHW[whole_F])
    area = float(np.median(mask_FHW[whole_F].sum(axis=(1, 2))))
    radius = float(np.sqrt(area / _outline(shape)[0])) / mask_FHW.shape[1]
    return Appearance(colour=colour, shape=shape, radius=radius), mask_FHW, whole_F


def _refine(
    frames_FHWC: NDArray[np.uint8], mask_FHW: Mask, colour: str, backdrop_HWC: NDArray[np.uint8]
) -> Mask:
    """What is nearer to the body's colour, or its rim's, than to the backdrop; near the mask."""
    fill_C = np.asarray(world.COLOURS[colour], dtype=np.float32)
    frames = frames_FHWC.astype(np.float32)
    apart_FHW = np.minimum(
        np.abs(frames - fill_C).sum(axis=-1), np.abs(frames - fill_C * world.RIM_SHADE).sum(axis=-1)
    )
    nearer_FHW = apart_FHW < np.abs(frames - backdrop_HWC).sum(axis=-1)
    around = np.ones((1, 2 * RIM_PX + 1, 2 * RIM_PX + 1))
    refined = nearer_FHW & ndimage.binary_dilation(mask_FHW, around)
    return np.asarray(refined if refined.any() else mask_FHW, dtype=bool)


def _whole(mask_FHW: Mask, background: Background) -> Mask:
    """Frames in which a body is seen whole, away from the borders and the pillar; if it never is,
    those that show most of it."""
    open_FHW = mask_FHW.copy()
    border_F = mask_FHW[:, [0, -1]].any(axis=(1, 2)) | mask_FHW[:, :, [0, -1]].any(axis=(1, 2))
    covered = _covered(background, mask_FHW.shape[2])
    if covered.stop:
        beside = [covered.start - 1, covered.stop]
        border_F |= open_FHW[:, :, beside].any(axis=(1, 2))
    area_F = mask_FHW.sum(axis=(1, 2))
    whole_F = (area_F >= SPECK * mask_FHW[0].size) & ~border_F
    return whole_F if whole_F.any() else area_F >= MOST_OF_IT * area_F.max()


def _colour(pixels_NC: NDArray[np.uint8]) -> str:
    """The named colour that most of a body's pixels, its darker rim's too, are nearest to."""
    fills = np.asarray(list(world.COLOURS.values()), dtype=np.float32)
    table = np.concatenate([fills, fills * world.RIM_SHADE])
    apart = np.abs(pixels_NC[:, None].astype(np.float32) - table).sum(axis=-1)
    near = apart.argmin(axis=1)[apart.min(axis=1) < 150]
    votes = np.bincount(near % len(fills), minlength=len(fills))
    return list(world.COLOURS)[int(votes.argmax())]


def _shape(mask_FHW: Mask) -> str:
    """The shape whose drawing, at the best size, angle and place, overlaps the body's best."""
    scores = dict.fromkeys(world.SHAPES, 0.0)
    picked = mask_FHW[:: max(1, len(mask_FHW) // 5)]
    for mask_HW in picked:
        for shape in world.SHAPES:
            scores[shape] += _best_overlap(mask_HW, shape)
    return max(scores, key=lambda shape: scores[shape])


def _best_overlap(mask_HW: Mask, shape: str) -> float:
    """The best share of the common area in the joint one: the drawing's middle of area lies on the
    mask's, and its area is the mask's."""
    area, middle, turns = _outline(shape)
    rows, columns = np.nonzero(mask_HW)
    radius_px = np.sqrt(len(rows) / area)
    u, v = np.meshgrid(np.arange(mask_HW.shape[1]), np.arange(mask_HW.shape[0]))
    u, v = (u - columns.mean()) / radius_px, (v - rows.mean()) / radius_px
    best = 0.0
    for angle in np.arange(turns) * 2 * np.pi / turns / _SYMMETRY[shape]:
        cos, sin = np.cos(angle), np.sin(angle)
        p, q = cos * u + sin * v + middle[0], cos * v - sin * u + middle[1]
        drawn_HW = world.signed_distance(shape, p, q) < 0
        best = max(best, float((drawn_HW & mask_HW).sum() / (drawn_HW | mask_HW).sum()))
    return best


#: After which share of a full turn a shape looks the same.
_SYMMETRY = {"circle": 1, "ring": 1, "square": 4, "triangle": 3, "star": 5, "cross": 4, "heart": 1}


@functools.cache
def _outline(shape: str) -> tuple[float, tuple[float, float], int]:
    """Of a shape of radius 1: its area, the middle of it, and how many angles tell it."""
    side = np.linspace(-1.3, 1.3, 260, dtype=np.float32)
    u, v = np.meshgrid(side, side)
    inside = world.signed_distance(shape, u, v) < 0
    turns = 1 if shape in world.ROUND_SHAPES else 24 // _SYMMETRY[shape]
    area = float(inside.sum() * (side[1] - side[0]) ** 2)
    return area, (float(u[inside].mean()), float(v[inside].mean())), turns


# -- what it does


def _motion(
    mask_FHW: Mask, whole_F: Mask, looks: Appearance, background: Background, fps: float
) -> str:
    """The motion whose discs, at the best tempo, phase and place, cover the body's best."""
    side_px = mask_FHW.shape[1]
    cell_px = side_px // GRID
    seen_FGG = mask_FHW.reshape(-1, GRID, cell_px, GRID, cell_px).mean(axis=(2, 4))
    disc = float(np.sqrt(_outline(looks.shape)[0] / np.pi))
    grid = (np.arange(side_px) + 0.5) / side_px
    area_F = mask_FHW[whole_F].sum(axis=(1, 2))
    home = tuple(
        float(np.median((mask_FHW[whole_F].sum(axis=axis) * grid).sum(axis=1) / area_F))
        for axis in (1, 2)
    )
    times_s = world.frame_times(len(mask_FHW), fps)
    scores: dict[str, float] = {}
    for body in _candidates(home, looks.size, bool(background.pillar)):
        where = world.pose(body, times_s)
        drawn_FGG = _discs(where, disc * looks.radius / world.RADII[body.size], background)
        overlap = np.minimum(seen_FGG, drawn_FGG).sum() / np.maximum(seen_FGG, drawn_FGG).sum()
        scores[body.motion] = max(scores.get(body.motion, 0.0), float(overlap))
    scores["still"] *= STILL_FAVOUR
    best = max(scores, key=lambda motion: scores[motion])
    return "spin" if best == "still" and _turns(mask_FHW[whole_F]) else best


def _candidates(home: tuple[float, float], size: str, pillar: bool) -> Iterator[Body]:
    """A still body and every moving one; only behind a pillar something hides."""
    yield Body(shape="circle", colour="red", size=size, start=home)
    for motion in world.MOTIONS:
        if motion in ("still", "spin") or (motion == "hide") != pillar:
            continue
        starts = [(x, 0.5) for x in np.arange(12) / 12] if motion == "zigzag" else [home]
        for tempo, phase, start in itertools.product(
            world.TEMPOS, np.arange(PHASES) / PHASES, starts
        ):
            yield Body(
                shape="circle", colour="red", size=size, motion=motion, tempo=tempo,
                start=start, phase=float(phase),
            )  # fmt: skip


def _discs(where: world.Pose, scale: float, background: Background) -> NDArray[np.float64]:
    """How much of each cell a disc covers, FGG; nothing behind the pillar."""
    grid = (np.arange(GRID) + 0.5) / GRID
    x_F11, y_F11 = where.x_F[:, None, None], where.y_F[:, None, None]
    distance_FGG = np.hypot(grid[None, None] - x_F11, grid[None, :, None] - y_F11)
    inside_FGG = np.clip((where.radius_F[:, None, None] * scale - distance_FGG) * GRID + 0.5, 0, 1)
    inside_FGG[:, :, np.abs(grid - 0.5) < background.pillar] = 0
    return inside_FGG


def _turns(mask_FHW: Mask) -> bool:
    """Whether a body that stays in place changes within its outline, as a turning one does."""
    ever, always = mask_FHW.any(axis=0).sum(), mask_FHW.all(axis=0).sum()
    return bool(always < 0.8 * ever)
