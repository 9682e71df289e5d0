"""What can only be checked of a job once its model is known: size, windows, time, guidance, what
it starts from."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from jobs.geometry import ModelGeometry
from jobs.spec_errors import Path, Problem

if TYPE_CHECKING:
    from jobs.spec import JobSpec, Shot

MAX_FILM_S = 24 * 3600
MAX_SIZE_PX = 8192

#: What a job or a shot may say to some models and not to others.
_SOME_TAKE = (
    "image",
    "prompt",
    "negative",
    "flow_shift",
    "text_tokens",
    "window_latent_frames",
    "overlap_latent_frames",
    "repeated_noise",
    "loras",
)


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


def image_problems(spec: JobSpec, geometry: ModelGeometry) -> list[Problem]:
    problems = []
    given = [index for index, shot in enumerate(spec.shots) if shot.image is not None]
    for index, shot in enumerate(spec.shots):
        place: Path = ("shots", index)
        if geometry.from_image and shot.image is None:
            said = f"missing; {geometry.family} models start each shot from an image: give its path"
            problems.append(Problem((*place, "image"), said))
        if not geometry.from_image and shot.image is not None:
            said = (
                f"{geometry.family} models start from text alone; remove it, or name a model that "
                "starts from an image"
            )
            said += f". {_taken(geometry)}" if index == given[-1] else ""
            problems.append(Problem((*place, "image"), said))
            if shot.prompt is None:
                said = "missing; say what the shot shows, for example prompt: a red kite"
                problems.append(Problem((*place, "prompt"), said))
    return problems


def refused_problems(spec: JobSpec, geometry: ModelGeometry) -> list[Problem]:
    """What the job or a shot says that this model has no use for, but for what it has anyway."""
    parts: list[tuple[Path, JobSpec | Shot]] = [((), spec)]
    parts += [(("shots", index), shot) for index, shot in enumerate(spec.shots)]
    refused = [
        ((*place, name), f"{why}; remove it")
        for place, part in parts
        for name, why in geometry.refused
        if name in (fields := type(part).model_fields)
        and getattr(part, name) not in (fields[name].default, getattr(geometry, name, None))
    ]
    return [
        Problem(place, f"{said}. {_taken(geometry)}" if number == len(refused) else said)
        for number, (place, said) in enumerate(refused, 1)
    ]


def _taken(geometry: ModelGeometry) -> str:
    refused = {name for name, _ in geometry.refused}
    if not geometry.from_image:
        refused.add("image")
    taken = [name for name in _SOME_TAKE if name not in refused]
    return f"Of the settings that only some models have, this one has {', '.join(taken)}"


def single_window_problems(
    spec: JobSpec, geometry: ModelGeometry, fps: int, stages: int
) -> list[Problem]:
    """A model that makes a shot as one window makes no longer ones, and nothing in stages."""
    if not geometry.single_window:
        return []
    most, problems = geometry.pixel_frames(geometry.window_latent_frames), []
    if stages > 1:
        said = "this model makes each shot as one window, without a pyramid; say off or remove it"
        problems.append(Problem(("pyramid",), said))
    for index, shot in enumerate(spec.shots):
        if shot.length(fps) > most:
            name = "seconds" if shot.pixel_frames is None else "pixel_frames"
            said = (
                f"{shot.length(fps)} frames are too many: this model makes at most {most} in a "
                f"shot, {most / fps:.3g} s at {fps} fps; shorten it, or make more shots"
            )
            problems.append(Problem(("shots", index, name), said))
    return problems
