"""A Wan model that is trained: loaded and checked as for a render, with what a trainer asks of it.

Shapes: B batch, C latent channels, F frames, H rows, W columns, N text tokens, D text width.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from accel.positions import stage_positions
from accel.pyramid import FlowPath
from jobs.model_folder import ModelInfo, inspect_model, resolve_model
from jobs.pyramid import stage_frames, stage_strides
from jobs.units import ShotRender
from training.latents import normalise
from workers.decoding import to_rgb8, unnormalise
from workers.families.wan import WanFamily
from workers.noise import initial_noise, jump_noise
from workers.schedulers import RangeStepper

#: What is adapted by LoRA: all projections of both attentions.
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(slots=True)
class WanTrainee:
    """``family`` holds the frozen parts, and the denoiser that is trained."""

    info: ModelInfo
    family: WanFamily
    path = FlowPath()

    @classmethod
    def load(cls, model: str, device: str) -> WanTrainee:
        """A folder or Hugging Face id, in float32. Raises BadJob, CannotRunHere."""
        info = inspect_model(resolve_model(model))
        return cls(info, WanFamily(str(info.folder), "float32", device))

    @property
    def denoiser(self) -> nn.Module:
        return self.family.denoiser

    @property
    def folder(self) -> Path:
        return self.info.folder

    def add_lora(self, rank: int) -> None:
        """Let only an adapter of this rank be trained."""
        from peft import LoraConfig

        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS))
        self.family.denoiser.add_adapter(config)

    def embed(self, prompt: str) -> Tensor:
        """Embeddings of one prompt, ND, as a render has them."""
        shot = self.shot(prompt, pixel_frames=1, size=self.info.defaults.size, stage_steps=(1,))
        return self.family.encode(replace(shot, guidance=(1.0,)))["cond"][0].cpu()

    def forget_text(self) -> None:
        """All prompts are known: the text encoder, often the largest part, can go."""
        self.family._free_text()

    @torch.no_grad()
    def encode(self, frames_BFHWC: np.ndarray) -> Tensor:
        """Normalised latents BCFHW of 8-bit clips."""
        vae = self.family.vae
        x_BCFHW = torch.from_numpy(np.moveaxis(frames_BFHWC, -1, 1).astype(np.float32) / 127.5 - 1)
        return normalise(vae, vae.encode(x_BCFHW.to(vae.device)).latent_dist.mode())

    def flow(
        self, model: nn.Module, x_BCFHW: Tensor, times_B: Tensor, text_BND: Tensor, stride: int
    ) -> Tensor:
        """What ``model``, which may be a wrapped denoiser, predicts: noise - clip."""
        with stage_positions(self.denoiser, stride):
            return model(
                hidden_states=x_BCFHW,
                timestep=times_B * 1000,
                encoder_hidden_states=text_BND,
                return_dict=False,
            )[0]

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
        latents = torch.empty(0)
        alone = self.info.geometry.first_alone
        config = self.family.scheduler_config
        for stage, stride in enumerate(stage_strides(len(shot.stage_steps))):
            stepper = RangeStepper(shot.scheduler, config, shot.stage_steps, stage, shot.flow_shift)
            frames = stage_frames(shot.latent_frames, stride, first_alone=alone)
            channels, history = self.info.geometry.latent_channels, {}
            if stage == 0:
                latents = initial_noise(shot, 0, frames, channels)
            else:
                fresh = jump_noise(shot, stage, 0, latents.shape[2], channels)
                latents = stepper.jump(latents, fresh, (0, frames), 0, first_alone=alone)
            for step in range(shot.stage_steps[stage]):
                flow = self.family.predict(
                    shot, latents, stepper, step, embeddings, lambda _: nullcontext()
                )
                latents, history = stepper.step_range(step, flow, latents, history)
        return to_rgb8(self.family.vae.decode(unnormalise(self.family.vae, latents)).sample)
