"""Wan 2.1, and the 5B of Wan 2.2, text to video, over diffusers' components.

Never calls a pipeline's ``__call__``. The arithmetic, and its order, is that of
``WanPipeline.__call__``: tests compare bit for bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean

from accel.positions import stage_positions
from jobs.units import DecodeTask, ShotRender
from workers.decoding import decode_piece, to_rgb8
from workers.families.family import BranchContext
from workers.families.folder import (
    OR_READ_MORE,
    T5_TOKENIZERS,
    FolderFamily,
    Parts,
    check_length,
)
from workers.schedulers import RangeStepper


class WanFamily(FolderFamily):
    """One Wan 2.1 folder on one device."""

    name = "wan"
    pipeline = WanPipeline
    denoiser_kind = WanTransformer3DModel
    vae_kind = AutoencoderKLWan
    parts: ClassVar[Parts] = {
        "transformer": ("WanTransformer3DModel",),
        "vae": ("AutoencoderKLWan",),
        "text_encoder": ("UMT5EncoderModel",),
        "tokenizer": T5_TOKENIZERS,
    }

    def encode_prompts(
        self, pipeline: Any, shot: ShotRender
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        read = map(prompt_clean, self.prompts_read(shot))
        check_length(pipeline.tokenizer, shot.text_tokens, *read, fix=OR_READ_MORE)
        return pipeline.encode_prompt(
            prompt=shot.prompt,
            negative_prompt=shot.negative_prompt,
            do_classifier_free_guidance=self.guided(shot),
            max_sequence_length=shot.text_tokens,
            device=self.encodes_on,
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
        hidden = latents.to(model.dtype)
        timestep = self.times(stepper.timesteps[step], latents)
        where = _cache_context_arguments(model, stepper, step)

        stride = stepper.stride if shot.stage_positions else 1

        def forward(name: Any) -> torch.Tensor:
            places = stage_positions(model, stride)
            with branch(name), model.cache_context(name, **where), places:
                return model(
                    hidden_states=hidden,
                    timestep=timestep,
                    encoder_hidden_states=embeddings[name].to(model.dtype),
                    attention_kwargs=None,
                    return_dict=False,
                )[0]

        cond = forward("cond")
        if not self.guided(shot):
            return cond
        uncond = forward("uncond")
        return uncond + shot.guidance[0] * (cond - uncond)

    def times(self, time: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """What the denoiser is told of a step's time, for latents [B, C, T, H, W]: [B]."""
        return time.expand(latents.shape[0])

    def decode(self, task: DecodeTask, latents: torch.Tensor) -> np.ndarray:
        self.free_text()
        pixels, lane = decode_piece(
            self.vae,
            latents,
            warm_start=task.warm_start,
            start=task.start,
            lane=self._lanes.take(task.unit.shot, self.vae.device),
        )
        if lane.position < task.shot.latent_frames:
            self._lanes.keep(task.unit.shot, lane)
        return to_rgb8(pixels)


class WanTI2VFamily(WanFamily):
    """A folder of Wan 2.2's 5B, given text alone."""

    name = "wan-ti2v"

    def times(self, time: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """That of every token, [B, tokens], as the pipeline has it: one for all would give other
        bits. Slicing, whose bits are others anyway, tells it once."""
        batch, _, frames, height, width = latents.shape
        _, patch_height, patch_width = self.denoiser.config.patch_size
        tokens = frames * (height // patch_height) * (width // patch_width)
        return time.to(torch.float32).expand(batch, tokens)


def _cache_context_arguments(
    model: WanTransformer3DModel, stepper: RangeStepper, step: int
) -> dict[str, Any]:
    """What newer diffusers tell a cache about the step; older ones take the name alone."""
    accepted = inspect.signature(model.cache_context).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD or p.name == "step_index" for p in accepted):
        return {}
    return {
        "step_index": step,
        "sigma": stepper.sigma(step),
        "num_inference_steps": len(stepper.timesteps),
    }
