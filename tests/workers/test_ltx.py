"""LTX-Video: with one window and nothing accelerated, our chain is its pipeline, bit for bit."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, LTXPipeline

from accel.slicing import apply as apply_slicing
from jobs.accelerations import Slicing
from jobs.arrays import Bundle
from jobs.errors import BadJob, CannotRunHere, UnitError
from jobs.families.ltx import LTX, decode_reach
from jobs.model_folder import inspect_model
from jobs.spec_file import parse_spec
from jobs.units import ShotRender, Window
from orchestrator.prepare import prepare
from tests.marks import few
from tests.workers.test_animatediff import spoiled
from tests.workers.test_cogvideox import render
from tests.workers.test_conformance import WINDOWS, assert_overlaps_agree, assert_same_bits
from tests.workers.test_loras import write_lora
from tests.workers.tiny import CHANNELS, encode, piece_task, render_windows, tiny_worker
from tests.workers.tiny_ltx import (
    CAUSAL_VAE,
    LATER_VAE,
    SMALL_VAE,
    ltx_shot,
    tiny_vae,
    write_tiny_ltx,
)
from workers.bundles import to_tensor
from workers.families import open_family
from workers.families.ltx import LTXFamily
from workers.ltx_decoding import decode_range, unnormalise
from workers.noise import initial_noise
from workers.worker import Worker

CONFIGS = {"small": SMALL_VAE, "later": LATER_VAE, "causal": CAUSAL_VAE}
each_vae = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ltx(tmp_path_factory.mktemp("tiny") / "ltx")


def worker_of(folder: Path, **changes: object) -> Worker:
    return tiny_worker(folder, family="ltx", **changes)


def run_pipeline(
    folder: Path, shot: ShotRender, dtype=torch.float32, kind=LTXPipeline, **options: object
):
    pipeline = kind.from_pretrained(folder, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    scale = pipeline.vae_spatial_compression_ratio
    noise = initial_noise(shot, range(shot.latent_frames), CHANNELS)
    return pipeline(
        prompt=shot.prompt,
        negative_prompt=shot.negative_prompt,
        height=shot.latent_height * scale,
        width=shot.latent_width * scale,
        num_frames=shot.pixel_frames,
        frame_rate=shot.fps,
        num_inference_steps=shot.steps,
        guidance_scale=shot.guidance[0],
        max_sequence_length=shot.text_tokens,
        latents=LTXPipeline._pack_latents(noise),
        return_dict=False,
        **{"output_type": "latent"} | options,
    )[0]


def finished(done: dict[tuple[int, int], Bundle], shot: ShotRender) -> torch.Tensor:
    return to_tensor(done[0, shot.steps], "latents")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("guidance", few([3.0, 1.0], 3.0))
@pytest.mark.parametrize("fps", few([25, 8], 8))
def test_one_window_is_the_pipeline(folder: Path, guidance: float, dtype: str, fps: int) -> None:
    shot = ltx_shot(guidance=(guidance,), fps=fps)
    ours = finished(render_windows(worker_of(folder, dtype=dtype), shot, [Window(0, 0, 9)]), shot)
    theirs = run_pipeline(folder, shot, getattr(torch, dtype))
    assert ours.dtype == theirs.dtype == torch.float32
    assert torch.equal(LTXPipeline._pack_latents(ours), theirs)
    assert theirs.std() > 0.1, "a comparison of nothing"


def test_the_frame_rate_matters(folder: Path) -> None:
    slow, fast = (
        finished(render_windows(worker_of(folder), shot, [Window(0, 0, 9)]), shot)
        for shot in (ltx_shot(fps=8), ltx_shot(fps=25))
    )
    assert not torch.equal(slow, fast)


@pytest.mark.parametrize("config", [SMALL_VAE, LATER_VAE], ids=["small", "later"])
def test_decoded_frames_are_the_pipelines(tmp_path: Path, config) -> None:
    """A later autoencoder is conditioned on the time of its input, 0, and gets no noise."""
    folder = write_tiny_ltx(tmp_path / "ltx", config)
    r = 4 if config is LATER_VAE else 2
    shot = ltx_shot(stage_steps=(2,), pixel_frames=1 + 8 * r)
    latents = finished(render_windows(worker_of(folder), shot, [Window(0, 0, 9)]), shot)
    family = LTXFamily(str(folder), "float32", "cpu")
    ours = family.decode(piece_task(shot, 0, 9), latents)
    theirs = run_pipeline(folder, shot, output_type="pil")[0]
    assert len(theirs) == 1 + 8 * r
    assert np.array_equal(ours, np.stack([np.asarray(frame) for frame in theirs]))


@torch.no_grad()
def test_embeddings_are_the_pipelines(folder: Path) -> None:
    shot = ltx_shot(prompt="a ball", negative_prompt="grey", text_tokens=12)
    bundle = encode(worker_of(folder), shot)
    pipeline = LTXPipeline.from_pretrained(folder)
    told = pipeline.encode_prompt(shot.prompt, shot.negative_prompt, max_sequence_length=12)
    for name, theirs in zip(("cond", "cond.mask", "uncond", "uncond.mask"), told, strict=True):
        assert torch.equal(to_tensor(bundle, name), theirs.float()), name
    assert 0 < told[1].sum() < 12


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_windows_agree_and_order_changes_no_bit(folder: Path, dtype: str) -> None:
    shot, worker = ltx_shot(), worker_of(folder, dtype=dtype)
    forwards = render_windows(worker, shot, WINDOWS)
    assert_same_bits(forwards, render_windows(worker, shot, WINDOWS, backwards=True))
    for step in range(shot.steps + 1):
        assert_overlaps_agree({w: to_tensor(forwards[w.index, step], "latents") for w in WINDOWS})
    first, second = (to_tensor(forwards[i, 1], "prediction") for i in (0, 1))
    assert not torch.equal(first[:, :, 2:5], second[:, :, 0:3]), "blending made them agree"


def test_the_schedule_is_that_of_a_window_not_of_the_shot(folder: Path) -> None:
    """A long shot's own would be nothing but noise until its last step."""
    worker, one = worker_of(folder), ltx_shot(latent_frames=5, pixel_frames=9)
    render_windows(worker, ltx_shot(), WINDOWS)
    (long,) = worker._steppers.values()
    render_windows(worker, one, [Window(0, 0, 5)])
    assert list(worker._steppers.values()) == [long], "windows of 5 frames, as the whole of a shot"
    render_windows(worker, ltx_shot(), [Window(0, 0, 9)])
    _, longer = worker._steppers.values()
    assert not torch.equal(long.timesteps, longer.timesteps)


# -- decoding


def latents_of(latent_frames: int, size: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, CHANNELS, latent_frames, size, size, generator=generator)


@torch.no_grad()
def decode_whole(vae, latents: torch.Tensor) -> torch.Tensor:
    time = torch.zeros(1) if vae.config.timestep_conditioning else None
    return vae.decode(unnormalise(vae, latents), time, return_dict=False)[0]


@torch.no_grad()
def measured_reach(vae: AutoencoderKLLTXVideo, around: int = 40) -> tuple[int, int]:
    """Latent frames before and after a piece that its pixels depend on.

    Measured by structure, not by value: a NaN in one latent frame reaches every pixel that depends
    on it, whatever the weights."""
    shape = (1, vae.config.latent_channels, 2 * around + 1, 1, 1)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(vae.device)
    latents[:, :, around] = torch.nan
    # The first pixel frame has a latent frame of its own.
    pixels = decode_range(vae, latents, 0, 0, 2 * around + 1)[0, :, 1:]
    bad = pixels.isnan().any(3).any(2).any(0).unflatten(0, (2 * around, -1)).any(1).nonzero() + 1
    first, last = int(bad.min()), int(bad.max())
    assert first > 1 and last < 2 * around, "the decoder sees farther than was looked"
    return last - around, around - first


@each_vae
def test_measured_reach_is_the_estimate(config) -> None:
    vae = tiny_vae(config)
    assert measured_reach(vae) == decode_reach(vae.config)


@each_vae
def test_pieces_join_to_the_whole(config) -> None:
    vae = tiny_vae(config)
    (before, after), r = decode_reach(vae.config), vae.temporal_compression_ratio
    frames = before + after + 9
    latents, parts = latents_of(frames), []
    for start, stop in itertools.pairwise([0, 1, 4, before + 3, frames]):
        warm = max(0, start - before)
        parts.append(decode_range(vae, latents[:, :, warm : stop + after], warm, start, stop))
        assert parts[-1].shape[2] == (stop - start) * r - (r - 1) * (start == 0)
    whole, joined = decode_whole(vae, latents), torch.cat(parts, dim=2)
    assert joined.shape == whole.shape
    assert torch.allclose(joined, whole, rtol=0, atol=1e-5), "but for rounding"
    assert torch.equal(decode_range(vae, latents, 0, 0, frames), whole), (
        "a shot of one piece: its bits"
    )


@each_vae
def test_less_than_the_reach_is_too_little(config) -> None:
    """By structure: what a decode does not see, a NaN there cannot reach."""
    vae = tiny_vae(config)
    before, after = decode_reach(vae.config)
    latents, start = latents_of(before + after + 3, size=1), before + 1
    latents[:, :, 1] = torch.nan
    if after:
        latents[:, :, start + after] = torch.nan

    def blind(low: int, high: int) -> bool:
        return not decode_range(vae, latents[:, :, low:high], low, start, start + 1).isnan().any()

    assert blind(2, start + after + (not after))
    assert not blind(1, start + after + (not after))
    if after:
        assert not blind(2, start + after + 1)


# -- jobs


def job(folder: Path, **changes: object) -> dict[str, object]:
    said = {"model": str(folder), "prompt": "a", "pixel_frames": 57, "size": [32, 32], "seed": 1}
    return said | changes


def test_a_job_is_planned_from_its_configs(folder: Path) -> None:
    plan = prepare(parse_spec(job(folder))).plan
    shot = plan.shots[0].render
    assert plan.geometry.family == "ltx"
    assert (shot.latent_frames, shot.fps, shot.text_tokens) == (29, 25, 128)
    assert (shot.latent_height, shot.guidance, shot.steps) == (8, (3.0,), 50)
    assert plan.geometry.time_in_seconds, "another frame rate is another film"
    assert [(w.start, w.stop) for w in plan.shots[0].stages[0].windows] == [(0, 21), (8, 29)]
    assert plan.shots[0].pieces == ((0, 8), (8, 29))
    first, second = (plan.task(unit, 1) for unit in plan.goals())
    assert first.owned == ((0, 8), (8, 18)), "it looks ahead"
    assert (second.warm_start, second.owned) == (0, ((0, 8), (8, 29)))


def test_a_long_film_is_the_same_whoever_decodes_it(folder: Path) -> None:
    spec = job(folder, window_latent_frames=7, overlap_latent_frames=2, steps=2, text_tokens=12)
    plan = prepare(parse_spec(spec)).plan
    starts = [plan.warm_start(unit) for unit in plan.goals()]
    stops = [plan.read_stop(unit) for unit in plan.goals()]
    assert max(starts) > 0 and min(stops) < 29
    alone = render(plan, [worker_of(folder)])
    together = render(plan, [worker_of(folder, worker=f"w{i}") for i in range(3)])
    for ours, theirs in zip(alone, together, strict=True):
        assert ours.meta == theirs.meta
        assert ours.arrays["segment"].tobytes() == theirs.arrays["segment"].tobytes()
    hashes = [sha for each in alone for sha in json.loads(each.meta["frame_sha256"])]
    assert len(set(hashes)) == len(hashes) == 57
    firsts = [int(each.meta["first_pixel_frame"]) for each in alone]
    assert firsts == [plan.geometry.pixel_range(*piece)[0] for piece in plan.shots[0].pieces]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"flow_shift": 3.0}, "flow_shift: ltx models have no flow shift"),
        ({"scheduler": "unipc"}, "scheduler: .*valid: auto, euler"),
        ({"pyramid": 2}, "scheduler: .*has no pyramid.*use pyramid: off"),
        ({"size": [40, 32]}, r"size: .*multiples? of 32"),
    ],
)
def test_what_it_has_no_use_for_is_refused(folder: Path, changes: dict, says: str) -> None:
    with pytest.raises(BadJob, match=says):
        prepare(parse_spec(job(folder, **changes)))


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("transformer/config.json", {"patch_size": 2}, "patch_size 2 is not built; it must be 1"),
        ("transformer/config.json", {"in_channels": 8}, "takes 8 latent channels and gives 4"),
        ("transformer/config.json", {"caption_channels": 8}, "is 16, caption_channels is 8"),
        ("transformer/config.json", {"cross_attention_dim": 8}, "is 8, .*attention_head_dim is 32"),
        ("transformer/config.json", {"num_attention_heads": 0}, "num_attention_heads cannot be 0"),
        ("vae/config.json", {"patch_size_t": 2}, "vae: patch_size_t 2 is not built"),
        ("vae/config.json", {"decoder_inject_noise": [True, False, False]}, "decoder_inject_noise"),
        ("vae/config.json", {"decoder_layers_per_block": [1]}, "must have 3 values, not 1"),
        ("vae/config.json", {"temporal_compression_ratio": 8}, "is 8, but the decoder's .* make 2"),
        ("vae/config.json", {"patch_size": 4, "spatial_compression_ratio": 4}, "make 8"),
        ("longtake.json", {"format": 1, "flow_shift": 3.0}, "flow_shift: .* has none"),
        ("longtake.json", {"format": 1, "pyramid_steps": [1, 1]}, "pyramid is not built"),
        ("model_index.json", {"_class_name": "LTXImageToVideoPipeline"}, "not built; built:"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, file: str, changes: dict, says: str
) -> None:
    with pytest.raises(CannotRunHere, match=says):
        inspect_model(spoiled(folder, tmp_path, file, **changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stochastic_sampling": True}, "stochastic_sampling=True"),
        ({"use_dynamic_shifting": False}, "=False is not .*: true; .* be LTXConditionPipeline$"),
    ],
)
def test_schedulers_that_are_not_built_are_refused(
    folder: Path, tmp_path: Path, changes: dict, says: str
) -> None:
    copy = spoiled(folder, tmp_path, "scheduler/scheduler_config.json", **changes)
    with pytest.raises(BadJob, match=says):
        prepare(parse_spec(job(copy)))


def test_a_decode_gives_no_frames_that_it_only_looked_at(folder: Path) -> None:
    family, shot = LTXFamily(str(folder), "float32", "cpu"), ltx_shot(latent_frames=40)
    latents = latents_of(40)
    assert len(family.decode(piece_task(shot, 15, 18, 5), latents[:, :, 5:28])) == 2 * 3
    assert len(family.decode(piece_task(shot, 35, 38, 25), latents[:, :, 25:])) == 2 * 3, (
        "near the end, too"
    )


def test_a_prompt_that_would_lose_its_end_is_refused(folder: Path) -> None:
    shot = ltx_shot(prompt="a long walk on the beach", text_tokens=20)
    with pytest.raises(UnitError, match="has 25 tokens, and this model reads 20") as no:
        encode(worker_of(folder), shot)
    assert no.value.kind == "bad_job"


def test_the_first_releases_configs_say_little() -> None:
    """LTX-Video 0.9.0's autoencoder was saved before diffusers knew the decoder's settings."""
    configs = {
        "transformer": {
            "in_channels": 128,
            "out_channels": 128,
            "num_attention_heads": 32,
            "attention_head_dim": 64,
            "cross_attention_dim": 2048,
            "caption_channels": 4096,
        },
        "vae": {"latent_channels": 128, "patch_size": 4},
        "text_encoder": {"d_model": 4096},
    }
    geometry = LTX().geometry(configs, LTX.defaults)
    assert (geometry.spatial_scale, geometry.temporal_scale) == (32, 8)
    assert geometry.pixel_frames(21) == 161 and geometry.latent_frames(161) == 21
    assert (geometry.decode_context_latent_frames, geometry.decode_ahead_latent_frames) == (24, 24)


@each_vae
@torch.no_grad()
def test_pieces_in_slices(config) -> None:
    """But for the rounding of norms, whose statistics are float32's."""
    vae, latents = tiny_vae(config).double(), torch.randn(1, CHANNELS, 30, 5, 3).double()
    pieces = ((0, 0, 30), (0, 0, 2), (4, 15, 18), (15, 28, 30))
    whole = [decode_range(vae, latents[:, :, warm:], warm, *piece) for warm, *piece in pieces]
    apply_slicing(vae, Slicing(slices=4))
    for (warm, *piece), expected in zip(pieces, whole, strict=True):
        sliced = decode_range(vae, latents[:, :, warm:], warm, *piece)
        torch.testing.assert_close(sliced, expected, atol=1e-6, rtol=0)


def test_adapters_are_added_as_diffusers_adds_them(folder: Path, tmp_path: Path) -> None:
    file = write_lora("ltx", folder, tmp_path)
    ours = open_family("ltx", str(folder), "float32", "cpu", [(str(file), 0.5)]).denoiser
    pipeline = LTXPipeline.from_pretrained(folder)
    plain = {name: tensor.clone() for name, tensor in pipeline.transformer.named_parameters()}
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora(lora_scale=0.5)
    pipeline.unload_lora_weights()
    theirs = dict(pipeline.transformer.named_parameters())
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.named_parameters())
    assert any(not torch.equal(tensor, plain[name]) for name, tensor in ours.named_parameters())
