"""What a training step sees: windows of clips and their noise, plain or of a pyramid's stage.

Shapes: B batch, C latent channels, F frames of the window, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from accel.pyramid import Coarse, FlowPath, NoisePath, Stage, down, lay_stages, shifted
from training.edm import EdmPath
from training.latents import LatentCache
from training.stages import clip_frames, draw_pair, draw_times, noisy


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseRecipe:
    """How noise is drawn. ``stages`` of 1 is no pyramid; the flow shift counts in flow matching
    only."""

    flow_shift: float = 3.0
    uniform_sigmas: float = 0.2
    stages: int = 1
    alignment: bool = True  # data-noise alignment, in a pyramid
    stage_positions: bool = True  # rotary positions count the clip's frames, in a pyramid
    coarse: Coarse = "mean"  # what a coarse stage's frames show, in a pyramid


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Clean windows and their noise: the model sees them mixed as ``path`` has it at the times."""

    clean_BCFHW: Tensor
    noise_BCFHW: Tensor
    path: NoisePath
    times_B: Tensor
    mask_B1FHW: Tensor  # where bodies are
    captions: list[str]
    stride: int = 1  # latent frames of the clip for a frame of the window

    @property
    def noisy_BCFHW(self) -> Tensor:
        return noisy(self.path, self.times_B.double().numpy(), self.clean_BCFHW, self.noise_BCFHW)


def draw_sigmas(rng: np.random.Generator, batch: int, recipe: NoiseRecipe) -> Tensor:
    """Noise levels: logit-normal shifted as at rendering, and some uniform ones for detail."""
    u_B = 1 / (1 + np.exp(-rng.normal(size=batch)))
    shifted_B = shifted(u_B, recipe.flow_shift)
    is_uniform_B = rng.uniform(size=batch) < recipe.uniform_sigmas
    chosen_B = np.where(is_uniform_B, rng.uniform(size=batch), shifted_B)
    return torch.from_numpy(chosen_B.astype(np.float32))


def draw_whole_times(
    path: NoisePath, rng: np.random.Generator, batch: int, recipe: NoiseRecipe
) -> Tensor:
    """Times of a plain schedule, from clean to noise."""
    if isinstance(path, FlowPath):
        return draw_sigmas(rng, batch, recipe)
    if isinstance(path, EdmPath):
        return torch.from_numpy(path.draw(rng, batch).astype(np.float32))
    return torch.from_numpy(rng.integers(int(path.last) + 1, size=batch).astype(np.float32))


def longest_clip(path: NoisePath, window: int, recipe: NoiseRecipe) -> int:
    """Latent frames of a clip that holds a window of any stage, after its first frame."""
    if recipe.stages == 1:
        return 2 * window - 1
    stages = lay_stages(path, recipe.stages)
    return 1 + max(clip_frames(stage, window, starts=False) for stage in stages)


def draw(
    path: NoisePath,
    cache: LatentCache,
    rng: np.random.Generator,
    recipe: NoiseRecipe,
    *,
    batch: int,
    frames: int,
    starts: float,
) -> Draw:
    """Windows of so many frames, a share ``starts`` of which begins where its clip begins."""
    if recipe.stages > 1:
        stage = lay_stages(path, recipe.stages, recipe.coarse)[int(rng.integers(recipe.stages))]
        return _of_stage(path, stage, cache, rng, recipe, batch, frames, rng.uniform() < starts)
    z_BCFHW, mask_B1FHW, captions = cache.windows(rng, batch, frames, starts)
    return Draw(
        clean_BCFHW=z_BCFHW,
        noise_BCFHW=_normal(rng, z_BCFHW.shape),
        path=path,
        times_B=draw_whole_times(path, rng, batch, recipe),
        mask_B1FHW=mask_B1FHW,
        captions=captions,
    )


def draw_whole_film(
    path: NoisePath,
    cache: LatentCache,
    rng: np.random.Generator,
    recipe: NoiseRecipe,
    *,
    batch: int,
    frames: int,
    starts: float,
) -> Draw:
    """Windows of a pyramid's first stage alone, of any length: what it sees of a film that it
    holds whole."""
    first = lay_stages(path, recipe.stages, recipe.coarse)[0]
    return _of_stage(path, first, cache, rng, recipe, batch, frames, rng.uniform() < starts)


def longest_film(path: NoisePath, frames: int, recipe: NoiseRecipe) -> int:
    """Latent frames of a clip that holds so many frames of the first stage, after its first."""
    return 1 + clip_frames(lay_stages(path, recipe.stages)[0], frames, starts=False)


def _of_stage(
    path: NoisePath,
    stage: Stage,
    cache: LatentCache,
    rng: np.random.Generator,
    recipe: NoiseRecipe,
    batch: int,
    frames: int,
    starts: bool,
) -> Draw:
    needed = clip_frames(stage, frames, starts=starts)
    z_BCTHW, mask_B1THW, captions = cache.windows(rng, batch, needed, float(starts))
    second = bool(rng.uniform() < 0.5)
    clean_BCFHW, noise_BCFHW = draw_pair(
        stage, z_BCTHW, rng, frames, starts=starts, second=second, alignment=recipe.alignment
    )
    first = int(second and not starts and not stage.is_first)
    seen_B1FHW = down(
        mask_B1THW.float(), stage.stride, first_alone=starts, coarse=stage.coarse
    ).bool()
    times_B = draw_times(path, rng, batch, stage, recipe.flow_shift)
    return Draw(
        clean_BCFHW=clean_BCFHW,
        noise_BCFHW=noise_BCFHW,
        path=path,
        times_B=torch.from_numpy(times_B.astype(np.float32)),
        mask_B1FHW=seen_B1FHW[:, :, first : first + frames],
        captions=captions,
        stride=stage.stride,
    )


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
