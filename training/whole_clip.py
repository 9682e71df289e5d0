"""Runs Wan's autoencoder over a whole clip in one pass, for speed in training.

diffusers goes through a clip in pieces of one to four frames, with caches between them, so that
memory stays small. For the short clips of training one pass gives the same numbers in far fewer
and larger operations. Only the change of frame rate has to know where a clip begins.

Shapes: B batch, C channels, F frames, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify
from torch import Tensor


def encode_mean(vae: AutoencoderKLWan, x_BCFHW: Tensor) -> Tensor:
    """The posterior's mean for clips of 1 + 4n frames in [-1, 1]; within `whole_clips` only."""
    x_BCFHW = patchify(x_BCFHW, patch_size=vae.config.patch_size)
    return vae.quant_conv(vae.encoder(x_BCFHW)).chunk(2, dim=1)[0]


def decode(vae: AutoencoderKLWan, z_BCFHW: Tensor) -> Tensor:
    """Clips of 1 + 2m frames from 1 + m latent frames; within `whole_clips` only."""
    x_BCFHW = vae.decoder(vae.post_quant_conv(z_BCFHW))
    return unpatchify(x_BCFHW, patch_size=vae.config.patch_size).clamp(-1, 1)


@contextmanager
def whole_clips(vae: AutoencoderKLWan) -> Iterator[None]:
    """Let the autoencoder's changes of frame rate work on whole clips, for a while."""
    resamplers = [module for module in vae.modules() if isinstance(module, WanResample)]
    for module in resamplers:
        module.forward = MethodType(_resample, module)
    try:
        yield
    finally:
        for module in resamplers:
            del module.forward


def _resample(
    self: WanResample, x_BCFHW: Tensor, feat_cache: None = None, feat_idx: None = None
) -> Tensor:
    if self.mode == "upsample3d" and x_BCFHW.shape[2] > 1:
        pairs = self.time_conv(x_BCFHW[:, :, 1:]).unflatten(1, (2, -1))
        doubled = torch.stack((pairs[:, 0], pairs[:, 1]), dim=3).flatten(2, 3)
        x_BCFHW = torch.cat([x_BCFHW[:, :, :1], doubled], dim=2)
    frames = x_BCFHW.transpose(1, 2).flatten(0, 1)
    x_BCFHW = self.resample(frames).unflatten(0, (x_BCFHW.shape[0], -1)).transpose(1, 2)
    if self.mode == "downsample3d" and x_BCFHW.shape[2] > 1:
        x_BCFHW = torch.cat([x_BCFHW[:, :, :1], self.time_conv(x_BCFHW)], dim=2)
    return x_BCFHW
