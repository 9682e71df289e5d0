"""Wan 2.2's 5B, given text alone: with one window and nothing accelerated, our chain is its
pipeline, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.model_folder import inspect_model
from jobs.units import ShotRender, Window
from tests.marks import few
from tests.workers.test_conformance import (
    WINDOWS,
    assert_overlaps_agree,
    assert_same_bits,
    finished,
    load_pipeline,
    run_pipeline,
    scheduler_as_a_user_would,
)
from tests.workers.tiny import (
    FLOW_SHIFT,
    piece_task,
    render_windows,
    tiny_shot,
    tiny_worker,
    write_tiny_wan_ti2v,
)
from workers.bundles import to_tensor
from workers.families.wan import WanTI2VFamily
from workers.worker import Worker

SCALE_PX = 4  # pixels per latent pixel of the tiny model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_wan_ti2v(tmp_path_factory.mktemp("tiny") / "wan")


def worker_of(folder: Path, **changes: object) -> Worker:
    return tiny_worker(folder, family="wan-ti2v", **changes)


def five_frames(**changes: object) -> ShotRender:
    return tiny_shot(**{"latent_frames": 5, "pixel_frames": 9} | changes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheduler", few(["unipc", "euler", "dpm++"], "unipc"))
@pytest.mark.parametrize("guidance", few([5.0, 1.0], 5.0))
def test_one_window_is_the_pipeline(
    folder: Path, scheduler: str, dtype: str, guidance: float
) -> None:
    shot = five_frames(scheduler=scheduler, guidance=(guidance,))
    ours = finished(render_windows(worker_of(folder, dtype=dtype), shot, [Window(0, 0, 5)]), shot)
    pipeline = load_pipeline(folder, getattr(torch, dtype))
    pipeline.scheduler = scheduler_as_a_user_would(scheduler, pipeline.scheduler.config, FLOW_SHIFT)
    assert pipeline.config.expand_timesteps
    theirs = run_pipeline(pipeline, shot, scale_px=SCALE_PX)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)
    assert theirs.float().std() > 0.1, "a comparison of nothing"


def test_decoded_frames_are_the_pipelines(folder: Path) -> None:
    shot = five_frames(stage_steps=(2,))
    latents = finished(render_windows(worker_of(folder), shot, [Window(0, 0, 5)]), shot)
    family = WanTI2VFamily(str(folder), "float32", "cpu")
    pieces = [
        family.decode(piece_task(shot, start, stop, start), latents[:, :, start:stop])
        for start, stop in ((0, 2), (2, 5))
    ]
    pipeline = load_pipeline(folder, torch.float32)
    theirs = run_pipeline(pipeline, shot, output_type="pil", scale_px=SCALE_PX)[0]
    assert np.array_equal(np.concatenate(pieces), np.stack([np.asarray(each) for each in theirs]))


def test_windows_agree_and_order_changes_no_bit(folder: Path) -> None:
    shot, worker = tiny_shot(stage_steps=(4,)), worker_of(folder)
    forwards = render_windows(worker, shot, WINDOWS)
    assert_same_bits(forwards, render_windows(worker, shot, WINDOWS, backwards=True))
    for step in range(shot.steps + 1):
        assert_overlaps_agree({w: to_tensor(forwards[w.index, step], "latents") for w in WINDOWS})


def test_a_job_gets_its_own_defaults(folder: Path) -> None:
    model = inspect_model(folder)
    assert model.family.name == model.geometry.family == "wan-ti2v"
    assert (model.defaults.size, model.defaults.fps) == ((1280, 704), 24)
    assert model.geometry.spatial_scale == SCALE_PX
