"""Window borders that shift: `fixed` makes the render's film, `shifted` stands nowhere long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.here import render_here
from benchmarks.shifting import decode, fixed, sample, shifted
from jobs.spec import JobSpec
from orchestrator.prepare import prepare
from tests.workers.tiny import write_tiny_wan
from workers.families import open_family


@pytest.mark.slow
def test_windows_that_stand_still_make_the_renders_film(tmp_path: Path) -> None:
    model = write_tiny_wan(tmp_path / "model")
    job = {
        "version": 1, "model": str(model), "prompt": "kite", "pixel_frames": 60, "size": [32, 32],
        "steps": 4, "pyramid": 2, "window_latent_frames": 5, "overlap_latent_frames": 2,
    }  # fmt: skip
    prepared = prepare(JobSpec.model_validate(job))
    shot = prepared.plan.shots[0].render
    family = open_family("wan", str(model), prepared.plan.dtype, "cpu")
    latents = sample(family, shot, fixed, 5, 2)
    assert np.array_equal(decode(family, 0, shot, latents), render_here(job).frames)
    assert not np.array_equal(sample(family, shot, shifted, 5, 2), latents)


@pytest.mark.parametrize("frames", [3, 9, 10, 14, 61])
def test_shifted_windows_cover_all_at_every_step(frames: int) -> None:
    laid = [shifted(frames, 9, 3, step) for step in range(4)]
    for windows in laid:
        assert {n for each in windows for n in range(each.start, each.stop)} == {*range(frames)}
        assert {each.latent_frames for each in windows} == {min(frames, 9)}
    inner = [{each.start for each in windows} - {0, frames - 9} for windows in laid]
    if frames > 30:
        assert not set.intersection(*inner), "a border stands still"
