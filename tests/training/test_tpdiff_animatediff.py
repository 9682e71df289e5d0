"""Stage-wise training of an AnimateDiff folder: noise as DDIM has it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, DPMSolverMultistepScheduler
from safetensors.torch import load_file

from accel.pyramid import lay_stages
from benchmarks.here import render_here
from jobs.model_folder import inspect_model
from tests.training.test_tpdiff import run
from tests.workers.tiny_animatediff import write_tiny_animatediff
from training.tpdiff.batches import MicroBatches
from training.tpdiff.settings import Settings
from training.tpdiff.trainees import load_trainee
from training.tpdiff.videos import scan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_animatediff(tmp_path_factory.mktemp("model") / "animatediff")
    said = {"format": 1, "size": [32, 32], "fps": 12, "window_latent_frames": 5}
    (folder / "longtake.json").write_text(json.dumps(said | {"overlap_latent_frames": 1}))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_all_weights_are_trained_and_resumed(model: Path, data: Path, tmp_path: Path) -> None:
    whole = run(model, data, tmp_path / "whole", "--steps", "2", "--sample-every", "2",
                "--sample-steps", "4")  # fmt: skip
    halves = run(model, data, tmp_path / "halves", "--steps", "1")
    run(model, data, halves, "--steps", "2")
    before, after, again = (weights(each) for each in (model, whole / "model", halves / "model"))
    assert not torch.equal(before["conv_out.weight"], after["conv_out.weight"])
    assert all(torch.equal(tensor, again[name]) for name, tensor in after.items())
    info = inspect_model(whole / "model")
    assert (info.defaults.pyramid_steps, info.defaults.stage_positions) == ((1, 1), False)
    assert (whole / "samples" / "step_000002.png").stat().st_size > 1000


def test_pictures_of_a_scheduler_that_adds_noise(model: Path, data: Path, tmp_path: Path) -> None:
    noisy = shutil.copytree(model, tmp_path / "noisy")
    said = {"algorithm_type": "sde-dpmsolver++", "beta_schedule": "linear"}
    DPMSolverMultistepScheduler(**said).save_pretrained(noisy / "scheduler")
    index = json.loads((noisy / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DPMSolverMultistepScheduler"]
    (noisy / "model_index.json").write_text(json.dumps(index))
    out = run(noisy, data, tmp_path / "out", "--steps", "1", "--sample-every", "1",
              "--sample-steps", "4")  # fmt: skip
    assert (out / "samples" / "step_000001.png").stat().st_size > 1000


@pytest.mark.parametrize("scheduler", ["ddim", "sde-dpm++"])
def test_a_picture_is_a_frame_of_the_render(model: Path, scheduler: str) -> None:
    said = {"prompt": "a boat", "steps": 4, "pixel_frames": 5, "scheduler": scheduler}
    film = render_here({"model": str(model), "seed": 0, "pyramid": 2, **said})
    (shot,) = film.plan.shots
    trainee = load_trainee(str(model), "cpu", stages=2)
    clip = trainee.sample(shot.render, trainee.family.encode(shot.render))
    assert np.array_equal(clip, film.frames)


def test_an_adapter_is_diffusers_own(model: Path, data: Path, tmp_path: Path) -> None:
    out = run(model, data, tmp_path / "out", "--steps", "3", "--lora-rank", "2", "--merge",
              "--rate", "0.05", "--warmup-steps", "1")  # fmt: skip
    pipeline = AnimateDiffPipeline.from_pretrained(model)
    pipeline.load_lora_weights(out / "lora")
    torch.manual_seed(0)
    inputs = (torch.randn(1, 4, 3, 8, 8), torch.tensor([500]), torch.randn(3, 20, 16))
    merged = AnimateDiffPipeline.from_pretrained(out / "model")
    plain = AnimateDiffPipeline.from_pretrained(model)
    with torch.no_grad():
        theirs, ours, without = (
            each.unet(*inputs, return_dict=False)[0] for each in (pipeline, merged, plain)
        )
    assert torch.allclose(theirs, ours, atol=1e-4)
    assert not torch.allclose(without, ours, atol=1e-3)


def test_an_adapter_of_a_base_in_half_precision(model: Path, data: Path, tmp_path: Path) -> None:
    out = run(model, data, tmp_path / "out", "--steps", "1", "--lora-rank", "2", "--precision",
              "bf16", "--sample-every", "1", "--sample-steps", "2")  # fmt: skip
    adapter = load_file(out / "lora" / "pytorch_lora_weights.safetensors")
    assert adapter and {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in adapter.values())
    assert (out / "samples" / "step_000001.png").stat().st_size > 1000


def test_latents_are_what_a_render_decodes(model: Path) -> None:
    trainee = load_trainee(str(model), "cpu")
    frames = np.random.default_rng(0).integers(0, 255, (2, 5, 32, 32, 3), dtype=np.uint8)
    latents = trainee.encode(frames)
    assert latents.shape == (2, 4, 5, 16, 16)
    theirs = AnimateDiffPipeline.from_pretrained(model).vae.encode(
        torch.from_numpy(frames[1, 3:4].transpose(0, 3, 1, 2) / 127.5 - 1).float()
    )
    assert torch.allclose(latents[1, :, 3], 0.7 * theirs.latent_dist.mean[0], atol=1e-5)
    assert trainee.decode(latents[:1]).shape == (5, 32, 32, 3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_it_should_predict_is_what_the_scheduler_reads(model: Path, prediction: str) -> None:
    """With it, a step back to the clean clip gives the clean clip."""
    trainee = load_trainee(str(model), "cpu")
    trainee._prediction = prediction
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 4, 3, 2, 2, generator=generator) for _ in range(2))
    times = np.array([300.0, 700.0])
    scheduler = DDIMScheduler.from_config(
        dict(trainee.family.scheduler_config), prediction_type=prediction
    )
    scheduler.set_timesteps(10)
    target = trainee.target(times, clean, noise)
    for n, time in enumerate(times):
        mixed = scheduler.add_noise(clean[n], noise[n], torch.tensor([int(time)]))
        back = scheduler.step(target[n], int(time), mixed).pred_original_sample
        assert torch.allclose(back, clean[n], atol=1e-3)


def test_windows_begin_anywhere_and_need_no_picture_before(model: Path, data: Path) -> None:
    trainee = load_trainee(str(model), "cpu")
    videos, _ = scan(data, 0.4)
    settings = Settings(pixel_frames=3, fps=12, size=(32, 32), batch=1, stages=2)
    batches = MicroBatches(videos, settings, trainee.info.geometry, trainee.path)
    for number in range(10):
        drawn = batches.draw(number)
        assert not drawn.starts
        least = drawn.frames * lay_stages(trainee.path, 2)[drawn.stage].stride
        assert least <= drawn.frames_BFHWC.shape[1] <= least + 2


def test_longer_windows_than_it_has_positions_for_are_refused(
    model: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"--pixel-frames 17 .* at most 16"):
        run(model, data, tmp_path / "out", "--steps", "1", "--pixel-frames", "17")
