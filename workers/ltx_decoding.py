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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLLTXVideo

from jobs.families.ltx import seen_frames


def unnormalise(vae: AutoencoderKLLTXVideo, latents: torch.Tensor) -> torch.Tensor:
    """Finished latents, in float32, to what the autoencoder decodes. In LTXPipeline's own
    arithmetic."""
    latents = latents.to(vae.device)
    mean, std = (
        each.view(1, -1, 1, 1, 1).to(latents) for each in (vae.latents_mean, vae.latents_std)
    )
    return (latents * std / vae.config.scaling_factor + mean).to(vae.dtype)


@torch.no_grad()
def decode_range(
    vae: AutoencoderKLLTXVideo, latents: torch.Tensor, warm_start: int, start: int, stop: int
) -> torch.Tensor:
    """Pixels x_BCFHW of latent frames ``[start, stop)``; ``latents`` begin at ``warm_start``.

    A decode's first latent frame gives one pixel frame, all others r."""
    time = None
    if vae.config.timestep_conditioning:  # the pipeline's default: time 0, and none of the noise
        time = torch.zeros(1, device=vae.device, dtype=vae.dtype)
    r = vae.temporal_compression_ratio
    first_px = 1 + r * (start - warm_start - 1) if start > warm_start else 0
    stop_px = 1 + r * (stop - warm_start - 1)
    with _narrowed(vae, first_px, stop_px - 1) as offset:
        pixels = vae.decode(unnormalise(vae, latents), time, return_dict=False)[0]
    return pixels[:, :, first_px - offset() : stop_px - offset()]


@contextmanager
def _narrowed(
    vae: AutoencoderKLLTXVideo, first_px: int, last_px: int
) -> Iterator[Callable[[], int]]:
    """Let each block of the decoder get only those frames on which pixel frames ``first_px`` to
    ``last_px`` depend. Most of what they depend on is seen by the first blocks, where frames are
    small.

    Yields what tells, after a decode, how many pixel frames were left out at the start."""
    decoder, offset = vae.decoder, 0

    def narrow(
        first: int, last: int, doubles: bool, module: torch.nn.Module, inputs: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        nonlocal offset
        low, high = max(0, first - offset), last + 1 - offset
        # Of what is left, frame n doubles to 2n - 1 and 2n: so places count on twice as far.
        offset = (offset + low) * (2 if doubles else 1)
        return (inputs[0][:, :, low:high], *inputs[1:])

    modules = (*decoder.up_blocks, decoder.conv_out)
    doubles = [getattr(module, "upsamplers", None) is not None for module in modules]
    seen = seen_frames(vae.config, first_px, last_px)[1:]
    hooks = [
        module.register_forward_pre_hook(partial(narrow, first, last, doubling))
        for module, (first, last), doubling in zip(modules, seen, doubles, strict=True)
    ]
    try:
        yield lambda: offset
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def measured_reach(vae: AutoencoderKLLTXVideo, around: int = 40) -> tuple[int, int]:
    """Latent frames before and after a piece that its pixels depend on.

    Measured by structure, not by value: a NaN in one latent frame reaches every pixel that depends
    on it, whatever the weights."""
    shape = (1, vae.config.latent_channels, 2 * around + 1, 1, 1)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(vae.device)
    latents[:, :, around] = torch.nan
    pixels = decode_range(vae, latents, 0, 0, 2 * around + 1)[
        0, :, 1:
    ]  # the first has a latent frame of its own
    bad = pixels.isnan().any(3).any(2).any(0).unflatten(0, (2 * around, -1)).any(1).nonzero() + 1
    first, last = int(bad.min()), int(bad.max())
    assert first > 1 and last < 2 * around, "the decoder sees farther than was looked"
    return last - around, around - first
