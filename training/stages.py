"""What a stage of the temporal pyramid is trained on (TPDiff, arXiv 2503.09566).

A clip's latent frames become a window of one stage: its frames, and between its start and its end
a noisy mix of the stage's own pair (``accel.pyramid.stage_pair``). Noise is dealt out within a
batch to the clips that it is nearest to (the paper's data-noise alignment, after Immiscible
Diffusion), which keeps a stage's noise nearly constant along its path.

Shapes: B batch, C channels, T latent frames of the clip, F frames of the stage's window.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from accel.pyramid import FlowPath, NoisePath, Stage, down, shifted, stage_pair, unshifted


def clip_frames(stage: Stage, frames: int, *, starts: bool) -> int:
    """How many latent frames a window of so many frames of a stage needs.

    A window that ``starts`` a shot has its first frame alone. One inside may begin with either
    frame of a pair, so it needs one frame more; in both, all frames have their partners.
    """
    alone, others = (1, frames - 1) if starts else (0, frames + 1)
    if stage.is_first:  # nobody asks for its frames' partners
        return alone + (others if starts else frames) * stage.stride
    return alone + (others + others % 2) * stage.stride


def stage_window(
    stage: Stage, x_BCTHW: Tensor, noise_BCFHW: Tensor, *, starts: bool, second: bool
) -> tuple[Tensor, Tensor]:
    """The clean window X_k and the noise e_k of a stage, both BCFHW, from ``clip_frames`` latent
    frames. ``second``: a window inside a shot begins with the second frame of a pair."""
    frames, first = noise_BCFHW.shape[2], int(second and not starts and not stage.is_first)
    whole = down(x_BCTHW[:, :1], stage.stride, first_alone=starts).shape[2]
    padded = noise_BCFHW.new_zeros((*noise_BCFHW.shape[:2], whole, *noise_BCFHW.shape[3:]))
    padded[:, :, first : first + frames] = noise_BCFHW
    pair = stage_pair(stage, x_BCTHW, padded, first_alone=starts)
    clean, noise = (each[:, :, first : first + frames] for each in pair)
    return clean, noise


def aligned(clean_B: Tensor, noise_B: Tensor) -> Tensor:
    """The same noises, dealt out so that the sum of their squared distances is least."""
    flat = (each.flatten(1).double() for each in (clean_B, noise_B))
    _, order = linear_sum_assignment(torch.cdist(*flat).square().numpy())
    return noise_B[torch.from_numpy(np.asarray(order))]


def draw_pair(
    stage: Stage,
    x_BCTHW: Tensor,
    rng: np.random.Generator,
    frames: int,
    *,
    starts: bool,
    second: bool,
    alignment: bool,
) -> tuple[Tensor, Tensor]:
    """The clean windows X_k and their noises e_k, BCFHW, with fresh noise."""
    shape = (*x_BCTHW.shape[:2], frames, *x_BCTHW.shape[3:])
    # The clean window does not depend on the noise; the noise gains a part that depends on it.
    clean, offset = stage_window(
        stage, x_BCTHW, x_BCTHW.new_zeros(shape), starts=starts, second=second
    )
    fresh = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    return clean, (aligned(clean, fresh) if alignment else fresh) + offset


def draw_times(
    path: NoisePath, rng: np.random.Generator, batch: int, stage: Stage, shift: float = 1.0
) -> np.ndarray:
    """Times of the path from the stage's end to its start, as evenly as a render's steps: in flow
    matching, evenly in the times before the flow ``shift``."""
    if not isinstance(path, FlowPath):
        drawn = rng.uniform(stage.end.time, stage.start.time, size=batch)
        return np.array([path.at(time).time for time in drawn])
    low, high = (unshifted(level.time, shift) for level in (stage.end, stage.start))
    return np.asarray(shifted(rng.uniform(low, high, size=batch), shift))


def noisy(path: NoisePath, times_B: np.ndarray, clean_B: Tensor, noise_B: Tensor) -> Tensor:
    """Clean windows with their noise, each at its time."""
    signal, amount = levels_of(path, times_B, clean_B)
    return signal * clean_B + amount * noise_B


def levels_of(path: NoisePath, times_B: np.ndarray, like_B: Tensor) -> tuple[Tensor, Tensor]:
    """How much signal and noise there is at each time, to multiply windows ``like_B`` with."""
    levels = [path.at(float(time)) for time in times_B]
    shape = (-1, *[1] * (like_B.ndim - 1))
    signal, amount = (
        torch.tensor([getattr(level, name) for level in levels], dtype=like_B.dtype).view(shape)
        for name in ("signal", "noise")
    )
    return signal, amount
