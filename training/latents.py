"""A cache of captioned clips as normalised latents, filled and refreshed from the demo world.

Shapes: B clips, C latent channels, F latent frames, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderKLWan
from torch import Tensor, nn

from training import world
from training.captions import caption
from training.cpu import autocast
from training.vae import encode, to_signal
from training.world import Scene

#: Pixels that differ by more, of 255, from the empty scene are a body's.
BODY_CONTRAST = 12


class Codec(Protocol):
    """An autoencoder as its denoiser knows it. The scales are pixels per latent."""

    vae: nn.Module
    time_scale: int
    space_scale: int

    def encode(self, x_BCFHW: Tensor) -> Tensor:
        """Clips in [-1, 1] to latents with mean 0 and deviation 1 in each channel."""
        ...


class WanCodec:
    """A causal autoencoder of clips, `AutoencoderKLWan`."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self.time_scale = vae.config.scale_factor_temporal
        self.space_scale = vae.config.scale_factor_spatial

    def encode(self, x_BCFHW: Tensor) -> Tensor:
        with autocast(self.vae.device):
            z_BCFHW = encode(self.vae, x_BCFHW.to(self.vae.device)).float()
        return normalise(self.vae, z_BCFHW)


class PictureCodec:
    """An autoencoder of single pictures, `AutoencoderKL`, whose scaling factor normalises."""

    time_scale = 1

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae
        self.space_scale = 2 ** (len(vae.config.block_out_channels) - 1)

    def encode(self, x_BCFHW: Tensor) -> Tensor:
        with autocast(self.vae.device):
            return encode_pictures(self.vae, x_BCFHW, chunk=64)


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, x_BCFHW: Tensor, chunk: int) -> Tensor:
    """Clips in [-1, 1] to scaled latents, frame by frame, so many pictures at a time."""
    x_NCHW = x_BCFHW.transpose(1, 2).flatten(0, 1).to(vae.device)
    parts = [vae.encode(part).latent_dist.mode().float() for part in x_NCHW.split(chunk)]
    z_NCHW = torch.cat(parts) * vae.config.scaling_factor
    return z_NCHW.unflatten(0, (len(x_BCFHW), -1)).transpose(1, 2)


def normalise(vae: AutoencoderKLWan, z_BCFHW: Tensor) -> Tensor:
    """An autoencoder's latents as its denoiser knows them."""
    mean = torch.tensor(vae.config.latents_mean, device=vae.device).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std, device=vae.device).view(1, -1, 1, 1, 1)
    return (z_BCFHW - mean) / std


def body_mask(scene: Scene, frames_FHWC: np.ndarray, scale: tuple[int, int]) -> Tensor:
    """Where a body is, at any time of a latent frame, as FHW of booleans; the first latent frame
    of a clip is a single picture. ``scale`` is pixels per latent in time and in space."""
    empty = Scene(bodies=(), background=scene.background)
    backdrop_1HWC = world.render(empty, np.zeros(1, np.float32), frames_FHWC.shape[1])
    apart_FHW = np.abs(frames_FHWC.astype(np.int16) - backdrop_1HWC).max(axis=-1)
    seen_1FHW = torch.from_numpy(apart_FHW > BODY_CONTRAST)[None].float()
    in_time, in_space = scale
    whole_1FHW = torch.cat([seen_1FHW[:, :1].repeat(1, in_time - 1, 1, 1), seen_1FHW], dim=1)
    return F.max_pool3d(whole_1FHW, (in_time, in_space, in_space))[0] > 0


@dataclass(slots=True)
class LatentCache:
    """A ring of encoded clips; the oldest makes room for the newest.

    A clip keeps its scene, so that each use can word its caption anew. Clip number n is the same
    whatever the capacity: it depends on `seed` and n alone.
    """

    codec: Codec
    capacity: int
    pixel_frames: int = 33
    seed: int = 0
    num_made: int = 0
    scenes: list[Scene] = field(default_factory=list)
    clips: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)  # where bodies are: FHW of booleans

    def add(self, count: int) -> None:
        """Make, encode and keep the next `count` clips."""
        drawn = [self._draw(self.num_made + index) for index in range(count)]
        z_BCFHW = self.codec.encode(to_signal(np.stack([frames for _, frames in drawn])))
        scale = (self.codec.time_scale, self.codec.space_scale)
        for (scene, frames_FHWC), z_CFHW in zip(drawn, z_BCFHW.half().cpu(), strict=True):
            self._keep(scene, z_CFHW, body_mask(scene, frames_FHWC, scale))

    def _keep(self, *clip: object) -> None:
        rings: tuple[list, ...] = (self.scenes, self.clips, self.masks)
        for ring, each in zip(rings, clip, strict=True):
            if len(ring) < self.capacity:
                ring.append(each)
            else:
                ring[self.num_made % self.capacity] = each
        self.num_made += 1

    def windows(
        self, rng: np.random.Generator, batch: int, latent_frames: int, starts: float
    ) -> tuple[Tensor, Tensor, list[str]]:
        """Random windows, BCFHW, where their bodies are, B1FHW, and captions; a share `starts`
        begins where its clip begins.

        Only that first latent frame of a clip holds a single picture, all others hold two.
        """
        parts, masks, captions = [], [], []
        for clip in rng.integers(len(self.clips), size=batch):
            last = self.clips[clip].shape[1] - latent_frames
            start = 0 if rng.uniform() < starts or last < 1 else int(rng.integers(1, last + 1))
            parts.append(self.clips[clip][:, start : start + latent_frames])
            masks.append(self.masks[clip][None, start : start + latent_frames])
            captions.append(caption(self.scenes[clip], rng))
        return torch.stack(parts).float(), torch.stack(masks), captions

    def refill(self, num_made: int) -> None:
        """Make the ring as it is once so many clips have been made."""
        first = self.num_made = max(0, num_made - self.capacity)
        rings: tuple[list, ...] = (self.scenes, self.clips, self.masks)
        for ring in rings:
            ring.clear()
        while self.num_made < num_made:
            self.add(min(4, num_made - self.num_made))
        turn = first % self.capacity  # number n stands at n modulo the capacity
        for ring in rings:
            ring[:] = ring[len(ring) - turn :] + ring[: len(ring) - turn]

    def _draw(self, number: int) -> tuple[Scene, np.ndarray]:
        scene, start_s = self._scene(number)
        times_s = world.frame_times(self.pixel_frames, start_s=start_s)
        return scene, world.render(scene, times_s)

    def _scene(self, number: int) -> tuple[Scene, float]:
        rng = np.random.default_rng((self.seed, 2, number))
        return world.sample_scene(rng), float(rng.uniform(0, 10))
