"""A Wan model that is trained: loaded and checked as for a render, with what a trainer asks of it.

Shapes: B batch, C latent channels, F frames, H rows, W columns, N text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from accel.positions import stage_positions
from accel.pyramid import FlowPath
from jobs.model_folder import ModelInfo, inspect_model, resolve_model
from jobs.model_scheduler import folder_shift
from jobs.pyramid import firsts, stage_frames, stage_strides
from jobs.units import ShotRender
from training.latents import normalise
from training.vae import to_signal
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
    def flow_shift(self) -> float:
        """The shift that a render uses."""
        said = self.info.defaults.flow_shift or folder_shift(self.family.scheduler_config, "flow")
        return float(said or 1.0)

    @property
    def folder(self) -> Path:
        return self.info.folder

    def add_lora(self, rank: int) -> None:
        """Let only an adapter of this rank be trained."""
        from peft import LoraConfig

        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS))
        self.family.denoiser.add_adapter(config)

    def embed(self, prompt: str) -> Tensor:
        """Embeddings of one prompt, ND, as a render has them, without the zeros after its end."""
        shot = self.shot(prompt, pixel_frames=1, size=self.info.defaults.size, stage_steps=(1,))
        text_ND = self.family.encode(replace(shot, guidance=(1.0,)))["cond"][0].cpu()
        told = text_ND.any(dim=1).nonzero()
        return text_ND[: int(told.max()) + 1 if len(told) else 1].clone()

    def padded(self, texts: Sequence[Tensor]) -> Tensor:
        """Embeddings of several prompts, BND, with zeros up to the length that a render has."""
        count = self.info.defaults.text_tokens
        return torch.stack([nn.functional.pad(t, (0, 0, 0, count - len(t))) for t in texts])

    def forget_text(self) -> None:
        """All prompts are known: the text encoder, often the largest part, can go."""
        self.family.free_text()

    @torch.no_grad()
    def encode(self, frames_BFHWC: np.ndarray) -> Tensor:
        """Normalised latents BCFHW of 8-bit clips.

        diffusers encodes a picture and then four at a time, and leaves out a rest: the last one is
        repeated to fill it. The autoencoder is causal, so no latent before sees that."""
        vae, frames = self.family.vae, frames_BFHWC.shape[1]
        rest = -(frames - 1) % 4
        frames_BFHWC = np.concatenate([frames_BFHWC, *[frames_BFHWC[:, -1:]] * rest], axis=1)
        z_BCFHW = normalise(
            vae, vae.encode(to_signal(frames_BFHWC).to(vae.device)).latent_dist.mode()
        )
        return z_BCFHW[:, :, : self.info.geometry.latent_frames(frames)]

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
        rule = {"first_alone": self.info.geometry.first_alone}
        channels, device = self.info.geometry.latent_channels, self.family.vae.device
        config, latents = self.family.scheduler_config, torch.empty(0)
        for stage, stride in enumerate(stage_strides(len(shot.stage_steps))):
            stepper = RangeStepper(
                shot.scheduler, config, shot.stage_steps, stage, shot.flow_shift, device
            )
            frames = stage_frames(shot.latent_frames, stride, **rule)
            if stage == 0:
                noise = initial_noise(shot, firsts(0, frames, stride, **rule), channels)
                latents = noise.to(device)
            else:
                keys = firsts(0, latents.shape[2], 2 * stride, **rule)
                fresh = jump_noise(shot, stage, keys, channels).to(device)
                latents = stepper.jump(latents, fresh, (0, frames), 0, **rule)
            history: dict[str, Tensor] = {}
            for step in range(shot.stage_steps[stage]):
                flow = self.family.predict(
                    shot, latents, stepper, step, embeddings, lambda _: nullcontext()
                )
                latents, history = stepper.step_range(step, flow, latents, history)
        return to_rgb8(self.family.vae.decode(unnormalise(self.family.vae, latents)).sample)
