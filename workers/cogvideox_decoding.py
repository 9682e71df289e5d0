"""Decoding a CogVideoX shot piece by piece, with the same bits as decoding it in one go.

CogVideoX's autoencoder decodes batches of two latent frames, the first batch of a shot three:
(0, 1, 2), (3, 4), (5, 6), ... Its group normalisations take their statistics over a batch, so a
piece must be made of whole batches: the planner cuts there (``ModelGeometry.decode_border``). From
batch to batch its causal convolutions keep the last two frames of their input, and that is all that
passes; ``workers.lanes`` says how it goes from piece to piece, and
``jobs.families.cogvideox.decode_context`` how far it reaches.

A shot has an odd number of latent frames. Of an even one diffusers would make the first batch of
two, and its first latent frame four pixel frames instead of one: what the autoencoder's encoder
never makes.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX

from jobs.families.cogvideox import DECODE_BATCH_LATENT_FRAMES
from workers.lanes import Lane, moved


def scaled(vae: AutoencoderKLCogVideoX, latents: torch.Tensor) -> torch.Tensor:
    """Finished latents [B, C, T, H, W], any dtype, to what the autoencoder decodes. In
    CogVideoXPipeline's own arithmetic and memory layout, time before channels."""
    z_BTCHW = latents.to(vae.device, vae.dtype).transpose(1, 2).contiguous()
    return 1 / vae.config.scaling_factor * z_BTCHW.transpose(1, 2)


class CogVideoXLane(Lane):
    """The context of CogVideoX's autoencoder."""

    def __init__(self, vae: AutoencoderKLCogVideoX, start: int = 0) -> None:
        super().__init__(start)
        assert vae.num_latent_frames_batch_size == DECODE_BATCH_LATENT_FRAMES
        self._vae = vae
        self._cache: Any = None

    def next_batch(self) -> int:
        return DECODE_BATCH_LATENT_FRAMES + (self.position == 0)

    def decode_batch(self, latents: torch.Tensor) -> torch.Tensor:
        vae, frames = self._vae, latents.shape[2]
        whole = frames == self.next_batch() or (self.position, frames) == (0, 1)
        assert whole and (self.position == 0 or self.position % 2), "pieces are of whole batches"
        z = scaled(vae, latents)
        if vae.post_quant_conv is not None:
            z = vae.post_quant_conv(z)
        pixels, cache = vae.decoder(z, conv_cache=self._cache)
        self._cache = _read_again(cache)
        return pixels

    def to(self, device: torch.device | str) -> None:
        self._cache = moved(self._cache, device)


def _read_again(cache: dict[str, Any]) -> dict[str, Any]:
    """Without what convolutions of time width 1 keep, inside normalisations: they never read it,
    and it is nearly half of all."""
    return {
        name: _read_again(kept) if isinstance(kept, dict) else kept
        for name, kept in cache.items()
        if name not in ("conv_y", "conv_b")
    }


@torch.no_grad()
def measured_context(vae: AutoencoderKLCogVideoX, limit: int = 200) -> int:
    """How many latent frames before a piece its pixels depend on.

    Measured by structure, not by value: a NaN in one batch reaches every pixel that depends on it,
    whatever the weights."""
    batch = DECODE_BATCH_LATENT_FRAMES
    shape = (1, vae.config.latent_channels, batch, 2, 2)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(vae.device)
    lane = CogVideoXLane(vae, start=1 + batch)
    lane.decode(latents)
    lane.decode(latents * torch.nan)
    for distance in range(1, limit):
        if not torch.isnan(lane.decode(latents)).any():
            return (distance - 1) * batch
    raise AssertionError(f"the decoder depends on more than {limit} batches")
