"""Reads a clip back: which scene of the demo world does it show?

Each property is told by comparing the frames with what the world itself would draw, so a model can
be scored on how well it follows its prompts without anybody watching.

Shapes: F frames, H rows, W columns, C colours, N pixels, K times of a period.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks import motions, shapes
from benchmarks.motions import LEAVING, TIMELESS, Fit
from training import world
from training.world import Background, Body, Scene

Mask = NDArray[np.bool_]

#: What is judged: windows of 9 latent frames, and long films second by second.
WINDOW_PIXEL_FRAMES = 17
FPS = 12

#: A body's pixel differs by more, of 255, from the empty scene in some colour.
CONTRAST = 60
#: What is smaller is a speck, as a share of the frame.
SPECK = 0.004
#: More is well to be seen, whatever the colours and the coding.
WELL_SEEN = 0.006
#: Two bodies are there if both are seen in so many frames; either may leave for a while.
TWO_SEEN = 0.2
#: The share of its largest area that a body shows where it shows most.
MOST_OF_IT = 0.95
#: A body's faint rim is looked for so near the rest of it.
RIM_PX = 5
#: Pieces that are twice this apart, or nearer, are one.
CLOSE_PX = 3
#: A body that is nearer to its motion's path, on the mean, follows it; a share of the side.
ON_PATH = 0.06


@dataclass(frozen=True, slots=True, kw_only=True)
class Appearance:
    """What a body looks like; its radius is a fraction of the frame's side."""

    colour: str
    shape: str
    radius: float

    @property
    def size(self) -> str:
        """The size of the world that is nearest."""
        return motions.nearest_size(self.radius)


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyReading:
    """What a body seems to be."""

    colour: str
    shape: str
    motion: str
    fits: dict[str, Fit] = field(repr=False)  # by motion


BODY_PROPERTIES = ("colour", "shape", "motion")
LOOKS = ("colour", "shape", "size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a clip seems to show. ``count_F`` is the number of bodies seen in each frame."""

    background: Background
    bodies: tuple[BodyReading, ...]
    count_F: NDArray[np.int64]
    fps: float

    def matches(self, scene: Scene) -> dict[str, float]:
        """How much of a scene this reading agrees with, 0 to 1 by property. Bodies are compared in
        the order that fits best, for captions do not say which is on which side.

        "path": of the bodies, those that keep within `ON_PATH` of the path of the scene's motion at
        its best tempo, phase and place. "tempo": of those whose motion shows one, if any, those
        whose tempo fits that motion best; every caption tells it, the usual one by no word.
        """
        truth = scene.background
        said = {
            "pattern": float(self.background.pattern == truth.pattern),
            "background_colour": float(self.background.colour == truth.colour),
            "count": self._right_counts(scene),
        }
        pairs = best_order(self.bodies, scene.bodies, BODY_PROPERTIES)
        fits = [(body, seen.fits[body.motion] if seen else None) for seen, body in pairs]
        on_path = [fit is not None and fit.apart <= ON_PATH for _, fit in fits]
        tempo = [
            fit is not None and fit.tempo == body.tempo
            for body, fit in fits
            if body.motion not in TIMELESS
        ]
        said |= _shares(pairs, BODY_PROPERTIES) | {"path": float(np.mean(on_path or [0.0]))}
        return said | ({"tempo": float(np.mean(tempo))} if tempo else {})

    def distances(self, scene: Scene) -> dict[str, list[float]]:
        """How far each body that is seen keeps, on the mean, from the best path of the motion that
        it seems to have, and from that of the scene's motion; shares of the frame's side."""
        pairs = best_order(self.bodies, scene.bodies, BODY_PROPERTIES)
        seen = [(found, body) for found, body in pairs if found]
        return {
            "from_read_motion": [found.fits[found.motion].apart for found, _ in seen],
            "from_right_motion": [found.fits[body.motion].apart for found, body in seen],
        }

    def _right_counts(self, scene: Scene) -> float:
        """The share of frames with the right number of bodies.

        One that leaves the frame or hides may be missed, but all of them together in no more
        frames than the world would at the most show nothing of them, whatever their phase: no
        caption tells that. If they are missed in more, no frame that misses one is right.
        """
        most = len(scene.bodies)
        leaving = [body for body in scene.bodies if body.motion in LEAVING]
        may_miss = sum(most_unseen(b, len(self.count_F), self.fps) for b in leaving)
        missed_F = np.maximum(most - self.count_F, 0)
        excused = len(leaving) if missed_F.sum() <= may_miss else 0
        return float(((missed_F <= excused) & (self.count_F <= most)).mean())


def most_unseen(body: Body, frames: int, fps: float) -> int:
    """In how many frames of a clip, at the most over all phases, the world shows nothing, or next
    to it, of a body that leaves or hides; one more, for pale bodies are found late."""
    seen_K = _seen(body.shape, body.size, body.motion)
    turns = np.arange(frames) / fps * world.TEMPOS[body.tempo] / world.PERIODS_S[body.motion]
    phases = np.arange(len(seen_K)) / len(seen_K)
    places = (phases[:, None] + turns) % 1 * len(seen_K)
    return int((~seen_K[places.astype(int)]).sum(axis=1).max()) + 1


@functools.cache
def _seen(shape: str, size: str, motion: str, times: int = 240) -> Mask:
    """At which times of its period a body is well to be seen."""
    pillar = world.PILLAR_WIDTH * world.RADII[size] if motion == "hide" else 0.0
    backdrop = Background(pattern="plain", colour="gray", pillar=pillar)
    body = Body(shape=shape, colour="red", size=size, motion=motion)
    times_s = (np.arange(times) / times * world.PERIODS_S[motion]).astype(np.float32)
    frames = world.render(Scene(bodies=(body,), background=backdrop), times_s)
    return np.asarray(_differs(frames, backdrop).mean(axis=(1, 2)) >= WELL_SEEN)


def is_steady(scene: Scene) -> bool:
    """Whether its bodies are always to be seen whole, and of one size: what `look` is for."""
    return not any(body.motion in (*LEAVING, "pulse") for body in scene.bodies)


Seen = TypeVar("Seen", Appearance, BodyReading)
Pairs = list[tuple[Seen | None, Body]]


def best_match(
    seen: Sequence[Seen], bodies: tuple[Body, ...], names: tuple[str, ...]
) -> dict[str, float]:
    """By property, how much of the bodies is right, in the order that fits best; one that is not
    seen is all wrong."""
    return _shares(best_order(seen, bodies, names), names)


def best_order(
    seen: Sequence[Seen], bodies: tuple[Body, ...], names: tuple[str, ...]
) -> Pairs[Seen]:
    """Each of the bodies with what agrees with it in most properties, or None where too few are
    seen."""
    lacking = max(0, len(bodies) - len(seen))
    orders = itertools.permutations((*seen, *[None] * lacking))
    every = [list(zip(order, bodies, strict=False)) for order in orders]
    return max(every, key=lambda pairs: sum(_shares(pairs, names).values()))


def _shares(pairs: Pairs[Seen], names: tuple[str, ...]) -> dict[str, float]:
    found = dict.fromkeys(names, 0.0)
    for seen, body in pairs:
        for name in names if seen else ():
            found[name] += (getattr(seen, name) == getattr(body, name)) / len(pairs)
    return found


def read(frames_FHWC: NDArray[np.uint8], fps: float = FPS) -> Reading:
    """Read a clip of a scene of the demo world."""
    background, parts = _find(frames_FHWC)
    count_F = np.sum([[_count(mask_HW) for mask_HW in part] for part in parts], axis=0)
    bodies = []
    for part_FHW in parts:
        if part_FHW.any():
            looks, mask_FHW, whole_F = _appearance(frames_FHWC, part_FHW, background)
            motion, fits = _motion(mask_FHW, whole_F, looks, background, fps)
            bodies.append(
                BodyReading(colour=looks.colour, shape=looks.shape, motion=motion, fits=fits)
            )
    return Reading(background=background, bodies=tuple(bodies), count_F=count_F, fps=fps)


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
    covered = _covered(background, mask_FHW.shape[2])
    mask_FHW = _refine(frames_FHWC, mask_FHW, colour, backdrop_HWC, covered)
    whole_F, is_whole = _whole(mask_FHW, background)
    if is_whole:
        shape = shapes.whole_shape(mask_FHW[whole_F])
        area = float(np.median(mask_FHW[whole_F].sum(axis=(1, 2))))
        radius = float(np.sqrt(area / shapes.outline(shape)[0])) / mask_FHW.shape[1]
    else:
        open_HW = np.ones(mask_FHW.shape[1:])
        open_HW[:, covered] = 0
        shape, radius = shapes.cut_shape(mask_FHW[whole_F], open_HW)
    return Appearance(colour=colour, shape=shape, radius=radius), mask_FHW, whole_F


def _refine(
    frames_FHWC: NDArray[np.uint8],
    mask_FHW: Mask,
    colour: str,
    backdrop_HWC: NDArray[np.uint8],
    covered: slice,
) -> Mask:
    """What is nearer to the body's colour, or its rim's, than to the backdrop; near the mask, and
    not behind the pillar."""
    fill_C = np.asarray(world.COLOURS[colour], dtype=np.float32)
    frames = frames_FHWC.astype(np.float32)
    apart_FHW = np.minimum(
        np.abs(frames - fill_C).sum(axis=-1), np.abs(frames - fill_C * world.RIM_SHADE).sum(axis=-1)
    )
    nearer_FHW = apart_FHW < np.abs(frames - backdrop_HWC).sum(axis=-1)
    around = np.ones((1, 2 * RIM_PX + 1, 2 * RIM_PX + 1))
    refined = nearer_FHW & ndimage.binary_dilation(mask_FHW, around)
    refined[:, :, covered] = False
    return np.asarray(refined if refined.any() else mask_FHW, dtype=bool)


def _whole(mask_FHW: Mask, background: Background) -> tuple[Mask, bool]:
    """Frames in which a body is seen whole, away from the borders and the pillar; if it never is,
    those that show most of it, and False."""
    open_FHW = mask_FHW.copy()
    border_F = mask_FHW[:, [0, -1]].any(axis=(1, 2)) | mask_FHW[:, :, [0, -1]].any(axis=(1, 2))
    covered = _covered(background, mask_FHW.shape[2])
    if covered.stop:
        beside = [covered.start - 1, covered.stop]
        border_F |= open_FHW[:, :, beside].any(axis=(1, 2))
    area_F = mask_FHW.sum(axis=(1, 2))
    whole_F = (area_F >= SPECK * mask_FHW[0].size) & ~border_F
    if whole_F.any():
        return whole_F, True
    return area_F >= MOST_OF_IT * area_F.max(), False


def _colour(pixels_NC: NDArray[np.uint8]) -> str:
    """The named colour that most of a body's pixels, its darker rim's too, are nearest to."""
    fills = np.asarray(list(world.COLOURS.values()), dtype=np.float32)
    table = np.concatenate([fills, fills * world.RIM_SHADE])
    apart = np.abs(pixels_NC[:, None].astype(np.float32) - table).sum(axis=-1)
    near = apart.argmin(axis=1)[apart.min(axis=1) < 150]
    votes = np.bincount(near % len(fills), minlength=len(fills))
    return list(world.COLOURS)[int(votes.argmax())]


# -- what it does


def _motion(
    mask_FHW: Mask, whole_F: Mask, looks: Appearance, background: Background, fps: float
) -> tuple[str, dict[str, Fit]]:
    """The motion whose discs, at the best tempo, phase and place, cover the body's best; a hole is
    filled, for a disc has none."""
    filled_FHW = np.stack([ndimage.binary_fill_holes(mask_HW) for mask_HW in mask_FHW])
    disc = shapes.disc(looks.shape)
    fits = motions.fits(filled_FHW, whole_F, looks.radius, disc, background, fps)
    best = motions.likeliest(fits, background)
    return "spin" if best == "still" and _turns(mask_FHW[whole_F]) else best, fits


def _turns(mask_FHW: Mask) -> bool:
    """Whether a body that stays in place changes within its outline, as a turning one does."""
    ever, always = mask_FHW.any(axis=0).sum(), mask_FHW.all(axis=0).sum()
    return bool(always < 0.8 * ever)
