"""Decoding a shot piece by piece, with the same bits as decoding it in one go.

Wan's VAE decodes latent frame after latent frame; ``workers.lanes`` says how its context goes from
piece to piece. A lane without context warms up over ``measured_context`` latent frames.

One layer, ``post_quant_conv``, diffusers applies to all frames at once. It looks at one place of
one frame only, so doing it frame by frame gives the same bits, as long as the kernel adds up its
few channels in the same order. On CPUs it does for latents of 4 x 4 and more; for smaller ones,
which no film has, oneDNN may choose another kernel for many frames than for one.

Shapes: z_BCTHW latents, x_BCFHW pixels, with B = 1.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify

from workers.lanes import Lane, go_on, moved


def unnormalise(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Finished latents, any dtype, to what the VAE decodes. In WanPipeline's own arithmetic,
    the reciprocal included: dividing by it is not multiplying by the deviation."""
    latents = latents.to(vae.device, vae.dtype)
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents.device, latents.dtype)
    std = torch.tensor(vae.config.latents_std).view(shape).to(latents.device, latents.dtype)
    return latents / (1.0 / std) + mean


class DecodeLane(Lane):
    """The context of Wan's VAE, which decodes one latent frame at a time."""

    def __init__(self, vae: AutoencoderKLWan, start: int = 0) -> None:
        super().__init__(start)
        self._vae = vae
        convolutions = sum(isinstance(m, WanCausalConv3d) for m in vae.decoder.modules())
        self._features: list[Any] = [None] * convolutions

    def next_batch(self) -> int:
        return 1

    def decode_batch(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self._vae
        x = vae.decoder(
            vae.post_quant_conv(unnormalise(vae, latents)),
            feat_cache=self._features,
            feat_idx=[0],
            first_chunk=not self._seen,
        )
        if vae.config.patch_size is not None:
            x = unpatchify(x, patch_size=vae.config.patch_size)
        return torch.clamp(x, min=-1.0, max=1.0)

    def to(self, device: torch.device | str) -> None:
        self._features = moved(self._features, device)


def decode_piece(
    vae: AutoencoderKLWan,
    latents: torch.Tensor,
    *,
    warm_start: int,
    start: int,
    lane: Lane | None,
) -> tuple[torch.Tensor, Lane]:
    """Pixels of latent frames from ``start``, and the lane to go on with: see ``lanes.go_on``."""
    make = partial(DecodeLane, vae)
    return go_on(make, latents, warm_start=warm_start, start=start, lane=lane)


class NotFinite(ArithmeticError):
    """Pixels that are infinite, or NaN, which what overflows becomes in a decoder's norms."""

    def __init__(self, said: str = "the decoded pixels became NaN or infinite") -> None:
        super().__init__(said)


def to_rgb8(x_BCFHW: torch.Tensor) -> np.ndarray:
    """uint8 [F, H, W, 3] as diffusers' VideoProcessor makes PIL frames: each value is
    round(255 * clamp(x / 2 + 1/2)), halves to even. Raises NotFinite."""
    unit = x_BCFHW[0] * 0.5 + 0.5
    frames = unit.permute(1, 2, 3, 0).cpu().float().numpy()
    if not np.isfinite(frames).all():
        raise NotFinite
    return (frames.clip(0, 1) * 255).round().astype(np.uint8)


@torch.no_grad()
def measured_context(vae: AutoencoderKLWan, limit: int = 512) -> int:
    """How many latent frames before a piece its pixels depend on.

    Measured by structure, not by value: a NaN in one latent frame reaches every pixel that depends
    on it, whatever the weights. The NaN stands in the second frame, since the first is special
    (temporal upsampling starts with the second, and does not look back at the first).
    """
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, vae.config.z_dim, 1, 2, 2, generator=generator).to(vae.device)
    lane = DecodeLane(vae)
    lane.decode(latent)
    lane.decode(latent * torch.nan)
    for distance in range(1, limit):
        if not torch.isnan(lane.decode(latent)).any():
            return distance - 1
    raise AssertionError(f"the decoder depends on more than {limit} latent frames")
