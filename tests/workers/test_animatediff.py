"""AnimateDiff: with one window and nothing accelerated, our chain is its pipeline, bit for bit."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    MotionAdapter,
    UniPCMultistepScheduler,
)

from jobs.arrays import Bundle
from jobs.errors import BadJob, CannotRunHere, UnitError
from jobs.model_folder import inspect_model
from jobs.spec_file import parse_spec
from jobs.units import ShotRender, Window
from orchestrator.prepare import prepare
from tests.marks import few
from tests.workers.test_conformance import WINDOWS, assert_overlaps_agree, assert_same_bits
from tests.workers.test_pyramid import STEPS, ended, run_all
from tests.workers.tiny import CHANNELS, encode, piece_task, render_windows, tiny_worker
from tests.workers.tiny_animatediff import (
    SCALE_PX,
    TEXT_TOKENS,
    animatediff_shot,
    write_as_published,
    write_tiny_animatediff,
)
from workers.animatediff_folder import make_animatediff_folder
from workers.bundles import to_tensor
from workers.families.animatediff import AnimateDiffFamily
from workers.noise import frame_noise, initial_noise, step_noise
from workers.schedulers import build
from workers.worker import Worker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_animatediff(tmp_path_factory.mktemp("tiny") / "animatediff")


def worker_of(folder: Path, **changes: object) -> Worker:
    return tiny_worker(folder, family="animatediff", **changes)


SCHEDULERS_AS_DIFFUSERS = {
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
}


def run_pipeline(
    folder: Path, shot: ShotRender, scheduler: str = "ddim", adapters=(), **options: object
):
    pipeline = AnimateDiffPipeline.from_pretrained(folder)
    for lora, scale in adapters:
        pipeline.load_lora_weights(lora)
        pipeline.fuse_lora(lora_scale=scale)
        pipeline.unload_lora_weights()
    pipeline.set_progress_bar_config(disable=True)
    if scheduler in SCHEDULERS_AS_DIFFUSERS:
        theirs = SCHEDULERS_AS_DIFFUSERS[scheduler]
        pipeline.scheduler = theirs.from_config(pipeline.scheduler.config)
    if scheduler == "sde-dpm++":
        pipeline.scheduler = with_our_noise(shot, pipeline.scheduler.config)
    return pipeline(
        prompt=shot.prompt,
        negative_prompt=shot.negative_prompt,
        height=shot.latent_height * SCALE_PX,
        width=shot.latent_width * SCALE_PX,
        num_frames=shot.pixel_frames,
        num_inference_steps=shot.steps,
        guidance_scale=shot.guidance[0],
        latents=initial_noise(shot, range(shot.latent_frames), CHANNELS),
        return_dict=False,
        **{"output_type": "latent"} | options,
    )[0]


def with_our_noise(shot: ShotRender, config: Any) -> DPMSolverMultistepScheduler:
    """Diffusers' SDE solver, handed the noise that is drawn for us."""

    class Handed(DPMSolverMultistepScheduler):
        def step(self, model_output, timestep, sample, **options):
            done = self.step_index or 0
            noise = step_noise(shot, done, range(shot.latent_frames), CHANNELS)
            return super().step(model_output, timestep, sample, variance_noise=noise, **options)

    return Handed.from_config(config, algorithm_type="sde-dpmsolver++")


def finished(done: dict[tuple[int, int], Bundle], shot: ShotRender) -> torch.Tensor:
    return to_tensor(done[0, shot.steps], "latents")


@pytest.mark.parametrize("guidance", few([7.5, 1.0], 7.5))
@pytest.mark.parametrize("scheduler", ["ddim", "sde-dpm++", *SCHEDULERS_AS_DIFFUSERS])
def test_one_window_is_the_pipeline(folder: Path, scheduler: str, guidance: float) -> None:
    shot = animatediff_shot(scheduler=scheduler, guidance=(guidance,))
    ours = finished(render_windows(worker_of(folder), shot, [Window(0, 0, 9)]), shot)
    theirs = run_pipeline(folder, shot, scheduler)
    assert torch.equal(ours, theirs)
    assert theirs.std() > 0.1, "a comparison of nothing"


def test_decoded_frames_are_the_pipelines(folder: Path) -> None:
    shot = animatediff_shot(stage_steps=(2,))
    latents = finished(render_windows(worker_of(folder), shot, [Window(0, 0, 9)]), shot)
    family = AnimateDiffFamily(str(folder), "float32", "cpu")
    ours = family.decode(piece_task(shot, 0, latents.shape[2]), latents)
    theirs = run_pipeline(folder, shot, output_type="pil", decode_chunk_size=1)[0]
    assert np.array_equal(ours, np.stack([np.asarray(frame) for frame in theirs]))
    piece = family.decode(piece_task(shot, 5, 8, 3), latents[:, :, 3:8])
    assert np.array_equal(piece, ours[5:8]), "a piece has the frames of the whole"


def test_embeddings_are_the_pipelines(folder: Path) -> None:
    shot = animatediff_shot(prompt="  a &amp; b\n\n  c ")
    bundle = encode(worker_of(folder), shot)
    pipeline = AnimateDiffPipeline.from_pretrained(folder)
    cond, uncond = pipeline.encode_prompt(shot.prompt, "cpu", 1, True, shot.negative_prompt)
    assert torch.equal(to_tensor(bundle, "cond"), cond)
    assert torch.equal(to_tensor(bundle, "uncond"), uncond)
    assert not torch.equal(cond, uncond)


@pytest.mark.parametrize(
    ("scheduler", "dtype"),
    few(
        [
            ("ddim", "float32"),
            ("ddim", "bfloat16"),
            ("sde-dpm++", "float32"),
            ("unipc", "float32"),
            ("euler", "bfloat16"),
        ],
        ("ddim", "float32"),
    ),
)
def test_windows_agree_and_order_changes_no_bit(folder: Path, scheduler: str, dtype: str) -> None:
    shot = animatediff_shot(stage_steps=(4,), scheduler=scheduler)
    worker = worker_of(folder, dtype=dtype)
    forwards = render_windows(worker, shot, WINDOWS)
    assert_same_bits(forwards, render_windows(worker, shot, WINDOWS, backwards=True))
    for step in range(shot.steps + 1):
        assert_overlaps_agree({w: to_tensor(forwards[w.index, step], "latents") for w in WINDOWS})


ALPHAS = DDIMScheduler(beta_schedule="linear").alphas_cumprod.double()
#: The trained times that a pyramid of two stages with 3 and 2 steps goes through; see
#: tests/accel for the theory. Stage 1 starts where noise / signal is sqrt(2) times that at 500, and
#: ends as clean as this folder's schedulers do without a pyramid.
CLEAN = -1
TIMES = ((999, 833, 666, 500), (561, 280, CLEAN))


def levels(time: int) -> tuple[float, float]:
    if time == CLEAN:
        return 1.0, 0.0
    return math.sqrt(ALPHAS[time]), math.sqrt(1 - ALPHAS[time])


def steps_of(scheduler: str, times: tuple[int, ...]) -> Callable[..., torch.Tensor]:
    """Steps from time to time: DDIM's by its formula, others' by diffusers at these levels."""

    def by_formula(x: torch.Tensor, epsilon: torch.Tensor, time: int, after: int) -> torch.Tensor:
        (signal, amount), (signal_after, amount_after) = levels(time), levels(after)
        return signal_after * (x - amount * epsilon) / signal + amount_after * epsilon

    if scheduler == "ddim":
        return by_formula
    theirs = SCHEDULERS_AS_DIFFUSERS[scheduler](beta_schedule="linear")
    theirs.set_timesteps(len(times) - 1)
    theirs.timesteps = torch.tensor(times[:-1])
    theirs.sigmas = torch.tensor([amount / signal for signal, amount in map(levels, times)])
    return lambda x, epsilon, time, _: theirs.step(epsilon, time, x, return_dict=False)[0]


@torch.no_grad()
def plain_pyramid(worker: Worker, shot: ShotRender) -> list[torch.Tensor]:
    """What each stage ends with: one window over the whole shot."""
    embeddings = encode(worker, shot)
    text = torch.cat([to_tensor(embeddings, name) for name in ("uncond", "cond")])
    shape = (CHANNELS, shot.latent_height, shot.latent_width)

    def noise(purpose: str, stage: int) -> torch.Tensor:
        drawn = [frame_noise(shot.seed, n, purpose, stage, shape) for n in range(0, 9, 2)]
        return torch.from_numpy(np.stack(drawn, axis=1))[None]

    x, ends = noise("initial", 0), []
    for stage, times in enumerate(TIMES):
        if stage == 1:
            (signal_e, noise_e), (signal_s, noise_s) = levels(500), levels(561)
            scale = signal_s / signal_e
            fresh = math.sqrt(noise_s**2 - (scale * noise_e) ** 2) * noise("jump", 1)
            pairs = torch.stack([scale * x + fresh, scale * x - fresh], dim=3)
            x = pairs.flatten(2, 3)[:, :, :9]
        step = steps_of(shot.scheduler, times)
        for time, after in itertools.pairwise(times):
            frames = text.repeat_interleave(x.shape[2], dim=0)
            both = worker._family.denoiser(torch.cat([x, x]), time, frames, return_dict=False)[0]
            uncond, cond = both.chunk(2)
            epsilon = uncond + shot.guidance[0] * (cond - uncond)
            x = step(x, epsilon, time, after)
        ends.append(x)
    return ends


@pytest.mark.parametrize("scheduler", few(["ddim", "dpm++", "unipc"], "ddim"))
def test_a_pyramid_is_the_plain_loop(folder: Path, scheduler: str) -> None:
    assert levels(561)[1] / levels(561)[0] == pytest.approx(
        math.sqrt(2) * levels(500)[1] / levels(500)[0], rel=5e-3
    )
    shot = animatediff_shot(scheduler=scheduler, stage_steps=STEPS)
    worker = worker_of(folder)
    done = run_all(worker, shot, [[Window(0, 0, 5)], [Window(0, 0, 9)]], first_alone=False)
    for stage, theirs in enumerate(plain_pyramid(worker, shot)):
        ours = ended(done, stage)
        assert ours.shape == theirs.shape and ours.std() > 0.1
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-3 * theirs.abs().max().item())


@pytest.mark.parametrize("scheduler", few(["ddim", "sde-dpm++"], "ddim"))
def test_windows_of_a_pyramid_agree_in_any_order(folder: Path, scheduler: str) -> None:
    shot = animatediff_shot(stage_steps=STEPS, scheduler=scheduler)
    worker = worker_of(folder)
    stages = [[Window(0, 0, 3), Window(1, 1, 5)], [Window(0, 0, 5), Window(1, 4, 9)]]
    done = run_all(worker, shot, stages, first_alone=False)
    again = run_all(worker_of(folder), shot, stages, backwards=True, first_alone=False)
    for unit, bundle in done.items():
        for array in bundle.arrays:
            assert bundle.arrays[array].tobytes() == again[unit].arrays[array].tobytes(), unit


def job(folder: Path, **changes: object) -> dict[str, object]:
    return {"model": str(folder), "prompt": "a", "seconds": 4, "size": [32, 32]} | changes


def test_a_job_is_planned_from_its_configs(folder: Path) -> None:
    plan = prepare(parse_spec(job(folder))).plan
    shot = plan.shots[0].render
    assert plan.geometry.family == "animatediff"
    assert (shot.latent_frames, shot.fps, shot.text_tokens) == (32, 8, TEXT_TOKENS)
    assert (shot.latent_height, shot.guidance) == (16, (7.5,))
    assert [w.stop - w.start for w in plan.shots[0].stages[0].windows] == [16, 16, 16]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"flow_shift": 3.0}, "flow_shift: animatediff models have no flow shift"),
        ({"text_tokens": 77}, f"text_tokens: .* always has {TEXT_TOKENS}"),
        ({"scheduler": "cogvideox-dpm"}, "scheduler: .*valid: auto, ddim, dpm"),
        ({"pyramid": 3, "steps": 999}, "steps: .*trained times for 332 in each: use fewer"),
        ({"scheduler": "euler", "pyramid": 2}, "euler has no pyramid.*: ddim, dpm.*, unipc"),
        ({"window_latent_frames": 17}, "17 is more than this model has positions for; at most 16"),
        (
            {"pyramid": 2, "pyramid_first_stage": "whole", "seconds": 8.0},
            "pyramid_first_stage: whole, it has 32 frames, more than .* at most 16: cut the shot",
        ),
        (
            {"accelerations": {"fast_attention": {}}},
            "accelerations.fast_attention: animatediff models do not take fast_attention yet; they "
            "take slicing, adaptive, rehash",
        ),
    ],
)
def test_what_it_has_no_use_for_is_refused(folder: Path, changes: dict, says: str) -> None:
    with pytest.raises(BadJob, match=says):
        prepare(parse_spec(job(folder, **changes)))


def test_neither_part_of_what_is_published_is_taken_for_a_model(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    write_as_published(base, adapter)
    for part, says in ((base, "'StableDiffusionPipeline' is not"), (adapter, "adapter alone")):
        with pytest.raises(CannotRunHere, match=rf"(?s){says}.*longtake animatediff BASE ADAPTER"):
            inspect_model(part)


def test_the_folder_of_both_is_what_diffusers_makes_of_them(tmp_path: Path) -> None:
    base, adapter, made = (tmp_path / name for name in ("base", "adapter", "made"))
    write_as_published(base, adapter)
    make_animatediff_folder(base, adapter, made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "made"]
    pipeline = AnimateDiffPipeline.from_pretrained(
        base,
        motion_adapter=MotionAdapter.from_pretrained(adapter),
        scheduler=DDIMScheduler.from_pretrained(
            base,
            subfolder="scheduler",
            beta_schedule="linear",
            clip_sample=False,
            steps_offset=1,
            timestep_spacing="linspace",
        ),
    )
    pipeline.save_pretrained(tmp_path / "theirs")
    shot = animatediff_shot()
    ours = finished(render_windows(worker_of(made), shot, [Window(0, 0, 9)]), shot)
    assert torch.equal(ours, run_pipeline(tmp_path / "theirs", shot))


def spoiled(folder: Path, tmp_path: Path, file: str, **changes: object) -> Path:
    copy = tmp_path / "spoiled"
    for path in folder.rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    target = copy / file
    old = json.loads(target.read_text()) if target.exists() else {}
    target.write_text(json.dumps(old | changes))
    return copy


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("model_index.json", {"unet": ["diffusers", "UNet2DConditionModel"]}, "UNetMotionModel"),
        ("model_index.json", {"image_encoder": ["a", "b"]}, "image_encoder .* not built"),
        ("longtake.json", {"format": 1, "flow_shift": 3.0}, "flow_shift: .* have none"),
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "motion adapter"),
        ("unet/config.json", {"cross_attention_dim": 32}, "hidden_size is 16, .* is 32"),
        ("unet/config.json", {"in_channels": 9}, "takes 9 latent channels and gives 4"),
        ("unet/config.json", {"block_out_channels": 8}, "block_out_channels cannot be 8"),
        ("longtake.json", {"format": 1, "stage_positions": True}, "must be false"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, file: str, changes: dict, says: str
) -> None:
    with pytest.raises(CannotRunHere, match=says):
        inspect_model(spoiled(folder, tmp_path, file, **changes))


def test_a_feature_extractor_is_no_matter(folder: Path, tmp_path: Path) -> None:
    """Stable Diffusion's repositories have one, and diffusers saves it with the pipeline."""
    extractor = ["transformers", "CLIPImageProcessor"]
    copy = spoiled(folder, tmp_path, "model_index.json", feature_extractor=extractor)
    assert inspect_model(copy).family.name == "animatediff"


def test_a_prompt_that_would_lose_its_end_is_refused(folder: Path) -> None:
    shot = animatediff_shot(prompt="a long walk on the beach")
    with pytest.raises(
        UnitError, match=r"has 25 tokens, and this model reads 20; shorten it"
    ) as no:
        encode(worker_of(folder), shot)
    assert no.value.kind == "bad_job"


def test_ddim_that_a_job_names_does_not_clip_latents() -> None:
    euler = {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "linear"}
    assert build("ddim", euler, diffusion="variance")[1].config.clip_sample is False
    said = euler | {"clip_sample": True}
    assert build("ddim", said, diffusion="variance")[1].config.clip_sample is True
    own = {"_class_name": "DDIMScheduler"}
    assert build("auto", own, diffusion="variance")[1].config.clip_sample is True, "as diffusers"


def test_a_budget_gives_the_slices_and_what_is_planned_keeps_to_it(folder: Path) -> None:
    def planned(**slicing: object):
        asked = {"slicing": slicing}
        spec = {"version": 1, "model": str(folder), "prompt": "a", "pixel_frames": 8, "steps": 2}
        return prepare(parse_spec(spec | {"size": [64, 64], "accelerations": asked}))

    few = planned(slices=2).plan
    budget = (few.model_bytes + few.tile_bytes) * 0.7
    plan = planned(budget_gb=budget / 1e9).plan
    slices = plan.accelerations.slicing.slices
    assert slices > 2
    assert "budget_gb" not in plan.accelerations.recipe()["slicing"]
    assert plan.accelerations.recipe() == planned(slices=slices).plan.accelerations.recipe()
    with pytest.raises(BadJob, match=r"slicing.budget_gb: slicing cannot bring the model under"):
        planned(budget_gb=plan.model_bytes / 1e9)
