"""AnimateDiff in training: variance-preserving diffusion, as DDIM renders it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from diffusers import AnimateDiffPipeline, DDIMScheduler
from torch import Tensor, nn

from accel.pyramid import VariancePath
from jobs.errors import BadJob
from jobs.model_folder import ModelInfo
from training.latents import encode_pictures
from training.stages import levels_of
from training.tpdiff.trainee import Trainee
from training.vae import to_signal

#: Pictures that the autoencoder takes at a time.
CHUNK = 16


class AnimateDiffTrainee(Trainee):
    """What it predicts is the noise, or the velocity, as its scheduler's config says."""

    counts_stages = False

    def __init__(self, info: ModelInfo, family: Any, dtype: str = "float32") -> None:
        super().__init__(info, family, dtype)
        scheduler = DDIMScheduler.from_config(dict(family.scheduler_config))
        self.path = VariancePath(scheduler.alphas_cumprod.double().numpy())
        self._prediction = scheduler.config.prediction_type
        if self._prediction not in ("epsilon", "v_prediction"):
            raise BadJob(
                f"--model: {info.folder} predicts {self._prediction}; only epsilon and "
                "v_prediction can be trained"
            )

    @property
    def most_tokens(self) -> int:
        return int(self.family.tokenizer.model_max_length)

    def save_lora(self, out: Path, weights: dict[str, Tensor]) -> None:
        AnimateDiffPipeline.save_lora_weights(out, unet_lora_layers=weights)

    def encode(self, frames_BFHWC: np.ndarray) -> Tensor:
        return encode_pictures(self.family.vae, to_signal(frames_BFHWC), CHUNK)

    def decode(self, latents_1CFHW: Tensor) -> np.ndarray:
        return self.family.decode_frames(latents_1CFHW)

    def predict(
        self, model: nn.Module, x_BCFHW: Tensor, times_B: Tensor, text_BND: Tensor, stride: int
    ) -> Tensor:
        return model(
            x_BCFHW,
            times_B.long(),
            encoder_hidden_states=text_BND.repeat_interleave(x_BCFHW.shape[2], dim=0),
            return_dict=False,
        )[0]

    def target(self, times_B: np.ndarray, clean_BCFHW: Tensor, noise_BCFHW: Tensor) -> Tensor:
        if self._prediction == "epsilon":
            return noise_BCFHW
        signal, amount = levels_of(self.path, times_B, clean_BCFHW)
        return signal * noise_BCFHW - amount * clean_BCFHW
