"""With one window and nothing accelerated, our chain is WanPipeline, bit for bit."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
)

from jobs.arrays import Bundle
from jobs.units import ShotRender, Window
from tests.marks import few
from tests.workers.tiny import CHANNELS, FLOW_SHIFT, encode, render_windows, tiny_shot, tiny_worker
from workers.bundles import to_tensor
from workers.decoding import unnormalise
from workers.noise import initial_noise

SCALE_PX = 2  # pixels per latent pixel of the tiny model


def scheduler_as_a_user_would(name: str, config: dict, shift: float):
    if name == "unipc":
        return UniPCMultistepScheduler.from_config(config, flow_shift=shift)
    if name == "euler":
        return FlowMatchEulerDiscreteScheduler.from_config(config, shift=shift)
    return DPMSolverMultistepScheduler.from_config(
        config, flow_shift=shift, use_flow_sigmas=True, prediction_type="flow_prediction"
    )


def load_pipeline(folder: Path, dtype: torch.dtype) -> WanPipeline:
    vae = AutoencoderKLWan.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
    pipeline = WanPipeline.from_pretrained(folder, vae=vae, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_pipeline(
    pipeline: WanPipeline, shot: ShotRender, output_type: str = "latent", scale_px: int = SCALE_PX
):
    return pipeline(
        prompt=shot.prompt,
        negative_prompt=shot.negative_prompt,
        height=shot.latent_height * scale_px,
        width=shot.latent_width * scale_px,
        num_frames=shot.pixel_frames,
        num_inference_steps=shot.steps,
        guidance_scale=shot.guidance[0],
        max_sequence_length=shot.text_tokens,
        latents=initial_noise(shot, range(shot.latent_frames), CHANNELS),
        output_type=output_type,
        return_dict=False,
    )[0]


def finished(done: dict[tuple[int, int], Bundle], shot: ShotRender, window: int = 0):
    return to_tensor(done[window, shot.steps], "latents")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheduler", ["unipc", "euler", "dpm++"])
@pytest.mark.parametrize("shift", few([None, 5.0], None))
def test_one_window_is_the_pipeline(tiny_wan: Path, scheduler: str, dtype: str, shift) -> None:
    shot = tiny_shot(scheduler=scheduler, flow_shift=shift, latent_frames=5, pixel_frames=9)
    worker = tiny_worker(tiny_wan, dtype=dtype)
    ours = finished(render_windows(worker, shot, [Window(0, 0, 5)]), shot)

    pipeline = load_pipeline(tiny_wan, getattr(torch, dtype))
    pipeline.scheduler = scheduler_as_a_user_would(
        scheduler, pipeline.scheduler.config, shift or FLOW_SHIFT
    )
    theirs = run_pipeline(pipeline, shot)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)
    assert theirs.float().std() > 0.1, "a comparison of nothing"


@pytest.mark.parametrize("guidance", [1.0, 0.0])
def test_guidance_off_is_the_pipeline(tiny_wan: Path, guidance: float) -> None:
    shot = tiny_shot(guidance=(guidance,), latent_frames=3, pixel_frames=5, scheduler="auto")
    worker = tiny_worker(tiny_wan)
    done = render_windows(worker, shot, [Window(0, 0, 3)])
    assert torch.equal(
        finished(done, shot), run_pipeline(load_pipeline(tiny_wan, torch.float32), shot)
    )


@torch.no_grad()
def test_embeddings_are_the_pipelines(tiny_wan: Path) -> None:
    shot = tiny_shot(prompt="  a &amp; b\n\n  c ", text_tokens=12)
    bundle = encode(tiny_worker(tiny_wan, dtype="bfloat16"), shot)
    cond, uncond = load_pipeline(tiny_wan, torch.bfloat16).encode_prompt(
        shot.prompt, shot.negative_prompt, max_sequence_length=12
    )
    assert torch.equal(to_tensor(bundle, "cond"), cond)
    assert torch.equal(to_tensor(bundle, "uncond"), uncond)
    assert not torch.equal(cond, uncond)


def test_what_the_vae_gets_is_the_pipelines(tiny_wan: Path, monkeypatch) -> None:
    """Bit for bit; a comparison of 8-bit pixels alone would miss a last bit."""
    shot = tiny_shot(stage_steps=(2,), latent_frames=3, pixel_frames=5)
    pipeline = load_pipeline(tiny_wan, torch.float32)
    latents = run_pipeline(pipeline, shot)
    decoded, plain = [], pipeline.vae.decode
    monkeypatch.setattr(
        pipeline.vae, "decode", lambda z, **k: (decoded.append(z), plain(z, **k))[1]
    )
    run_pipeline(pipeline, shot, output_type="pt")
    assert torch.equal(unnormalise(pipeline.vae, latents), decoded[0])


WINDOWS = [Window(0, 0, 5), Window(1, 2, 7), Window(2, 4, 9)]  # latent frame 4 lies in all three


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheduler", ["unipc", "euler", "dpm++"])
def test_windows_agree_and_order_changes_no_bit(tiny_wan: Path, scheduler: str, dtype: str) -> None:
    shot = tiny_shot(scheduler=scheduler, stage_steps=(4,))
    worker = tiny_worker(tiny_wan, dtype=dtype)
    forwards = render_windows(worker, shot, WINDOWS)
    backwards = render_windows(worker, shot, WINDOWS, backwards=True)
    assert_same_bits(forwards, backwards)
    for step in range(shot.steps + 1):
        assert_overlaps_agree({w: to_tensor(forwards[w.index, step], "latents") for w in WINDOWS})


def assert_same_bits(ours: dict[tuple[int, int], Bundle], theirs: dict[tuple[int, int], Bundle]):
    for key, bundle in ours.items():
        assert bundle.arrays.keys() == theirs[key].arrays.keys()
        for name, array in bundle.arrays.items():
            assert array.tobytes() == theirs[key].arrays[name].tobytes(), (key, name)


def assert_overlaps_agree(latents: dict[Window, torch.Tensor]) -> None:
    for first, second in itertools.combinations(latents, 2):
        a, b = max(first.start, second.start), min(first.stop, second.stop)
        assert a < b, "these windows overlap"
        assert torch.equal(
            latents[first][:, :, a - first.start : b - first.start],
            latents[second][:, :, a - second.start : b - second.start],
        ), (first, second)


def test_predictions_differ_where_windows_overlap(tiny_wan: Path) -> None:
    """So that the agreement above comes from blending, not from windows that see the same."""
    done = render_windows(tiny_worker(tiny_wan), tiny_shot(stage_steps=(2,)), WINDOWS)
    first, second = (to_tensor(done[i, 1], "prediction") for i in (0, 1))
    assert not torch.equal(first[:, :, 2:5], second[:, :, 0:3])
