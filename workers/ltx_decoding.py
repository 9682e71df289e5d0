"""Decoding an LTX-Video shot piece by piece.

LTX-Video's autoencoder keeps no context: its convolutions see frames to both sides, and repeat the
first and the last one at the ends of what they are given. So a piece is decoded with the latent
frames before and after it that can reach its pixels (``jobs.families.ltx.decode_reach``), and only
its own pixels are kept: they depend on what they depend on in a decode of the whole shot.

The rule for its bits: a piece is decoded in one call, of the frames that the plan says, whichever
worker decodes it; so they depend on the plan alone, and a shot of one piece has those of a whole
decode. Several pieces have them but for rounding: libraries choose a convolution's kernel, and with
it the order in which it adds up, by the number of frames too.

Shapes: z_BCTHW latents, x_BCFHW pixels, with B = 1.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLLTXVideo


def unnormalise(vae: AutoencoderKLLTXVideo, latents: torch.Tensor) -> torch.Tensor:
    """Finished latents, any dtype, to what the autoencoder decodes. In LTXPipeline's own
    arithmetic."""
    latents = latents.to(vae.device, vae.dtype)
    mean, std = (
        each.view(1, -1, 1, 1, 1).to(latents) for each in (vae.latents_mean, vae.latents_std)
    )
    return latents * std / vae.config.scaling_factor + mean


@torch.no_grad()
def decode_range(
    vae: AutoencoderKLLTXVideo, latents: torch.Tensor, warm_start: int, start: int
) -> torch.Tensor:
    """Pixels x_BCFHW of latent frames from ``start``; ``latents`` begin at ``warm_start``.

    A decode's first latent frame gives one pixel frame, all others r: those before ``start`` give
    1 + r * (start - warm_start - 1).
    """
    time = None
    if vae.config.timestep_conditioning:  # the pipeline's default: time 0, and none of the noise
        time = torch.zeros(1, device=vae.device, dtype=vae.dtype)
    pixels = vae.decode(unnormalise(vae, latents), time, return_dict=False)[0]
    skipped = 1 + vae.temporal_compression_ratio * (start - warm_start - 1)
    return pixels[:, :, skipped:] if start > warm_start else pixels


@torch.no_grad()
def measured_reach(vae: AutoencoderKLLTXVideo, around: int = 40) -> tuple[int, int]:
    """Latent frames before and after a piece that its pixels depend on.

    Measured by structure, not by value: a NaN in one latent frame reaches every pixel that depends
    on it, whatever the weights."""
    shape = (1, vae.config.latent_channels, 2 * around + 1, 1, 1)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(vae.device)
    latents[:, :, around] = torch.nan
    pixels = decode_range(vae, latents, 0, 0)[0, :, 1:]  # the first has a latent frame of its own
    bad = pixels.isnan().any(3).any(2).any(0).unflatten(0, (2 * around, -1)).any(1).nonzero() + 1
    first, last = int(bad.min()), int(bad.max())
    assert first > 1 and last < 2 * around, "the decoder sees farther than was looked"
    return last - around, around - first
