"""Where the windows of a plan meet, in pixel frames of the film.

A film of a temporal pyramid beats: it changes more where a coarse frame begins than inside one. So
every place says which: ``begins`` is the coarsest stage of which a frame begins there, and a border
is compared with places that begin a frame of the same stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from jobs.pyramid import covered
from orchestrator.plan import Plan, ShotPlan


def borders(plan: Plan) -> list[dict[str, Any]]:
    """Where windows of any stage meet, in pixel frames of the film and their order; a place where
    several stages have one is the finest one's."""
    rows = []
    for number, shot in enumerate(plan.shots):
        seen: dict[int, int] = {}  # the stage whose border a latent frame is
        for stage, name, window, latent in _edges(plan, shot):
            pixel, _ = plan.geometry.pixel_range(latent, latent + 1)
            if pixel < shot.render.pixel_frames and seen.setdefault(latent, stage) == stage:
                frame = shot.first_pixel_frame + pixel
                place = {"shot": number, "stage": stage, "window": window}
                place |= {"begins": _begins(plan, shot, latent)}
                rows.append(place | {"border": name, "frame": frame})
    return sorted(rows, key=lambda row: row["frame"])


def _edges(plan: Plan, shot: ShotPlan) -> Iterator[tuple[int, str, int, int]]:
    """Stage, kind, window and latent frame of a shot's borders, the finest stage's first: where a
    window begins to count (in its first frame it has no weight, if another covers that), and where
    one ends."""
    for number in reversed(range(len(shot.stages))):
        stage = shot.stages[number]
        for left, right in pairwise(stage.windows):
            for name, window, frame in (
                ("enters", right.index, min(right.start + 1, left.stop)),
                ("leaves", left.index, left.stop),
            ):
                latent, _ = covered(
                    frame,
                    stage.stride,
                    shot.render.latent_frames,
                    first_alone=plan.geometry.first_alone,
                )
                yield number, name, window, latent


def _begins(plan: Plan, shot: ShotPlan, latent: int) -> int:
    """The coarsest stage of which a frame begins at a latent frame after the first; the last stage
    has them all."""
    since = latent - int(plan.geometry.first_alone)
    return next(n for n, stage in enumerate(shot.stages) if since % stage.stride == 0)


def interiors(plan: Plan) -> dict[tuple[int, int], list[int]]:
    """By shot and the coarsest stage of which a frame begins there: where one latent frame ends and
    the next begins inside windows, in pixel frames of the film."""
    places: dict[tuple[int, int], list[int]] = {}
    for number, shot in enumerate(plan.shots):
        edges = {latent for _, _, _, latent in _edges(plan, shot)}
        for latent in range(2, shot.render.latent_frames):
            pixel, _ = plan.geometry.pixel_range(latent, latent + 1)
            if latent not in edges and pixel < shot.render.pixel_frames:
                alike = places.setdefault((number, _begins(plan, shot, latent)), [])
                alike.append(shot.first_pixel_frame + pixel)
    return places


def window_ranges(plan: Plan, shot: int) -> list[tuple[int, int]]:
    """The windows of a shot's last stage, in pixel frames of the film."""
    laid = plan.shots[shot]
    first, last = laid.first_pixel_frame, laid.first_pixel_frame + laid.render.pixel_frames
    ranges = (
        plan.geometry.pixel_range(window.start, window.stop) for window in laid.stages[-1].windows
    )
    return [(first + start, min(first + stop, last)) for start, stop in ranges]
