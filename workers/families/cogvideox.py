"""CogVideoX, text to video, over diffusers' components. Never calls a pipeline's ``__call__``.

The arithmetic, and its order, is that of ``CogVideoXPipeline.__call__``: both guidance branches go
through the transformer as one batch, unconditional first, and guide in float32. Its latents are
[B, T, C, H, W], ours [B, C, T, H, W]: they are turned where they enter and leave the transformer.
Rotary positions (5b) and fixed ones (2b) count each window's frames from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

from jobs.units import DecodeTask, ShotRender
from workers.cogvideox_decoding import CogVideoXLane
from workers.decoding import to_rgb8
from workers.families.family import BranchContext
from workers.families.folder import (
    T5_TOKENIZERS,
    FolderFamily,
    Parts,
    check_length,
)
from workers.lanes import go_on
from workers.schedulers import RangeStepper


class CogVideoXFamily(FolderFamily):
    """One CogVideoX folder on one device."""

    name = "cogvideox"
    pipeline = CogVideoXPipeline
    denoiser_kind = CogVideoXTransformer3DModel
    vae_kind = AutoencoderKLCogVideoX
    rounds_latents = True
    parts: ClassVar[Parts] = {
        "transformer": ("CogVideoXTransformer3DModel",),
        "vae": ("AutoencoderKLCogVideoX",),
        "text_encoder": ("T5EncoderModel",),
        "tokenizer": T5_TOKENIZERS,
    }

    def encode_prompts(
        self, pipeline: Any, shot: ShotRender
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        check_length(pipeline.tokenizer, shot.text_tokens, *self.prompts_read(shot))
        return pipeline.encode_prompt(
            shot.prompt,
            shot.negative_prompt,
            self.guided(shot),
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
        branches = ("uncond", "cond") if self.guided(shot) else ("cond",)
        z_BTCHW = torch.cat([latents.to(model.dtype).transpose(1, 2)] * len(branches))
        frames, _, height, width = z_BTCHW.shape[1:]
        with branch("both" if self.guided(shot) else "cond"), model.cache_context("cond_uncond"):
            prediction = model(
                hidden_states=z_BTCHW,
                encoder_hidden_states=torch.cat([embeddings[name] for name in branches]),
                timestep=stepper.timesteps[step].expand(len(branches)),
                image_rotary_emb=rotary_positions(model, frames, height, width),
                return_dict=False,
            )[0]
        prediction = prediction.float().transpose(1, 2)
        if not self.guided(shot):
            return prediction
        uncond, cond = prediction.chunk(2)
        return uncond + shot.guidance[0] * (cond - uncond)

    def decode(self, task: DecodeTask, latents: torch.Tensor) -> np.ndarray:
        self.free_text()
        pixels, lane = go_on(
            partial(CogVideoXLane, self.vae),
            latents,
            warm_start=task.warm_start,
            start=task.start,
            lane=self._lanes.take(task.unit.shot, self.vae.device),
        )
        if lane.position < task.shot.latent_frames:
            self._lanes.keep(task.unit.shot, lane)
        return to_rgb8(pixels)


def rotary_positions(
    model: CogVideoXTransformer3DModel, latent_frames: int, latent_height: int, latent_width: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Cosines and sines [latent_frames * patches, attention_head_dim] of a window's positions, as
    ``CogVideoXPipeline._prepare_rotary_positional_embeddings`` has them; None for a model without
    rotary positions. Height and width are fitted into those that the model was trained with."""
    config = model.config
    if not config.use_rotary_positional_embeddings:
        return None
    patch = config.patch_size
    grid = latent_height // patch, latent_width // patch
    return get_3d_rotary_pos_embed(
        embed_dim=config.attention_head_dim,
        crops_coords=get_resize_crop_region_for_grid(
            grid, config.sample_width // patch, config.sample_height // patch
        ),
        grid_size=grid,
        temporal_size=latent_frames,
        device=model.device,
    )
