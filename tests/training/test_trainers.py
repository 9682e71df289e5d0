"""The trainers: whole clips agree with diffusers, drawn data is right, a stopped run goes on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from accel.pyramid import FlowPath, lay_stages
from training import trainer as trainers
from training import vae, wan, whole_clip, world
from training.draws import NoiseRecipe, draw, draw_sigmas, longest_clip
from training.latents import LatentCache, WanCodec, body_mask
from training.record import RECORD
from training.world import Background, Body, Scene

pytestmark = pytest.mark.slow

TINY = trainers.Recipe(reading_steps=2, tokens=180, clips=6, first_clips=4, odd_shapes=0.0)


def test_whole_clips_equal_diffusers_pieces() -> None:
    network = vae.new_vae().eval()
    x_BCFHW = vae.crops(np.random.default_rng(0), vae.VaeRecipe(batch=1, crop_px=32))
    with torch.no_grad():
        z_BCFHW = network.encode(x_BCFHW).latent_dist.mean
        y_BCFHW = network.decode(z_BCFHW).sample
        with whole_clip.whole_clips(network):
            whole_z_BCFHW = whole_clip.encode_mean(network, x_BCFHW)
            whole_y_BCFHW = whole_clip.decode(network, z_BCFHW)
        again_BCFHW = network.decode(z_BCFHW).sample
    assert torch.allclose(z_BCFHW, whole_z_BCFHW, atol=1e-5)
    assert torch.allclose(y_BCFHW, whole_y_BCFHW, atol=1e-5)
    assert torch.equal(y_BCFHW, again_BCFHW)


def test_latent_statistics_normalise_the_latents() -> None:
    network = vae.new_vae().eval()
    vae.measure_latents(network, clips=6, seed=5)
    rng = np.random.default_rng(5)
    frames = [world.render(world.sample_scene(rng), world.frame_times(5)) for _ in range(6)]
    z_BCFHW = WanCodec(network).encode(vae.to_signal(np.stack(frames)))
    assert z_BCFHW.mean(dim=(0, 2, 3, 4)).abs().max() < 0.05
    assert (z_BCFHW.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 0.05


def test_windows_start_where_they_should() -> None:
    cache = LatentCache(WanCodec(vae.new_vae().eval()), capacity=2, pixel_frames=9)
    cache.add(2)
    rng = np.random.default_rng(0)
    z_BCFHW, mask_B1FHW, captions = cache.windows(rng, 4, 3, starts=1.0)
    assert z_BCFHW.shape == (4, 8, 3, 24, 24) and len(captions) == 4
    assert mask_B1FHW.shape == (4, 1, 3, 24, 24)
    first = [clip[:, :3].float() for clip in cache.clips]
    assert all(any(torch.equal(z_CFHW, f) for f in first) for z_CFHW in z_BCFHW)
    z_BCFHW, _, _ = cache.windows(rng, 4, 3, starts=0.0)
    assert not any(any(torch.equal(z_CFHW, f) for f in first) for z_CFHW in z_BCFHW)


def test_a_mask_is_where_the_body_is() -> None:
    """It crosses the frame in 33 frames; its latents see one, then two pictures at a time."""
    body = Body(shape="square", colour="black", motion="right", phase=0.3, start=(0.5, 0.25))
    scene = Scene(bodies=(body,), background=Background(pattern="dotted", colour="pink"))
    times_s = world.frame_times(17)
    mask_FHW = body_mask(scene, world.render(scene, times_s), (2, 4))
    assert mask_FHW.shape == (9, 24, 24)
    columns = torch.arange(24) + 0.5
    seen_FW = mask_FHW.any(dim=1)
    middle_F = (seen_FW * columns).sum(dim=1) / seen_FW.sum(dim=1) / 24
    x_F = torch.from_numpy(world.pose(body, times_s).x_F)
    expected_F = torch.cat([x_F[:1], (x_F[1::2] + x_F[2::2]) / 2])
    assert (middle_F - expected_F).abs().max() < 0.03
    assert not mask_FHW[:, 14:].any(), "it stays in the upper half"


@pytest.mark.long
def test_bodies_weigh_more_at_first_and_not_in_the_end(tmp_path: Path) -> None:
    network = vae.new_vae().eval()

    def after(progress: float, weight: float) -> torch.Tensor:
        recipe = replace(TINY, body_weight=weight)
        trainer = wan.new_trainer(recipe, network, tmp_path)
        trainer.cache.add(4)
        trainer.train_step(progress)
        return trainer.model.transformer.proj_out.weight.detach().clone()

    assert not torch.equal(after(0.0, 6.0), after(0.0, 1.0))
    assert torch.equal(after(1.0, 6.0), after(1.0, 1.0))


@pytest.mark.parametrize("coarse", ["mean", "first"])
@pytest.mark.parametrize("starts", [0.0, 1.0])
def test_windows_of_a_pyramids_stages(starts: float, coarse: str) -> None:
    recipe = NoiseRecipe(stages=3, coarse=coarse)
    pixel_frames = 1 + 2 * (longest_clip(FlowPath(), 4, recipe) - 1)
    cache = LatentCache(WanCodec(vae.new_vae().eval()), capacity=2, pixel_frames=pixel_frames)
    cache.add(2)
    spans = [(stage.end.time, stage.start.time) for stage in lay_stages(FlowPath(), 3)]
    met = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        drawn = draw(FlowPath(), cache, rng, recipe, batch=5, frames=4, starts=starts)
        assert drawn.clean_BCFHW.shape == drawn.noisy_BCFHW.shape == (5, 8, 4, 24, 24)
        assert drawn.mask_B1FHW.shape == (5, 1, 4, 24, 24) and drawn.mask_B1FHW.any()
        low, high = drawn.times_B.min(), drawn.times_B.max()
        met |= {n for n, (end, start) in enumerate(spans) if end <= low and high <= start}
        assert not drawn.noise_BCFHW.isnan().any()
    assert met == {0, 1, 2}


@pytest.mark.long
def test_a_first_stage_is_trained_whole(tmp_path: Path) -> None:
    """In windows longer than any other stage's, which show what is at a quarter of the rate."""
    recipe = replace(
        TINY, window_latent_frames=3, noise=NoiseRecipe(stages=3),
        whole_films=1.0, film_latent_frames=9, first_films=1,
    )  # fmt: skip
    trainer = wan.new_trainer(recipe, vae.new_vae().eval(), tmp_path)
    before = trainer.model.transformer.proj_out.weight.detach().clone()
    trainer.train(2)
    assert not torch.equal(before, trainer.model.transformer.proj_out.weight)
    assert trainer.films.clips[0].shape[1] == 1 + 4 * 9
    first = lay_stages(FlowPath(), 3)[0]
    for seed in range(8):
        drawn, _ = trainer._draw(np.random.default_rng(seed), 0.0)
        assert 3 <= drawn.clean_BCFHW.shape[2] <= 9 and drawn.stride == 4
        assert first.end.time <= drawn.times_B.min() and drawn.times_B.max() <= first.start.time
    again = wan.new_trainer(recipe, vae.new_vae().eval(), tmp_path)
    again.resume()
    assert again.films.scenes == trainer.films.scenes


@pytest.mark.long
def test_a_pyramid_is_trained(tmp_path: Path) -> None:
    recipe = replace(TINY, window_latent_frames=4, noise=NoiseRecipe(stages=2))
    trainer = wan.new_trainer(recipe, vae.new_vae().eval(), tmp_path)
    before = trainer.model.transformer.proj_out.weight.detach().clone()
    trainer.train(2)
    assert not torch.equal(before, trainer.model.transformer.proj_out.weight)
    assert len(trainer.cache.clips[0][0]) == longest_clip(FlowPath(), 4, recipe.noise)


def test_sigmas_and_dropped_captions() -> None:
    rng = np.random.default_rng(0)
    sigma_B = draw_sigmas(rng, 4000, NoiseRecipe())
    assert sigma_B.min() > 0 and sigma_B.max() < 1
    assert 0.6 < sigma_B.mean() < 0.75
    spoiled = trainers.spoil(["a red star"] * 2000, rng, trainers.Recipe())
    assert 0.07 < spoiled.count("") / 2000 < 0.13


@pytest.mark.long
def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    network = vae.new_vae().eval()
    first = wan.new_trainer(TINY, network, tmp_path)
    first.train(2)
    second = wan.new_trainer(TINY, network, tmp_path)
    second.resume()
    assert second.step == 2
    for ours, theirs in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert second.cache.num_made == first.cache.num_made
    assert second.cache.scenes == first.cache.scenes


@pytest.mark.long
def test_trainings_say_how_they_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a stop, of both parts."""
    network = vae.new_vae().eval()
    begun = wan.new_trainer(TINY, network, tmp_path / "wan")
    begun.progress, begun.elapsed_s = [{"step": 0, "loss": 2.0}], 60.0
    begun.train(1)
    again = wan.new_trainer(TINY, network, tmp_path / "wan")
    again.resume()
    again.train(2)
    said = json.loads((tmp_path / "wan" / RECORD).read_text())
    assert said["steps"] == 2 and said["elapsed_s"] > 60 and "cores" in said["hardware"]
    assert said["progress"] == [{"step": 0, "loss": 2.0}]
    assert said["recipe"]["tokens"] == TINY.tokens
    monkeypatch.setattr(vae, "REPORTED_EVERY", 2)
    for steps in (2, 3):
        vae.train(tmp_path / "vae", vae.VaeRecipe(batch=1, pixel_frames=5, crop_px=32), steps)
    said = json.loads((tmp_path / "vae" / RECORD).read_text())
    assert said["steps"] == 3 and said["elapsed_s"] > 0
    assert [row["step"] for row in said["progress"]] == [2] and "psnr_db" in said["progress"][0]


@pytest.mark.parametrize("made", [2, 3, 5, 7])
def test_a_ring_of_clips_is_made_again(made: int) -> None:
    network = vae.new_vae().eval()
    first, second = (LatentCache(WanCodec(network), 3, pixel_frames=5) for _ in range(2))
    for _ in range(made):
        first.add(1)
    second.refill(made)
    assert second.scenes == first.scenes and second.num_made == made
    for ours, theirs in zip(first.clips, second.clips, strict=True):
        assert torch.allclose(ours.float(), theirs.float(), atol=0.05)


@pytest.mark.long
@pytest.mark.parametrize("change", [{"seed": 1}, {"window_latent_frames": 3}, {"clips": 5}])
def test_a_run_of_another_kind_is_refused(tmp_path: Path, change: dict) -> None:
    network = vae.new_vae().eval()
    wan.new_trainer(TINY, network, tmp_path).train(1)
    with pytest.raises(SystemExit, match=f"was begun with another {next(iter(change))}; train"):
        wan.new_trainer(replace(TINY, **change), network, tmp_path).resume()
    with pytest.raises(SystemExit, match="another autoencoder"):
        wan.new_trainer(TINY, vae.new_vae(seed=1).eval(), tmp_path).resume()


@pytest.mark.long
def test_a_decoder_is_sharpened_without_a_change_of_the_latents(tmp_path: Path) -> None:
    recipe = vae.VaeRecipe(batch=1, crop_px=32)
    first = vae.train(tmp_path / "first", recipe, 1)
    second = vae.train(tmp_path / "second", recipe, 2, decoder_only=True, init=tmp_path / "first")
    for name in ("latents_mean", "latents_std"):
        assert second.config[name] == first.config[name]
    x_BCFHW = vae.crops(np.random.default_rng(0), recipe)
    assert torch.equal(vae.encode(first, x_BCFHW), vae.encode(second, x_BCFHW))
    ours, theirs = (network.decoder.conv_in.weight for network in (first, second))
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_rates_end_low(progress: float) -> None:
    recipe = vae.VaeRecipe()
    assert 0 < vae.rate_at(progress, recipe) <= recipe.peak_rate
    assert vae.rate_at(1.0, recipe) == pytest.approx(recipe.final_rate)
    recipe = trainers.Recipe()
    assert trainers.rate_at(10_000, 1.0, recipe) == pytest.approx(recipe.final_rate)
