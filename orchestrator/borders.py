"""Where the windows of a plan meet, in pixel frames of the film."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from orchestrator.plan import Plan, ShotPlan


def borders(plan: Plan) -> list[dict[str, Any]]:
    """Where windows meet, in pixel frames of the film."""
    rows = []
    for number, shot in enumerate(plan.shots):
        for name, window, latent in _edges(shot):
            pixel, _ = plan.geometry.pixel_range(latent, latent + 1)
            if pixel < shot.render.pixel_frames:
                frame = shot.first_pixel_frame + pixel
                rows.append({"shot": number, "window": window, "border": name, "frame": frame})
    return rows


def _edges(shot: ShotPlan) -> Iterator[tuple[str, int, int]]:
    """Kind, window and latent frame of a shot's borders: where a window begins to count (in its
    first frame it has no weight, if another covers that), and where one ends."""
    for left, right in pairwise(shot.stages[-1].windows):
        yield "enters", right.index, min(right.start + 1, left.stop)
        yield "leaves", left.index, left.stop


def interiors(plan: Plan) -> dict[int, list[int]]:
    """By shot: where one latent frame ends and the next begins inside windows, in pixel frames of
    the film."""
    places = {}
    for number, shot in enumerate(plan.shots):
        edges = {latent for _, _, latent in _edges(shot)}
        pixels = (
            plan.geometry.pixel_range(latent, latent + 1)[0]
            for latent in range(2, shot.render.latent_frames)
            if latent not in edges
        )
        places[number] = [
            shot.first_pixel_frame + pixel for pixel in pixels if pixel < shot.render.pixel_frames
        ]
    return places
