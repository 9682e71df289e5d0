"""AnimateDiff, text to video, over diffusers' components. Never calls a pipeline's ``__call__``.

The arithmetic, and its order, is that of ``AnimateDiffPipeline.__call__``: both guidance branches
go through the UNet as one batch, unconditional first. Every latent frame is decoded by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AnimateDiffPipeline, AutoencoderKL, UNetMotionModel

from jobs.units import DecodeTask, ShotRender
from workers.decoding import to_rgb8
from workers.families.family import BranchContext
from workers.families.folder import CLIP_TOKENIZERS, FolderFamily, Parts, check_length
from workers.schedulers import RangeStepper


class AnimateDiffFamily(FolderFamily):
    """One AnimateDiff folder on one device."""

    name = "animatediff"
    pipeline = AnimateDiffPipeline
    denoiser_kind = UNetMotionModel
    vae_kind = AutoencoderKL
    parts: ClassVar[Parts] = {
        "unet": ("UNetMotionModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": CLIP_TOKENIZERS,
    }

    def encode_prompts(
        self, pipeline: Any, shot: ShotRender
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        tokenizer = pipeline.tokenizer
        check_length(tokenizer, tokenizer.model_max_length, shot.prompt, shot.negative_prompt)
        return pipeline.encode_prompt(
            shot.prompt, self.encodes_on, 1, self.guided(shot), shot.negative_prompt
        )

    @torch.no_grad()
    def predict(
        self,
        shot: ShotRender,
        latents: torch.Tensor,
        stepper: RangeStepper,
        step: int,
        embeddings: Mapping[str, torch.Tensor],
        branch: BranchContext,
    ) -> torch.Tensor:
        self.free_text()
        model = self.denoiser
        branches = ("uncond", "cond") if self.guided(shot) else ("cond",)
        text = [embeddings[name] for name in branches]
        seen = stepper.scale_input(latents, step)
        hidden = torch.cat([seen.to(model.dtype)] * len(text))
        with branch("both" if self.guided(shot) else "cond"):
            prediction = model(
                hidden,
                stepper.timesteps[step],
                encoder_hidden_states=torch.cat(text).repeat_interleave(latents.shape[2], dim=0),
                return_dict=False,
            )[0]
        if not self.guided(shot):
            return prediction
        uncond, cond = prediction.chunk(2)
        return uncond + shot.guidance[0] * (cond - uncond)

    def decode(self, task: DecodeTask, latents: torch.Tensor) -> np.ndarray:
        self.free_text()
        first = task.start - task.warm_start
        return self.decode_frames(latents[:, :, first : first + task.stop - task.start])

    @torch.no_grad()
    def decode_frames(self, latents: torch.Tensor) -> np.ndarray:
        """RGB uint8 [F, H, W, 3]; each frame by itself, so that a piece has the bits of a whole."""
        vae, (frames,) = self.vae, latents
        scaled = 1 / vae.config.scaling_factor * frames.to(vae.device, vae.dtype)
        pixels = [vae.decode(each[None]).sample for each in scaled.unbind(1)]
        pixels = torch.stack(pixels, dim=2).float()
        return to_rgb8(pixels)
