"""A model that is trained: loaded and checked as for a render, with what a trainer asks of it.

Shapes: B batch, C latent channels, F frames, H rows, W columns, N text tokens, D text width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.training_utils import cast_training_params
from torch import Tensor, nn

from accel.pyramid import NoisePath
from jobs.families.family import encoding_bytes
from jobs.model_folder import ModelInfo
from jobs.pyramid import stage_frames, stage_strides
from jobs.units import ShotRender
from workers import encoding
from workers.families.family import stepper_of
from workers.families.folder import too_long
from workers.stepping import StageSteps

#: What is adapted by LoRA: all projections of every attention, which diffusers calls the same.
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


class Trainee(ABC):
    """``family`` holds the frozen parts, and the denoiser that is trained."""

    path: NoisePath
    counts_stages: ClassVar[bool]  # whether positions can count a clip's frames, not a stage's

    def __init__(self, info: ModelInfo, family: Any, dtype: str = "float32") -> None:
        """``dtype``: what the family's denoiser and text encoders are loaded in."""
        self.info, self.family, self.dtype = info, family, dtype

    @property
    def denoiser(self) -> nn.Module:
        return self.family.denoiser

    @property
    def flow_shift(self) -> float:
        """The shift that a render uses."""
        return 1.0

    @property
    def folder(self) -> Path:
        return self.info.folder

    def add_lora(self, rank: int) -> None:
        """Let only an adapter of this rank be trained; it is in float32, whatever its base is."""
        from peft import LoraConfig

        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS))
        self.family.denoiser.add_adapter(config)
        cast_training_params(self.family.denoiser, dtype=torch.float32)

    @abstractmethod
    def save_lora(self, out: Path, weights: dict[str, Tensor]) -> None:
        """Write an adapter as diffusers' `load_lora_weights` reads it."""

    @property
    def most_tokens(self) -> int:
        """Of a prompt that a render reads."""
        return self.info.defaults.text_tokens

    def too_long(self, prompt: str) -> str:
        """What is wrong with a prompt of more tokens, or ""."""
        return too_long(self.family.tokenizer, self.most_tokens, prompt)

    def embed(self, prompt: str) -> Tensor:
        """Embeddings of one prompt, ND, as a render has them; by the processor where the device
        has no room for the text encoder."""
        shot = self.shot(prompt, pixel_frames=1, size=self.info.defaults.size, stage_steps=(1,))
        needed = encoding_bytes(self.info.family, self.info.parameters, self.dtype)
        return encoding.encode(self.family, replace(shot, guidance=(1.0,)), needed)["cond"][0].cpu()

    def padded(self, texts: Sequence[Tensor]) -> Tensor:
        """Embeddings of several prompts, BND, at the length that a render has."""
        return torch.stack(list(texts))

    def forget_text(self) -> None:
        """All prompts are known: the text encoder, often the largest part, can go."""
        self.family.free_text()

    @abstractmethod
    def encode(self, frames_BFHWC: np.ndarray) -> Tensor:
        """Latents BCFHW of 8-bit clips, as the denoiser knows them."""

    @abstractmethod
    def decode(self, latents_1CFHW: Tensor) -> np.ndarray:
        """8-bit frames FHWC."""

    @abstractmethod
    def predict(
        self, model: nn.Module, x_BCFHW: Tensor, times_B: Tensor, text_BND: Tensor, stride: int
    ) -> Tensor:
        """What ``model``, which may be a wrapped denoiser, predicts."""

    @abstractmethod
    def target(self, times_B: np.ndarray, clean_BCFHW: Tensor, noise_BCFHW: Tensor) -> Tensor:
        """What it should predict."""

    # -- what it has learned, as a render shows it

    def shot(
        self,
        prompt: str,
        *,
        pixel_frames: int,
        size: tuple[int, int],
        stage_steps: tuple[int, ...],
        positions: bool = False,
    ) -> ShotRender:
        defaults, geometry = self.info.defaults, self.info.geometry
        return ShotRender(
            prompt=prompt,
            negative_prompt=defaults.negative,
            seed=0,
            guidance=defaults.guidance,
            stage_steps=stage_steps,
            stage_positions=positions,
            scheduler="auto",
            flow_shift=defaults.flow_shift,
            text_tokens=defaults.text_tokens,
            latent_frames=geometry.latent_frames(pixel_frames),
            latent_height=size[1] // geometry.spatial_scale,
            latent_width=size[0] // geometry.spatial_scale,
            pixel_frames=pixel_frames,
            fps=defaults.fps,
        )

    @torch.no_grad()
    def sample(self, shot: ShotRender, embeddings: dict[str, Tensor]) -> np.ndarray:
        """A clip of one window in each stage, FHWC of 8 bits. ``embeddings``: cond, uncond; 1ND."""
        device, latents = self.family.vae.device, torch.empty(0)
        first_alone = self.info.geometry.first_alone
        for stage, stride in enumerate(stage_strides(len(shot.stage_steps))):
            frames = (0, stage_frames(shot.latent_frames, stride, first_alone=first_alone))
            places = frames[1] * shot.latent_height * shot.latent_width
            stepper = stepper_of(self.family, shot, stage, places, device)
            steps = StageSteps(
                family=self.family, shot=shot, stage=stage, stepper=stepper, device=device
            )
            latents = steps.jump(frames, latents, 0) if stage else steps.start(frames)
            history: dict[str, Tensor] = {}
            for step in range(shot.stage_steps[stage]):
                prediction = steps.predict(step, latents, embeddings, lambda _: nullcontext())
                latents, history = steps.settle(step, frames, prediction, latents, history)
        return self.decode(latents)
