"""CogVideoX's decoder: pieces join to the whole, bit for bit."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch

from accel import slicing
from jobs.accelerations import Slicing
from jobs.families.cogvideox import decode_context
from tests.workers.tiny import CHANNELS
from tests.workers.tiny_cogvideox import DEEP_VAE, SMALL_VAE, tiny_vae
from workers.cogvideox_decoding import CogVideoXLane, measured_context, scaled
from workers.lanes import go_on

each_vae = pytest.mark.parametrize("config", [SMALL_VAE, DEEP_VAE], ids=["small", "deep"])


def latents_of(latent_frames: int, size: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, CHANNELS, latent_frames, size, size, generator=generator)


@torch.no_grad()
def decode_whole(vae, latents: torch.Tensor) -> torch.Tensor:
    return vae.decode(scaled(vae, latents), return_dict=False)[0]


def rest(vae, latents: torch.Tensor, warm_start: int, start: int, stop: int) -> torch.Tensor:
    make, piece = partial(CogVideoXLane, vae), latents[:, :, warm_start:stop]
    return go_on(make, piece, warm_start=warm_start, start=start, lane=None)[0]


@each_vae
def test_measured_context_is_the_estimate(config) -> None:
    vae = tiny_vae(config)
    assert measured_context(vae) == decode_context(vae.config)


@each_vae
@pytest.mark.parametrize("slices", [None, 3])
@pytest.mark.parametrize("latent_frames", [1, 3, 9])
def test_pieces_join_to_the_whole(config, latent_frames: int, slices: int | None) -> None:
    vae, latents = tiny_vae(config), latents_of(latent_frames)
    if slices is not None:
        slicing.apply(vae, Slicing(slices=slices))
    lane, parts = None, []
    cuts = [cut for cut in (0, 3, 7) if cut < latent_frames] + [latent_frames]
    for start, stop in itertools.pairwise(cuts):
        part, lane = go_on(
            partial(CogVideoXLane, vae), latents[:, :, :stop], warm_start=0, start=start, lane=lane
        )
        parts.append(part)
        assert lane.position == stop
    whole = decode_whole(vae, latents)
    assert whole.shape[2] == 1 + vae.config.temporal_compression_ratio * (latent_frames - 1)
    assert torch.equal(torch.cat(parts, dim=2), whole)


@each_vae
def test_warm_up_gives_the_same_bits_and_less_is_too_little(config) -> None:
    """Too little by structure: a NaN in the first batch of the context reaches the piece, and a
    warm-up that starts after it does not know."""
    vae = tiny_vae(config)
    context = measured_context(vae)
    start, stop = context + 3, context + 5
    latents = latents_of(stop)
    whole = decode_whole(vae, latents)
    warm = rest(vae, latents, 3, start, stop)
    assert torch.equal(warm, whole[:, :, -warm.shape[2] :])
    latents[:, :, 3:5] = torch.nan
    assert rest(vae, latents, 3, start, stop).isnan().any()
    assert not rest(vae, latents, 5, start, stop).isnan().any()


def test_a_piece_that_cuts_a_batch_is_a_mistake_of_ours() -> None:
    vae, latents = tiny_vae(), latents_of(9)
    for start, stop in [(0, 4), (4, 6), (2, 4)]:
        with pytest.raises(AssertionError, match="whole batches"):
            rest(vae, latents, start, start, stop)
