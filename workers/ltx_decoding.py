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
    """Let each block of the decoder, and what follows the last one, get only those frames on which
    pixel frames ``first_px`` to ``last_px`` depend. Most of what they depend on is seen by the
    first blocks, where frames are small.

    Yields what tells, after a decode, how many pixel frames were left out at the start."""
    decoder, offset = vae.decoder, 0

    def narrowed(x: torch.Tensor, first: int, last: int) -> torch.Tensor:
        nonlocal offset
        low, high = max(0, first - offset), last + 1 - offset
        offset += low
        return x[:, :, low:high]

    def entering(
        first: int, last: int, block: torch.nn.Module, inputs: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        nonlocal offset
        x = narrowed(inputs[0], first, last)
        # Of what is left, frame n doubles to 2n - 1 and 2n: so places count on twice as far.
        offset *= 1 if block.upsamplers is None else 2
        return (x, *inputs[1:])

    *seen, shown = seen_frames(vae.config, first_px, last_px)[1:]
    hooks = [
        block.register_forward_pre_hook(partial(entering, *frames))
        for block, frames in zip(decoder.up_blocks, seen, strict=True)
    ]
    leaving = decoder.up_blocks[-1].register_forward_hook
    hooks.append(leaving(lambda block, inputs, x: narrowed(x, *shown)))
    try:
        yield lambda: offset
    finally:
        for hook in hooks:
            hook.remove()
