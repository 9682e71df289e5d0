"""Noise that belongs to a place of the film, not to who draws it.

Every latent frame's noise is keyed by (shot seed, latent frame in the shot, purpose, step), so
any worker draws the same noise for any window, in any order.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from jobs.units import ShotRender
from jobs.versions import NOISE_VERSION


def frame_noise(
    seed: int, latent_frame: int, purpose: str, step: int, shape: tuple[int, ...]
) -> np.ndarray:
    """Standard normal float32 noise of one latent frame, ``shape`` being [C, H, W]."""
    text = f"longtake noise {NOISE_VERSION}/{seed}/{latent_frame}/{step}/{purpose}"
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    generator = np.random.Generator(np.random.Philox(key=key))
    return generator.standard_normal(shape, dtype=np.float32)


def initial_noise(shot: ShotRender, start: int, stop: int, channels: int) -> torch.Tensor:
    """Noise [1, C, T, H, W] that frames ``[start, stop)`` of a shot's first stage start from."""
    return _noise(shot, start, stop, channels, "initial", 0)


def jump_noise(shot: ShotRender, stage: int, start: int, stop: int, channels: int) -> torch.Tensor:
    """Fresh noise [1, C, T, H, W] for frames ``[start, stop)`` of the stage before ``stage``."""
    return _noise(shot, start, stop, channels, "jump", stage)


def _noise(
    shot: ShotRender, start: int, stop: int, channels: int, purpose: str, step: int
) -> torch.Tensor:
    shape = (channels, shot.latent_height, shot.latent_width)
    frames = [frame_noise(shot.seed, n, purpose, step, shape) for n in range(start, stop)]
    return torch.from_numpy(np.stack(frames, axis=1)).unsqueeze(0)
