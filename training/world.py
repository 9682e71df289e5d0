"""The demo world: seeded, captioned, procedural clips whose truth is known for each frame.

A `Scene` is a background and a tuple of bodies, all functions of the time in seconds, so a clip
of any length and any frame rate shows the same world. Motions are periodic: they can go on for
minutes. Lengths are fractions of the frame's side; x grows to the right, y downwards.

Shapes: F frames, H rows, W columns, P rows and columns of the patch around a body.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: Raised whenever the same seed gives other scenes or pictures.
VERSION = 2

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (226, 38, 44),
    "orange": (250, 132, 12),
    "yellow": (252, 214, 22),
    "green": (28, 160, 62),
    "blue": (32, 84, 224),
    "purple": (134, 44, 190),
    "white": (250, 250, 250),
    "black": (28, 28, 34),
}
BACKGROUND_COLOURS: dict[str, tuple[int, int, int]] = {
    "blue": (150, 196, 244),
    "green": (158, 214, 156),
    "yellow": (244, 228, 150),
    "pink": (248, 178, 200),
    "purple": (196, 172, 232),
    "gray": (152, 156, 166),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart")
ROUND_SHAPES = ("circle", "ring")
PATTERNS = ("plain", "gradient", "striped", "dotted", "checkered")
RADII: dict[str, float] = {"small": 0.15, "medium": 0.2, "big": 0.255}
TEMPOS: dict[str, float] = {"slow": 0.55, "normal": 1.0, "quick": 1.7}
RIM_SHADE = 0.62
PATTERN_SHADE = 0.22
MOTIONS = (
    "left",
    "right",
    "up",
    "down",
    "bounce",
    "circle",
    "swing",
    "pulse",
    "spin",
    "still",
    "zigzag",
    "hide",
)
#: What each of two bodies may do: they keep to their halves of the frame.
TWO_BODY_MOTIONS = ("up", "down", "bounce", "pulse", "spin", "still")
HALVES_X = (0.27, 0.73)
TWO_BODIES = 0.25
#: One in so many combinations of shape, colour and motion is never trained on.
HELD_OUT_EVERY = 10
PILLAR_SHADE = 0.55


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """One moving thing; `start` is its home, `phase` (0 to 1) where its motion begins."""

    shape: str
    colour: str
    size: str = "medium"
    motion: str = "still"
    tempo: str = "normal"
    start: tuple[float, float] = (0.5, 0.5)
    phase: float = 0.0
    angle: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """A still backdrop; its pattern is fixed by its name, so every window agrees on it.

    ``pillar`` is half the width of one that stands in the middle, before all bodies; 0 if none.
    """

    pattern: str
    colour: str
    pillar: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a clip shows; later bodies are drawn over earlier ones."""

    bodies: tuple[Body, ...]
    background: Background


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a body is, for each of F times: centre x and y, radius, and angle in radians."""

    x_F: Floats
    y_F: Floats
    radius_F: Floats
    angle_F: Floats


def sample_scene(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """Draw a scene with one or two bodies, of combinations that are trained on or, if asked, of
    the others."""
    has_two = rng.uniform() < TWO_BODIES
    while True:
        scene = _sample_scene(rng, has_two)
        if all(is_held_out(body) == held_out for body in scene.bodies):
            return scene


def is_held_out(body: Body) -> bool:
    """Whether a body's combination of shape, colour and motion is kept from training."""
    combination = f"{body.shape} {body.colour} {body.motion}"
    return zlib.crc32(combination.encode()) % HELD_OUT_EVERY == 0


def _sample_scene(rng: np.random.Generator, has_two: bool) -> Scene:
    background = Background(
        pattern=_pick(rng, PATTERNS), colour=_pick(rng, tuple(BACKGROUND_COLOURS))
    )
    if has_two:
        return Scene(bodies=_sample_two(rng, background), background=background)
    first = sample_body(rng, background)
    if first.motion == "hide":
        background = replace(background, pillar=PILLAR_WIDTH * RADII[first.size])
    return Scene(bodies=(first,), background=background)


def _sample_two(rng: np.random.Generator, background: Background) -> tuple[Body, ...]:
    """Two bodies of different shapes and colours, each in its half of the frame."""
    while True:
        pair = [sample_body(rng, background, TWO_BODY_MOTIONS) for _ in HALVES_X]
        if pair[0].shape != pair[1].shape and pair[0].colour != pair[1].colour:
            break
    halves = rng.permutation(HALVES_X)
    return tuple(
        replace(
            body,
            size="small" if body.motion == "pulse" or body.size == "big" else body.size,
            start=(float(x), body.start[1]),
        )
        for body, x in zip(pair, halves, strict=True)
    )


def sample_body(
    rng: np.random.Generator, background: Background, motions: tuple[str, ...] = MOTIONS
) -> Body:
    """Draw a body that can be told from the background, with a motion its shape can show."""
    shape = _pick(rng, SHAPES)
    colours = tuple(name for name in COLOURS if name != background.colour)
    motion = _pick(rng, tuple(m for m in motions if m != "spin" or shape not in ROUND_SHAPES))
    sizes = (1.0, 0.0, 0.0) if motion == "hide" else (0.25, 0.5, 0.25)
    return Body(
        shape=shape,
        colour=_pick(rng, colours),
        size=_pick(rng, tuple(RADII), sizes),
        motion=motion,
        tempo="normal" if motion == "still" else _pick(rng, tuple(TEMPOS), (0.2, 0.6, 0.2)),
        start=(float(rng.uniform(0.28, 0.72)), float(rng.uniform(0.3, 0.7))),
        phase=float(rng.uniform()),
    )


def frame_times(pixel_frames: int, fps: float = 12.0, start_s: float = 0.0) -> Floats:
    """Times in seconds of the frames of a clip."""
    return (start_s + np.arange(pixel_frames) / fps).astype(np.float32)


def pose(body: Body, times_s: Floats) -> Pose:
    """The truth about a body at each time."""
    turns = body.phase + times_s * TEMPOS[body.tempo] / PERIODS_S[body.motion]
    still = np.zeros_like(times_s)
    radius = np.full_like(times_s, RADII[body.size])
    x, y = still + body.start[0], still + body.start[1]
    angle = still + body.angle
    round_trip = (2 * np.pi * turns).astype(np.float32)
    match body.motion:
        case "left" | "right" | "up" | "down":
            x, y = _travel(body, turns, x, y)
        case "bounce":
            height = 1 - (2 * (turns % 1.0) - 1) ** 2
            floor = 0.94 - radius
            y = floor - height * (floor - radius - 0.06)
        case "circle":
            x, y = 0.5 + 0.23 * np.cos(round_trip), 0.5 + 0.23 * np.sin(round_trip)
        case "swing":
            x = 0.5 + (0.44 - radius) * np.sin(round_trip)
        case "pulse":
            radius = radius * (1 + 0.38 * np.sin(round_trip))
        case "spin":
            angle = angle + round_trip
        case "zigzag":
            low, high = radius + 0.04, 0.96 - radius
            x = low + (high - low) * _to_and_fro(turns)
            y = low + (high - low) * _to_and_fro(2 * turns + body.start[0])
        case "hide":
            x = 0.5 + 0.325 * np.sin(round_trip)
    return Pose(*(np.asarray(v, dtype=np.float32) for v in (x, y, radius, angle)))


PERIODS_S: dict[str, float] = {
    "left": 3.6,
    "right": 3.6,
    "up": 3.6,
    "down": 3.6,
    "bounce": 1.3,
    "circle": 3.0,
    "swing": 2.6,
    "pulse": 1.8,
    "spin": 3.2,
    "still": 1.0,
    "zigzag": 3.6,
    "hide": 3.0,
}
#: Half the width of a pillar that hides a body, by the body's radius.
PILLAR_WIDTH = 1.05


def _to_and_fro(turns: Floats) -> Floats:
    """From 0 to 1 and back, straight, once a turn."""
    return np.abs(2 * (turns % 1.0) - 1)


def _travel(body: Body, turns: Floats, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Cross the frame again and again: out at one side, back in at the other."""
    margin = RADII[body.size] * 1.2
    along = (turns % 1.0) * (1 + 2 * margin) - margin
    forward = along if body.motion in ("right", "down") else 1 - along
    return (forward, y) if body.motion in ("left", "right") else (x, forward)


def render(scene: Scene, times_s: Floats, side_px: int = 96) -> NDArray[np.uint8]:
    """Draw the scene at each time: FHWC, RGB, 8 bits."""
    backdrop_HWC = _backdrop(scene.background, side_px)
    frames_FHWC = np.repeat(backdrop_HWC[None], len(times_s), axis=0)
    for body in scene.bodies:
        _draw(frames_FHWC, body, pose(body, times_s))
    if scene.background.pillar:
        columns = slice(*pillar_px(scene.background, side_px))
        frames_FHWC[:, :, columns] = backdrop_HWC[None, :, columns] * PILLAR_SHADE
    return (frames_FHWC + 0.5).astype(np.uint8)


def pillar_px(background: Background, side_px: int) -> tuple[int, int]:
    """The columns that the pillar covers."""
    half = background.pillar
    return round((0.5 - half) * side_px), round((0.5 + half) * side_px)


def _draw(frames_FHWC: Floats, body: Body, where: Pose) -> None:
    """Composite a body and its rim over the frames, in place, only in the patch around it."""
    side_px = frames_FHWC.shape[1]
    patch_px = int(np.ceil(float(where.radius_F.max()) * side_px * 1.15)) * 2 + 4
    corner_x_F = np.floor(where.x_F * side_px).astype(int) - patch_px // 2
    corner_y_F = np.floor(where.y_F * side_px).astype(int) - patch_px // 2
    grid_P = np.arange(patch_px) + 0.5
    scale_F11 = (where.radius_F * side_px)[:, None, None]
    u_FPP = corner_x_F[:, None, None] + grid_P[None, None] - where.x_F[:, None, None] * side_px
    v_FPP = corner_y_F[:, None, None] + grid_P[None, :, None] - where.y_F[:, None, None] * side_px
    cos_F11, sin_F11 = np.cos(where.angle_F)[:, None, None], np.sin(where.angle_F)[:, None, None]
    u_FPP, v_FPP = (
        (cos_F11 * u_FPP + sin_F11 * v_FPP) / scale_F11,
        (cos_F11 * v_FPP - sin_F11 * u_FPP) / scale_F11,
    )
    distance_px_FPP = _DISTANCES[body.shape](u_FPP, v_FPP) * scale_F11
    cover_FPP1 = np.clip(0.5 - distance_px_FPP, 0, 1)[..., None].astype(np.float32)
    inner_FPP1 = np.clip(-distance_px_FPP - side_px / 60, 0, 1)[..., None].astype(np.float32)
    fill_C = np.asarray(COLOURS[body.colour], dtype=np.float32)
    paint_FPPC = fill_C * (RIM_SHADE + (1 - RIM_SHADE) * inner_FPP1)
    for frame, (x, y) in enumerate(zip(corner_x_F, corner_y_F, strict=True)):
        rows, columns = slice(max(y, 0), y + patch_px), slice(max(x, 0), x + patch_px)
        target_HWC = frames_FHWC[frame, rows, columns] if min(rows.stop, columns.stop) > 0 else None
        if target_HWC is None or target_HWC.size == 0:
            continue
        top, left = rows.start - y, columns.start - x
        height, width = target_HWC.shape[:2]
        part = np.s_[frame, top : top + height, left : left + width]
        target_HWC += cover_FPP1[part] * (paint_FPPC[part] - target_HWC)


def _backdrop(background: Background, side_px: int) -> Floats:
    """The backdrop HWC as float, 0 to 255, anti-aliased by four samples a pixel side."""
    fine_px = side_px * 4
    grid = (np.arange(fine_px, dtype=np.float32) + 0.5) / fine_px
    amount = _PATTERNS[background.pattern](grid[None, :], grid[:, None])
    amount = np.broadcast_to(amount, (fine_px, fine_px)).astype(np.float32)
    amount = amount.reshape(side_px, 4, side_px, 4).mean(axis=(1, 3))
    light_C = np.asarray(BACKGROUND_COLOURS[background.colour], dtype=np.float32)
    return light_C * (1 - PATTERN_SHADE * amount[..., None])


def _checks(x: Floats, y: Floats) -> Floats:
    return ((np.floor(x * 6) + np.floor(y * 6)) % 2).astype(np.float32)


def _dots(x: Floats, y: Floats) -> Floats:
    return (np.hypot(x * 6 % 1 - 0.5, y * 6 % 1 - 0.5) < 0.28).astype(np.float32)


_PATTERNS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "plain": lambda x, y: 0 * x + 0 * y,
    "gradient": lambda x, y: 0 * x + 1.5 * y,
    "striped": lambda x, y: ((x * 6) % 1 < 0.5).astype(np.float32) + 0 * y,
    "dotted": _dots,
    "checkered": _checks,
}


def signed_distance(shape: str, u: Floats, v: Floats) -> Floats:
    """Distance to the rim of a shape of radius 1 about the origin, negative inside."""
    return _DISTANCES[shape](u, v)


def _polygon(corners: Floats) -> Callable[[Floats, Floats], Floats]:
    """The exact signed distance to a closed polygon, negative inside."""

    def distance(u: Floats, v: Floats) -> Floats:
        best = np.full_like(u, np.inf)
        inside = np.zeros(u.shape, dtype=bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, 1, axis=0), strict=True):
            ex, ey, wx, wy = bx - ax, by - ay, u - ax, v - ay
            along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
            best = np.minimum(best, (wx - ex * along) ** 2 + (wy - ey * along) ** 2)
            crosses = (ay > v) != (by > v)
            inside ^= crosses & (u < ex * (v - ay) / (ey if ey else 1.0) + ax)
        return np.sqrt(best) * np.where(inside, -1, 1)

    return distance


def _around(radii: tuple[float, ...], count: int) -> Floats:
    """Corners around the centre, the first at the top, their radii taken in turn."""
    turns = np.arange(count) * 2 * np.pi / count - np.pi / 2
    radius = np.resize(np.asarray(radii), count)
    return np.stack([radius * np.cos(turns), radius * np.sin(turns)], axis=1)


def _heart() -> Floats:
    """The well known heart curve, as a polygon that fits the unit circle."""
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2.5], axis=1) / 16.5


_CROSS_X = (-1, 1, 1, 3, 3, 1, 1, -1, -1, -3, -3, -1)
_CROSS_Y = (3, 3, 1, 1, -1, -1, -3, -3, -1, -1, 1, 1)

_DISTANCES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "circle": lambda u, v: np.hypot(u, v) - 0.95,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.72) - 0.26,
    "square": _polygon(np.array([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)])),
    "triangle": _polygon(_around((1.08,), 3)),
    "star": _polygon(_around((1.12, 0.5), 10)),
    "cross": _polygon(np.stack([_CROSS_X, _CROSS_Y], axis=1) / 3.1),
    "heart": _polygon(_heart()),
}


def _pick(
    rng: np.random.Generator, names: tuple[str, ...], weights: tuple[float, ...] | None = None
) -> str:
    return names[int(rng.choice(len(names), p=weights))]
