"""Noise that belongs to a place of the film, not to who draws it.

Every latent frame's noise is keyed by (shot seed, latent frame in the shot, purpose, step), so
any worker draws the same noise for any window, in any order. A frame of a coarse stage of a pyramid
has the key of the first latent frame that it stands for; noise for the jump to a stage has that
stage's number as its step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

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


def initial_noise(shot: ShotRender, frames: Iterable[int], channels: int) -> torch.Tensor:
    """Noise [1, C, T, H, W] that a shot's first stage starts from, for these latent frames."""
    return _noise(shot, frames, channels, "initial", 0)


def repeated_noise(shot: ShotRender, frames: tuple[int, int], channels: int) -> torch.Tensor:
    """Noise [1, C, T, H, W] that comes again, for frames ``[start, stop)`` of the first stage: of
    any period's length of them in a row, each has another."""
    assert shot.repeated_noise is not None
    places = (frame % shot.repeated_noise.period for frame in range(*frames))
    return _noise(shot, places, channels, "repeated", 0)


def jump_noise(shot: ShotRender, stage: int, frames: Iterable[int], channels: int) -> torch.Tensor:
    """Fresh noise [1, C, T, H, W] for the jump to ``stage``, for these latent frames."""
    return _noise(shot, frames, channels, "jump", stage)


def image_noise(shot: ShotRender, height_px: int, width_px: int) -> torch.Tensor:
    """Noise [1, 3, height, width] for the image that a shot starts from, pixel by pixel."""
    drawn = frame_noise(shot.seed, 0, "image", 0, (3, height_px, width_px))
    return torch.from_numpy(drawn).unsqueeze(0)


def step_noise(shot: ShotRender, step: int, frames: Iterable[int], channels: int) -> torch.Tensor:
    """Noise [1, C, T, H, W] that a scheduler adds after step ``step``, for these latent frames."""
    return _noise(shot, frames, channels, "step", step)


def _noise(
    shot: ShotRender, frames: Iterable[int], channels: int, purpose: str, step: int
) -> torch.Tensor:
    shape = (channels, shot.latent_height, shot.latent_width)
    drawn = [frame_noise(shot.seed, frame, purpose, step, shape) for frame in frames]
    return torch.from_numpy(np.stack(drawn, axis=1)).unsqueeze(0)
