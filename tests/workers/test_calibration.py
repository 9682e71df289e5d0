"""Calibration through what renders, and renders by the plan that it finds."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from accel.attention_search import Progress, Search, _Walk
from jobs.accelerations import Accelerations, FastAttention
from jobs.attention_plan import AttentionPlan, load
from jobs.errors import BadJob
from jobs.model_folder import inspect_model
from jobs.model_scheduler import choose_scheduler
from jobs.spec import resolve
from jobs.spec_file import parse_spec
from jobs.units import ShotRender, Window
from orchestrator.calibrated import job_keys
from orchestrator.prepare import prepare
from orchestrator.tile_memory import searched_bytes
from tests.marks import few
from tests.workers.test_conformance import assert_same_bits, finished
from tests.workers.test_pyramid import ended, run_all, shot_of
from tests.workers.tiny import (
    encode,
    render_windows,
    run_step,
    step_task,
    tiny_shot,
    tiny_worker,
)
from tests.workers.tiny_families import KINDS, tiny_family
from workers.calibration import (
    CalibrationSample,
    find_plans,
    shot_keys,
    token_grid,
)
from workers.families import open_family

SHOT = tiny_shot(latent_frames=5, pixel_frames=9, stage_steps=(4,))
WHOLE = [Window(0, 0, 5)]


@pytest.fixture
def family(tiny_wan: Path):
    return open_family("wan", str(tiny_wan), "float32", "cpu")


def by_plan(plan: AttentionPlan) -> Accelerations:
    return Accelerations(fast_attention=FastAttention(stages=(plan,)))


def through_all_steps(sample: CalibrationSample, shot: ShotRender) -> torch.Tensor:
    for _ in range(shot.steps):
        sample.advance(sample.predict(lambda name: nullcontext()))
    return sample.latents


@pytest.mark.parametrize("dtype", few(["float32", "bfloat16"], "float32"))
@pytest.mark.parametrize("kind", few(KINDS, "wan", "animatediff", "cogvideox-5b"))
def test_a_sample_goes_the_way_of_a_render(tmp_path: Path, kind: str, dtype: str) -> None:
    tiny = tiny_family(kind, tmp_path)
    shot, whole = tiny.shot, [Window(0, 0, tiny.shot.latent_frames)]
    sample = CalibrationSample(open_family(tiny.name, str(tiny.folder), dtype, "cpu"), shot)
    worker = tiny_worker(tiny.folder, family=tiny.name, dtype=dtype)
    rendered = finished(render_windows(worker, shot, whole), shot)
    ours = through_all_steps(sample, shot)
    assert ours.dtype == rendered.dtype and ours.float().std() > 0.1
    assert torch.equal(ours, rendered)


@pytest.mark.parametrize("scheduler", ["unipc", "euler"])
def test_a_sample_takes_the_first_window_of_every_stage(
    tiny_wan: Path, family, scheduler: str
) -> None:
    """Seven latent frames are four of the stage before; its second window has no part in these."""
    shot = shot_of(scheduler, stage_positions=True)
    stages = [[Window(0, 0, 4)], [Window(0, 0, 5)]]
    rendered = ended(run_all(tiny_worker(tiny_wan), shot, stages), 1)
    assert torch.equal(through_all_steps(CalibrationSample(family, shot, 5), shot), rendered)


GRIDS = {
    "wan": (5, 8, 8), "wan-ti2v": (5, 8, 8), "cogvideox-2b": (5, 8, 8), "cogvideox-5b": (5, 8, 8),
    "ltx": (5, 8, 8), "ltx-condition": (5, 8, 8), "hunyuan-video": (5, 2, 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", GRIDS)
def test_the_grid_of_tokens_is_that_of_a_pass(tmp_path: Path, kind: str) -> None:
    tiny = tiny_family(kind, tmp_path)
    family = open_family(tiny.name, str(tiny.folder), "float32", "cpu")
    sample = CalibrationSample(family, tiny.shot)
    before = sample.latents.clone()
    assert token_grid(family, sample) == GRIDS[kind]
    assert torch.equal(sample.latents, before)
    assert not family.denoiser._forward_pre_hooks


def test_a_found_plan_is_saved_under_its_key_and_goes_on_after_an_interruption(
    tiny_wan: Path, family, tmp_path: Path
) -> None:
    model = inspect_model(tiny_wan).identity
    shots = [SHOT, dataclasses.replace(SHOT, prompt="a blue star", seed=8)]
    how = {"delta": 0.02, "folder": tmp_path / "plans"}

    def stop(stage: int, progress: Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_plans(family, model, shots, progress=stop, **how)
    told: list[Progress] = []
    (found,) = find_plans(family, model, shots, progress=lambda stage, at: told.append(at), **how)
    plan = found.plan
    assert {p.step for p in told} == {2, 3}
    assert load(tmp_path / "plans", *shot_keys(family, model, SHOT)) == plan
    assert (plan.steps, plan.layers) == (4, 2)
    assert {s for row in plan.rows[1:] for s in row} != {"full"}
    assert all(loss < 0.02 for loss in found.losses)
    assert 0 < found.share_left < 1


def test_shots_of_different_kinds_have_no_plan_in_common(family, tmp_path: Path) -> None:
    shots = [SHOT, dataclasses.replace(SHOT, guidance=(1.0,))]
    with pytest.raises(BadJob, match="one size, schedule and guidance"):
        find_plans(family, "m", shots, delta=0.1, folder=tmp_path)


@pytest.mark.parametrize(
    "kind", few(["wan", "cogvideox-5b", "hunyuan-video", "animatediff"], "wan", "animatediff")
)
def test_jobs_look_for_what_was_calibrated_on_their_longest_shot(tmp_path: Path, kind: str) -> None:
    """It is not the first one, and has guidance where that has none; the scheduler is the model's,
    the window longer than the first stage."""
    tiny = tiny_family(kind, tmp_path)
    shots = [
        {"prompt": "a", "pixel_frames": 5, "guidance": 1.0}, {"prompt": "b", "pixel_frames": 29},
    ]  # fmt: skip
    spec = parse_spec(
        {"version": 1, "model": str(tiny.folder), "size": [64, 32], "shots": shots, "steps": 5}
        | {"window_latent_frames": 6, "overlap_latent_frames": 1}
        | ({"pyramid": 2, "scheduler": "euler", "flow_shift": 2.5} if kind == "wan" else {})
    )
    prepared = prepare(spec)
    model, render = prepared.model, prepared.plan.shots[1].render
    family = open_family(tiny.name, str(tiny.folder), "float32", "cpu")
    job = resolve(spec, model.geometry, model.defaults)
    scheduler = choose_scheduler(job.scheduler, model.configs["scheduler"], model.family.diffusion)
    found = job_keys(job, model, scheduler)
    assert found == shot_keys(family, model.identity, render, 6)
    assert found[-1].guided is (kind != "hunyuan-video")
    assert found[-1].latent_size[0] == 6
    assert {key.dtype for key in found} == {"float32"}
    halved = job_keys(dataclasses.replace(job, dtype="bfloat16"), model, scheduler)
    half = open_family(tiny.name, str(tiny.folder), "bfloat16", "cpu")
    assert halved == shot_keys(half, model.identity, render, 6) != found


def test_what_a_search_holds_is_as_estimated(tiny_wan: Path, family) -> None:
    spec = parse_spec(
        {"version": 1, "model": str(tiny_wan), "prompt": "a", "pixel_frames": 17, "size": [64, 32]}
        | {"steps": 3}
    )
    prepared = prepare(spec)
    model, shot = prepared.model, prepared.plan.shots[0].render
    walk = _Walk(
        family.denoiser,
        [CalibrationSample(family, shot)],
        Search(steps=3, window=(3, 1, 1), delta=0),
    )
    walk.take(("full", "full"))
    held = sum(tensor.nbytes for tensor in walk._carried[0].data.values())
    assert held == searched_bytes(resolve(spec, model.geometry, model.defaults), model, "float32")


# -- renders

F, W, FB, S = "full", "window", "full+share_branches", "share_steps"
PLAN = AttentionPlan(((F, F), (W, S), (S, FB), (W, S)), (3, 3, 3))


@pytest.mark.parametrize("dtype", few(["float32", "bfloat16"], "float32"))
def test_a_tile_may_change_its_worker_at_every_step(tiny_wan: Path, dtype: str) -> None:
    windows = [Window(0, 0, 5), Window(1, 3, 8)]
    shot = dataclasses.replace(SHOT, latent_frames=8, pixel_frames=15)
    options = {"dtype": dtype, "accelerations": by_plan(PLAN)}
    alone = render_windows(tiny_worker(tiny_wan, **options), shot, windows)
    workers = [tiny_worker(tiny_wan, **options) for _ in range(2)]
    embeddings, moved = encode(workers[0], shot), {}
    for step in range(shot.steps + 1):
        for window in windows:
            task = step_task(shot, windows, window.index, step)
            worker = workers[(step + window.index) % 2]
            moved[window.index, step] = run_step(worker, task, embeddings, moved)
    assert_same_bits(alone, moved)
    names = {n for n in alone[0, 0].arrays if n.startswith("accel.")}
    assert "accel.fast_attention.uncond.residual.0.0" in names
    plain = render_windows(tiny_worker(tiny_wan, dtype=dtype), shot, windows)
    assert not torch.equal(finished(alone, shot), finished(plain, shot))


def test_full_everywhere_is_the_render_without_it(tiny_wan: Path) -> None:
    full = by_plan(AttentionPlan(((F, F),) * 4, (3, 3, 3)))
    ours = render_windows(tiny_worker(tiny_wan, accelerations=full), SHOT, WHOLE)
    assert_same_bits(ours, render_windows(tiny_worker(tiny_wan), SHOT, WHOLE))


# -- pyramids


def test_every_stage_has_a_plan_and_goes_on_after_an_interruption(family, tmp_path: Path) -> None:
    shot = shot_of("unipc")  # 3 and 2 steps; 4 and 7 frames, of which a window has 5
    how = {"delta": 0.5, "folder": tmp_path, "window_latent_frames": 5}
    whole = find_plans(family, "m", [shot], **(how | {"folder": tmp_path / "whole"}))

    def stop(stage: int, progress: Progress) -> None:
        if (stage, progress.step) == (1, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_plans(family, "m", [shot], progress=stop, **how)
    told: list[tuple[int, int]] = []
    again = find_plans(
        family, "m", [shot], progress=lambda stage, at: told.append((stage, at.step)), **how
    )
    assert set(told) == {(1, 1)}, "all steps before were on file"
    assert again == whole
    keys = shot_keys(family, "m", shot, 5)
    assert [key.latent_size[0] for key in keys] == [4, 5]
    assert [key.steps for key in keys] == [3, 2]
    assert [load(tmp_path, key) for key in keys] == [found.plan for found in again]
    assert [found.plan.steps for found in again] == [3, 2]
    assert any(strategy != "full" for found in again for row in found.plan.rows for strategy in row)


def test_a_model_that_is_told_its_guidance_has_one_branch(tmp_path: Path) -> None:
    for kind, two in (("hunyuan-video", False), ("hunyuan-video-guided", True), ("ltx", True)):
        tiny = tiny_family(kind, tmp_path)
        family = open_family(tiny.name, str(tiny.folder), "float32", "cpu")
        (key,) = shot_keys(family, "m", tiny.shot)
        assert key.guided is two
