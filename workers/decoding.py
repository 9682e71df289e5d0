"""Decoding a shot piece by piece, with the same bits as decoding it in one go.

Wan's VAE decodes latent frame after latent frame; its causal convolutions keep the last frames
that they saw. A ``DecodeLane`` holds that context of one shot between pieces. A lane without
context warms up: it decodes ``measured_context`` latent frames before its piece and throws their
pixels away; after that its context equals the one that a decode of the whole shot would have.

One layer, ``post_quant_conv``, diffusers applies to all frames at once. It looks at one place of
one frame only, so doing it frame by frame gives the same bits, as long as the kernel adds up its
few channels in the same order. On CPUs it does for latents of 4 x 4 and more; for smaller ones,
which no film has, oneDNN may choose another kernel for many frames than for one.

Shapes: z_BCTHW latents, x_BCFHW pixels, with B = 1.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify


def unnormalise(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Finished latents, any dtype, to what the VAE decodes. In WanPipeline's own arithmetic,
    the reciprocal included: dividing by it is not multiplying by the deviation."""
    latents = latents.to(vae.device, vae.dtype)
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents.device, latents.dtype)
    std = torch.tensor(vae.config.latents_std).view(shape).to(latents.device, latents.dtype)
    return latents / (1.0 / std) + mean


class DecodeLane:
    """The VAE's live context at one latent frame of a shot."""

    def __init__(self, vae: AutoencoderKLWan, start: int = 0) -> None:
        self._vae = vae
        convolutions = sum(isinstance(m, WanCausalConv3d) for m in vae.decoder.modules())
        self._features: list[Any] = [None] * convolutions
        self._seen: list[bytes] = []  # digests of the latent frames decoded, since `_first`
        self._first = start

    @property
    def position(self) -> int:
        """The latent frame that comes next."""
        return self._first + len(self._seen)

    def continues(self, latents: torch.Tensor, warm_start: int, start: int) -> bool:
        """Whether this context is the one that decoding ``latents`` [from warm_start, up to start)
        gives. Compared by content, so a context never crosses into other latents."""
        if self.position != start or self._first > warm_start:
            return False
        warm = [_digest(latents[:, :, i : i + 1]) for i in range(start - warm_start)]
        return self._seen[len(self._seen) - len(warm) :] == warm

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels x_BCFHW in [-1, 1] of the next latent frames, as the denoiser left them."""
        return torch.cat(
            [self._decode_frame(latents[:, :, i : i + 1]) for i in range(latents.shape[2])], dim=2
        )

    def _decode_frame(self, latent: torch.Tensor) -> torch.Tensor:
        vae = self._vae
        x = vae.decoder(
            vae.post_quant_conv(unnormalise(vae, latent)),
            feat_cache=self._features,
            feat_idx=[0],
            first_chunk=not self._seen,
        )
        if vae.config.patch_size is not None:
            x = unpatchify(x, patch_size=vae.config.patch_size)
        self._seen.append(_digest(latent))
        return torch.clamp(x, min=-1.0, max=1.0)


def _digest(latent: torch.Tensor) -> bytes:
    bits = latent.detach().cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.blake2b(bits.tobytes(), digest_size=16).digest()


def decode_piece(
    vae: AutoencoderKLWan,
    latents: torch.Tensor,
    *,
    warm_start: int,
    start: int,
    lane: DecodeLane | None,
) -> tuple[torch.Tensor, DecodeLane]:
    """Pixels of latent frames from ``start``, and the lane to go on with.

    ``latents`` begin at ``warm_start``. A lane that does not stand at ``start`` is replaced.
    """
    if lane is None or not lane.continues(latents, warm_start, start):
        lane = DecodeLane(vae, warm_start)
        for i in range(start - warm_start):  # one at a time: discarded pixels are not kept
            lane.decode(latents[:, :, i : i + 1])
    return lane.decode(latents[:, :, start - warm_start :]), lane


def to_rgb8(x_BCFHW: torch.Tensor) -> np.ndarray:
    """uint8 [F, H, W, 3] as diffusers' VideoProcessor makes PIL frames: each value is
    round(255 * clamp(x / 2 + 1/2)), halves to even."""
    unit = (x_BCFHW[0] * 0.5 + 0.5).clamp(0, 1)
    frames = unit.permute(1, 2, 3, 0).cpu().float().numpy()
    return (frames * 255).round().astype(np.uint8)


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
