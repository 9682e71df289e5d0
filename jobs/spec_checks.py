"""What can only be checked of a job once its model is known: size, windows, time, guidance."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from jobs.spec_errors import Path, Problem

if TYPE_CHECKING:
    from jobs.spec import JobSpec

MAX_FILM_S = 24 * 3600
MAX_SIZE_PX = 8192


def as_written(value: float) -> Fraction:
    """The decimal that a person wrote, exactly: 0.35 is 35/100, not the binary float near it."""
    return Fraction(repr(value))


def size_problems(width: int, height: int, multiple: int) -> list[Problem]:
    if width % multiple == 0 and height % multiple == 0:
        return []
    widths, heights = _nearest(width, multiple), _nearest(height, multiple)
    nearest = " or ".join(f"{w}x{h}" for w in widths for h in heights)
    rule = f"width and height must be multiples of {multiple} px for this model"
    return [Problem(("size",), f"{width}x{height} does not fit: {rule}; the nearest: {nearest}")]


def _nearest(side_px: int, multiple: int) -> list[int]:
    below = side_px // multiple * multiple
    if below == side_px:
        return [side_px]
    return [side for side in (below, below + multiple) if 0 < side <= MAX_SIZE_PX]


def layout_problems(spec: JobSpec, window: int, overlap: int) -> list[Problem]:
    if overlap < window:
        return []
    rule = f"must be less than the window, {window} latent frames; it is {overlap}"
    given = spec.overlap_latent_frames is not None
    name = "overlap_latent_frames" if given else "window_latent_frames"
    return [Problem((name,), f"the overlap {rule}")]


def time_problems(spec: JobSpec, fps: int) -> list[Problem]:
    problems: list[Problem] = []
    start = Fraction(0)
    for index, shot in enumerate(spec.shots):
        asked = None if shot.start_s is None else as_written(shot.start_s)
        if asked is not None and abs(asked - start) * fps > Fraction(1, 2):
            says = f"{shot.start_s:g}, but the shots before it end at {float(start):g}"
            fix = "shots stand in order, without gaps; correct it or remove it"
            problems.append(Problem(("shots", index, "start_s"), f"{says}; {fix}"))
        start += shot.asked_s(fps)
    if start > MAX_FILM_S:
        hours = f"the film would last {float(start) / 3600:.1f} h; the limit is 24 h"
        problems.append(Problem(("shots",), f"{hours}; shorten it or make two jobs"))
    if spec.model_fps is not None and spec.model_fps != fps:
        message = f"a model_fps other than fps ({fps}) is not built yet; remove it"
        problems.append(Problem(("model_fps",), message))
    return problems


def guidance_problems(spec: JobSpec, experts: int) -> list[Problem]:
    given: list[tuple[Path, tuple[float, ...] | None]] = [(("guidance",), spec.guidance)]
    given += [(("shots", i, "guidance"), shot.guidance) for i, shot in enumerate(spec.shots)]
    valid = "1 value" if experts == 1 else f"1 value, or {experts}: one per expert"
    return [
        Problem(path, f"has {len(values)} values, but this model takes {valid}")
        for path, values in given
        if values is not None and len(values) not in (1, experts)
    ]
