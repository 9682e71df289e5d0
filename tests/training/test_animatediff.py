"""AnimateDiff's training: pictures leave motion alone, stages of a pyramid are drawn from its own
schedule, and what it leaves is an ordinary folder that renders."""

import copy
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline

from accel.pyramid import lay_stages
from jobs.model_folder import inspect_model
from tests.marks import few
from training import animatediff, demo_model, picture_vae, reading
from training.animatediff import AnimateDiffStudent
from training.draws import Draw, NoiseRecipe, draw, longest_clip
from training.latents import LatentCache, PictureCodec
from training.text import CLIP_TOKENS, new_clip_encoder, new_tokenizer
from training.trainer import Recipe, Trainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vae")
    picture_vae.train(out, steps=1)
    return out


@pytest.fixture
def codec(vae_folder: Path) -> PictureCodec:
    return PictureCodec(picture_vae.AutoencoderKL.from_pretrained(vae_folder))


def tiny(frames: int, stages: int = 1) -> Recipe:
    recipe = animatediff.new_recipe(frames, noise=NoiseRecipe(stages=stages), reading_steps=2)
    return replace(
        recipe, tokens=144 * frames * 2, clips=4, first_clips=4, least_clip_frames=frames
    )


def trainer_of(out: Path, codec: PictureCodec, frames: int, stages: int = 1) -> Trainer:
    return animatediff.new_trainer(tiny(frames, stages), codec.vae, out)


@pytest.mark.long
def test_latents_are_normalised_and_decode_to_what_they_were(codec: PictureCodec) -> None:
    cache = LatentCache(codec, capacity=64, pixel_frames=3)
    cache.add(64)
    z = torch.stack(cache.clips).float()
    assert z.shape == (64, picture_vae.CHANNELS, 3, 12, 12)
    assert z.mean((0, 2, 3, 4)).abs().max() < 0.3
    assert (z.std((0, 2, 3, 4)) - 1).abs().max() < 0.3


def test_its_target_is_what_its_own_scheduler_calls_velocity() -> None:
    clean, noise = torch.randn(2, 3, 4, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    times, path = torch.tensor([0.0, 500.0, 999.0]), AnimateDiffStudent.path
    drawn = Draw(
        clean_BCFHW=clean, noise_BCFHW=noise, path=path, times_B=times,
        mask_B1FHW=torch.zeros(3, 1, 5, 2, 2), captions=[""] * 3,
    )  # fmt: skip
    theirs = animatediff.SCHEDULER.get_velocity(clean, noise, times.long())
    _, student = animatediff.new_model()
    assert torch.allclose(student.target(drawn), theirs, rtol=0, atol=1e-6)
    assert animatediff.SCHEDULER.config.prediction_type == "v_prediction"


def test_no_step_of_its_schedule_is_idle() -> None:
    scheduler = copy.deepcopy(animatediff.SCHEDULER)
    scheduler.set_timesteps(20)
    times = [int(t) for t in scheduler.timesteps]
    assert times[0] == 999 and times[-1] == 49, "the last step leads from there to the clip"
    assert {a - b for a, b in itertools.pairwise(times)} == {50}


@pytest.mark.long
def test_pictures_leave_motion_alone(tmp_path: Path, codec: PictureCodec) -> None:
    trainer = trainer_of(tmp_path, codec, frames=1)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train(2)
    motion = {id(p) for module in trainer.model._motion() for p in module.parameters()}
    after = dict(trainer.model.named_parameters())
    moved = {name for name, old in before.items() if not torch.equal(old, after[name])}
    assert moved and all(name.startswith("unet.") for name in moved)
    assert motion and not {name for name in moved if id(after[name]) in motion}
    assert all(not module.proj_out.weight.any() for module in trainer.model._motion())


def test_motion_that_adds_nothing_sees_frames_one_by_one() -> None:
    """So that what was learned from pictures holds for clips."""
    _, student = animatediff.new_model()
    torch.nn.init.normal_(student.unet.conv_out.weight)
    x, ids = torch.randn(1, picture_vae.CHANNELS, 3, 12, 12), torch.ones(1, CLIP_TOKENS).long()
    times = torch.tensor([400.0])
    with torch.no_grad():
        clip = student(x, times, ids, ids, stride=1)
        frame = student(x[:, :, 1:2], times, ids, ids, stride=1)
    assert torch.allclose(clip[:, :, 1:2], frame, atol=1e-4)


def test_a_pyramids_windows_come_from_its_own_schedule(codec: PictureCodec) -> None:
    path, recipe = AnimateDiffStudent.path, NoiseRecipe(stages=3)
    cache = LatentCache(codec, 2, longest_clip(path, 4, recipe))
    cache.add(2)
    spans, met = [(s.end.time, s.start.time) for s in lay_stages(path, 3)], set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        drawn = draw(path, cache, rng, recipe, batch=3, frames=4, starts=0.0)
        assert drawn.clean_BCFHW.shape == (3, picture_vae.CHANNELS, 4, 12, 12)
        assert torch.equal(drawn.times_B, drawn.times_B.round()), "whole, trained times"
        low, high = drawn.times_B.min(), drawn.times_B.max()
        met |= {n for n, (end, start) in enumerate(spans) if end <= low and high <= start}
    assert met == {0, 1, 2}


@pytest.mark.parametrize("stages", few([1, 2], 2))
def test_what_it_leaves_is_a_folder_that_renders(
    tmp_path: Path, codec: PictureCodec, vae_folder: Path, stages: int
) -> None:
    run = tmp_path / "run"
    trainer = trainer_of(run, codec, frames=4, stages=stages)
    trainer.train(2)
    again = trainer_of(run, codec, frames=4, stages=stages)
    again.resume()
    assert again.step == 2
    out = tmp_path / "model"
    demo_model.assemble_animatediff(run, vae_folder, out)
    info = inspect_model(out)
    assert info.family.name == "animatediff"
    assert info.defaults.pyramid_steps == ((1,) * stages if stages > 1 else ())
    assert (info.defaults.text_tokens, info.defaults.window_latent_frames) == (CLIP_TOKENS, 16)
    size_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert size_bytes < 20_000_000
    pipeline = AnimateDiffPipeline.from_pretrained(out)
    pipeline.set_progress_bar_config(disable=True)
    told = {"prompt": "a red star spins on blue dots", "num_inference_steps": 2}
    frames = pipeline(**told, num_frames=4, height=96, width=96, output_type="np").frames
    assert frames.shape == (1, 4, 96, 96, 3) and np.isfinite(frames).all()


@pytest.mark.long
def test_the_encoder_learns_to_read() -> None:
    tokenizer = new_tokenizer(CLIP_TOKENS)
    torch.manual_seed(0)
    encoder = new_clip_encoder(len(tokenizer), width=64, layers=2)
    told = reading.teach_to_read(encoder, tokenizer, steps=60, seed=0, batch=16)
    assert sum(told.values()) / len(told) > 0.4
