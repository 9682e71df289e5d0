"""Decoding in pieces, continued or warmed up, gives the bits of decoding in one go."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.video_processor import VideoProcessor

from jobs.families.wan_geometry import wan_decode_context
from tests.workers.tiny import PATCHED_VAE, RESIDUAL_VAE, SMALL_VAE, WAN_VAE, tiny_vae
from workers.decoding import NotFinite, decode_piece, measured_context, to_rgb8, unnormalise

CONFIGS = {
    "small": SMALL_VAE,
    "residual": RESIDUAL_VAE,
    "patched": PATCHED_VAE,
    "wan": WAN_VAE,
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def latents_of(vae, latent_frames: int, size: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, vae.config.z_dim, latent_frames, size, size, generator=generator)


@torch.no_grad()
def decode_whole(vae, latents: torch.Tensor) -> torch.Tensor:
    return vae.decode(unnormalise(vae, latents), return_dict=False)[0]


def pixels(vae, latents: torch.Tensor, warm_start: int, start: int, stop: int, lane=None):
    piece = latents[:, :, warm_start:stop]
    return decode_piece(vae, piece, warm_start=warm_start, start=start, lane=lane)


def rest(vae, latents: torch.Tensor, warm_start: int, start: int, stop: int) -> torch.Tensor:
    return pixels(vae, latents, warm_start, start, stop)[0]


@each_config
def test_measured_context_is_the_estimate(config) -> None:
    assert measured_context(tiny_vae(config)) == wan_decode_context(config)


@each_config
def test_pieces_join_to_the_whole(config) -> None:
    vae = tiny_vae(config)
    latents = latents_of(vae, 9)
    lane, parts = None, []
    for start, stop in [(0, 1), (1, 4), (4, 9)]:
        part, lane = pixels(vae, latents, 0, start, stop, lane)
        parts.append(part)
        assert lane.position == stop
    assert torch.equal(torch.cat(parts, dim=2), decode_whole(vae, latents))


@each_config
def test_warm_up_gives_the_same_bits(config) -> None:
    vae = tiny_vae(config)
    context = measured_context(vae)
    start = context + 2
    latents = latents_of(vae, start + 3)
    whole = decode_whole(vae, latents)
    warm = rest(vae, latents, 2, start, start + 3)
    assert torch.equal(warm, whole[:, :, -warm.shape[2] :])


@each_config
def test_one_frame_less_is_too_little(config) -> None:
    """By structure: a NaN in the first frame of the context reaches the piece, and a warm-up
    that starts after it does not know. (By value, so faint a path is lost in rounding.)"""
    vae = tiny_vae(config)
    context = measured_context(vae)
    latents = latents_of(vae, context + 3, size=2)
    latents[:, :, 2] = torch.nan  # `context` frames before the piece
    start, stop = context + 2, context + 3
    r = vae.config.scale_factor_temporal
    whole = decode_whole(vae, latents)[:, :, -r:]
    enough, too_little = rest(vae, latents, 2, start, stop), rest(vae, latents, 3, start, stop)
    assert whole.isnan().any()
    assert torch.equal(enough.isnan(), whole.isnan())
    assert not too_little.isnan().any()


def test_far_too_little_context_shows(tmp_path: Path) -> None:
    vae = tiny_vae(SMALL_VAE)
    latents = latents_of(vae, 12)
    cold = rest(vae, latents, 9, 9, 12)
    assert cold.shape[2] == 1 + 2 * 2, "a cold start decodes its first latent frame as one pixel"
    warm = rest(vae, latents, 8, 9, 12)
    assert not torch.equal(warm, decode_whole(vae, latents)[:, :, -6:])


def test_a_lane_never_continues_other_latents() -> None:
    vae = tiny_vae(SMALL_VAE)
    ours, theirs = latents_of(vae, 6), latents_of(vae, 6, seed=1)
    _, lane = pixels(vae, theirs, 0, 0, 3)
    assert lane.continues(theirs[:, :, :6], 0, 3)
    assert not lane.continues(ours[:, :, :6], 0, 3)
    assert not lane.continues(theirs[:, :, :6], 0, 4)
    assert not lane.continues(theirs[:, :, :6], 0, 0), "the first piece starts anew"
    part, _ = pixels(vae, ours, 0, 3, 6, lane)
    assert torch.equal(part, decode_whole(vae, ours)[:, :, -6:])


def test_a_lane_that_warmed_up_too_late_does_not_continue() -> None:
    vae = tiny_vae(SMALL_VAE)
    latents = latents_of(vae, 8)
    _, lane = pixels(vae, latents, 4, 5, 6)
    assert lane.continues(latents[:, :, 4:], 4, 6)
    assert not lane.continues(latents[:, :, 3:], 3, 6)


def test_rgb8_is_diffusers_pil_frames() -> None:
    values = torch.linspace(-1.0, 1.0, 3 * 8 * 16 * 16).reshape(1, 8, 3, 16, 16).transpose(1, 2)
    theirs = VideoProcessor().postprocess_video(values, output_type="pil")[0]
    for bad in (torch.nan, torch.inf):
        with pytest.raises(NotFinite, match="NaN or infinite"):
            to_rgb8(torch.where(values == values.max(), bad, values))
    ours = to_rgb8(values)
    assert ours.shape == (8, 16, 16, 3)
    assert np.array_equal(ours, np.stack([np.asarray(frame) for frame in theirs]))
    assert np.array_equal(
        to_rgb8(torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 3, 1, 1, 1)).ravel(), [0, 128, 255]
    )


def save_piece(path: str, warm_start: int, start: int, stop: int) -> None:
    vae = tiny_vae(SMALL_VAE)
    np.save(path, rest(vae, latents_of(vae, 40), warm_start, start, stop).numpy())


def test_three_processes_make_one_film(tmp_path: Path) -> None:
    """Forked, since an import of diffusers takes longer than all other tests of this file."""
    vae = tiny_vae(SMALL_VAE)
    context = measured_context(vae)
    assert context < 30, "the last piece must start cold"
    cuts = [(0, 0, 10), (0, 10, 30), (30 - context, 30, 40)]
    paths = [str(tmp_path / f"{i}.npy") for i in range(3)]
    fork = multiprocessing.get_context("fork")
    running = [
        fork.Process(target=save_piece, args=(path, *cut))
        for path, cut in zip(paths, cuts, strict=True)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0, 0]
    joined = np.concatenate([np.load(path) for path in paths], axis=2)
    assert np.array_equal(joined, decode_whole(vae, latents_of(vae, 40)).numpy())
