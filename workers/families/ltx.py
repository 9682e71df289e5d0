"""LTX-Video, text to video, over diffusers' components. Never calls a pipeline's ``__call__``.

The arithmetic, and its order, is that of ``LTXPipeline.__call__``: both guidance branches go
through the transformer as one batch, unconditional first, and guide in float32. Its latents are
packed, [B, T * H * W, C]; ours [B, C, T, H, W] are packed where they enter the transformer. Rotary
positions count each window's frames from 0, in seconds at the shot's frame rate.

From 0.9.5 on it is that of ``LTXConditionPipeline.__call__`` without conditions, which guides in
the transformer's own dtype, and tells it where each place begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    LTXConditionPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)

from jobs.units import DecodeTask, ShotRender
from workers.decoding import to_rgb8
from workers.families.family import BranchContext
from workers.families.folder import (
    OR_READ_MORE,
    T5_TOKENIZERS,
    FolderFamily,
    Parts,
    check_length,
)
from workers.ltx_decoding import decode_range
from workers.schedulers import RangeStepper


class LTXFamily(FolderFamily):
    """One LTX-Video folder on one device."""

    name = "ltx"
    pipeline = LTXPipeline
    denoiser_kind = LTXVideoTransformer3DModel
    vae_kind = AutoencoderKLLTXVideo
    guides_in: ClassVar[torch.dtype | None] = torch.float32  # None: in the denoiser's dtype
    parts: ClassVar[Parts] = {
        "transformer": ("LTXVideoTransformer3DModel",),
        "vae": ("AutoencoderKLLTXVideo",),
        "text_encoder": ("T5EncoderModel",),
        "tokenizer": T5_TOKENIZERS,
    }

    def encode(self, shot: ShotRender) -> dict[str, torch.Tensor]:
        """``cond`` and, with guidance, ``uncond``: [1, text_tokens, text_dim]; and of each the
        ``.mask`` [1, text_tokens] of the tokens that are not padding."""
        embeddings = super().encode(shot)
        prompts = {"cond": shot.prompt, "uncond": shot.negative_prompt}
        masks = {f"{name}.mask": self._mask(prompts[name], shot) for name in embeddings}
        return embeddings | masks

    def encode_prompts(
        self, pipeline: Any, shot: ShotRender
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        check_length(
            pipeline.tokenizer, shot.text_tokens, *self.prompts_read(shot), fix=OR_READ_MORE
        )
        cond, _, uncond, _ = pipeline.encode_prompt(
            shot.prompt,
            shot.negative_prompt,
            self.guided(shot),
            max_sequence_length=shot.text_tokens,
            device=self.encodes_on,
        )
        return cond, uncond

    def _mask(self, prompt: str, shot: ShotRender) -> torch.Tensor:
        """In the denoiser's dtype, in which the transformer reads it."""
        told = self._text.tokenizer(
            prompt,
            padding="max_length",
            max_length=shot.text_tokens,
            truncation=True,
            return_tensors="pt",
        )
        return told.attention_mask.to(self.encodes_on, self._dtype)

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
        size = frames, height, width = latents.shape[2:]
        packed_BSC = latents.permute(0, 2, 3, 4, 1).flatten(1, 3)
        if self.guided(shot):
            packed_BSC = torch.cat([packed_BSC] * 2)
        with branch("both" if self.guided(shot) else "cond"), model.cache_context("cond_uncond"):
            prediction_BSC = model(
                hidden_states=packed_BSC.to(model.dtype),
                encoder_hidden_states=torch.cat([embeddings[name] for name in branches]),
                timestep=stepper.timesteps[step].expand(len(branches)),
                encoder_attention_mask=torch.cat([embeddings[f"{each}.mask"] for each in branches]),
                num_frames=frames,
                height=height,
                width=width,
                return_dict=False,
                **self._positions(shot, size, len(branches)),
            )[0]
        guided_in = self.guides_in or model.dtype
        prediction = prediction_BSC.to(guided_in).unflatten(1, size).permute(0, 4, 1, 2, 3)
        if not self.guided(shot):
            return prediction.float()
        uncond, cond = prediction.chunk(2)
        return (uncond + shot.guidance[0] * (cond - uncond)).float()

    def _positions(self, shot: ShotRender, size: tuple[int, ...], batch: int) -> dict[str, Any]:
        """What tells the transformer where the latent places of a tile stand: how far apart, in
        seconds, and in pixels of height and width."""
        space, time = self.geometry.spatial_scale, self.geometry.temporal_scale
        return {"rope_interpolation_scale": (time / shot.fps, space, space)}

    def decode(self, task: DecodeTask, latents: torch.Tensor) -> np.ndarray:
        self.free_text()
        return to_rgb8(decode_range(self.vae, latents, task.warm_start, task.start, task.stop))


class LTXConditionFamily(LTXFamily):
    """One folder of LTX-Video from 0.9.5 on, given text alone."""

    name = "ltx-condition"
    pipeline = LTXConditionPipeline
    guides_in = None

    def _positions(self, shot: ShotRender, size: tuple[int, ...], batch: int) -> dict[str, Any]:
        """Where each place begins [B, 3, T * H * W]: in seconds, and in pixels of height and
        width. The first latent frame is one pixel frame, all others many: a window in mid-shot is
        told that of its own first frame, as if it began the shot."""
        space, time = self.geometry.spatial_scale, self.geometry.temporal_scale
        places = self.pipeline._prepare_video_ids(batch, *size, device=self.device)
        starts = self.pipeline._scale_video_ids(places, space, time, device=self.device).float()
        starts[:, 0] *= 1 / shot.fps
        return {"video_coords": starts}
