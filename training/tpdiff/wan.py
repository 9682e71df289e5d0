"""Wan in training: flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline
from torch import Tensor, nn

from accel.positions import stage_positions
from accel.pyramid import FlowPath
from jobs.model_scheduler import folder_shift
from training.latents import normalise
from training.tpdiff.trainee import Trainee
from training.vae import to_signal
from workers.decoding import to_rgb8, unnormalise


class WanTrainee(Trainee):
    """What it predicts is noise - clip."""

    path = FlowPath()
    counts_stages = True

    @property
    def flow_shift(self) -> float:
        said = self.info.defaults.flow_shift or folder_shift(self.family.scheduler_config, "flow")
        return float(said or 1.0)

    def save_lora(self, out: Path, weights: dict[str, Tensor]) -> None:
        WanPipeline.save_lora_weights(out, transformer_lora_layers=weights)

    def embed(self, prompt: str) -> Tensor:
        """Without the zeros after its end."""
        text_ND = super().embed(prompt)
        told = text_ND.any(dim=1).nonzero()
        return text_ND[: int(told.max()) + 1 if len(told) else 1].clone()

    def padded(self, texts: Sequence[Tensor]) -> Tensor:
        count = self.info.defaults.text_tokens
        return torch.stack([nn.functional.pad(t, (0, 0, 0, count - len(t))) for t in texts])

    @torch.no_grad()
    def encode(self, frames_BFHWC: np.ndarray) -> Tensor:
        """diffusers encodes a picture and then four at a time, and leaves out a rest: the last one
        is repeated to fill it. The autoencoder is causal, so no latent before sees that."""
        vae, frames = self.family.vae, frames_BFHWC.shape[1]
        rest = -(frames - 1) % 4
        frames_BFHWC = np.concatenate([frames_BFHWC, *[frames_BFHWC[:, -1:]] * rest], axis=1)
        z_BCFHW = normalise(
            vae, vae.encode(to_signal(frames_BFHWC).to(vae.device)).latent_dist.mode()
        )
        return z_BCFHW[:, :, : self.info.geometry.latent_frames(frames)]

    def decode(self, latents_1CFHW: Tensor) -> np.ndarray:
        vae = self.family.vae
        return to_rgb8(vae.decode(unnormalise(vae, latents_1CFHW)).sample)

    def predict(
        self, model: nn.Module, x_BCFHW: Tensor, times_B: Tensor, text_BND: Tensor, stride: int
    ) -> Tensor:
        with stage_positions(self.denoiser, stride):
            return model(
                hidden_states=x_BCFHW,
                timestep=times_B * 1000,
                encoder_hidden_states=text_BND,
                return_dict=False,
            )[0]

    def target(self, times_B: np.ndarray, clean_BCFHW: Tensor, noise_BCFHW: Tensor) -> Tensor:
        return noise_BCFHW - clean_BCFHW
