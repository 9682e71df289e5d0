"""Stable Video Diffusion, image to video, over diffusers' components. Never calls a pipeline's
``__call__``.

The arithmetic, and its order, is that of ``StableVideoDiffusionPipeline.__call__``: both guidance
branches go through the UNet as one batch, unconditional first; the shot's image, encoded with a
little noise, is beside every frame; guidance rises from the first frame to the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)

from jobs.images import decode_image, read_image
from jobs.units import DecodeTask, ShotRender
from workers.decoding import to_rgb8
from workers.families.family import BranchContext
from workers.families.folder import FolderModel, Parts
from workers.noise import image_noise
from workers.schedulers import RangeStepper

#: The pipeline's defaults: how much motion is asked for, of 255; how much noise the image gets; and
#: the first frame's guidance.
MOTION_BUCKET_ID = 127
NOISE_AUG_STRENGTH = 0.02
MIN_GUIDANCE = 1.0


class SVDFamily(FolderModel):
    """One Stable Video Diffusion folder on one device."""

    name = "svd"
    pipeline = StableVideoDiffusionPipeline
    denoiser_kind = UNetSpatioTemporalConditionModel
    vae_kind = AutoencoderKLTemporalDecoder
    parts: ClassVar[Parts] = {
        "unet": ("UNetSpatioTemporalConditionModel",),
        "vae": ("AutoencoderKLTemporalDecoder",),
        "image_encoder": ("CLIPVisionModelWithProjection",),
        "feature_extractor": (
            "CLIPImageProcessor",
            "CLIPImageProcessorFast",
            "CLIPImageProcessorPil",
        ),
    }

    @cached_property
    def denoiser(self) -> Any:
        """Its weights want gradients, as the pipeline's do, though none are ever computed: torch
        multiplies matrices that do not lie in one piece by another kernel without."""
        return super().denoiser.requires_grad_(True)

    def _load_encoders(self) -> Any:
        """An image is encoded in float32, as the pipeline does for weights in float16."""
        pipeline = super()._load_encoders()
        pipeline.vae = self._load_encoder(self.vae_kind, "vae", torch_dtype=torch.float32)
        return pipeline

    def embed(self, pipeline: Any, shot: ShotRender) -> dict[str, torch.Tensor]:
        """``image``: CLIP's embedding [1, 1, text_dim]. ``image_latents``: [1, C, H, W]."""
        assert shot.image is not None, "the plan has an image for every shot of this family"
        image = decode_image(read_image(shot.image), shot.image.path)
        embedding = pipeline._encode_image(image, self.encodes_on, 1, False)
        vae = pipeline.vae
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        height, width = scale * shot.latent_height, scale * shot.latent_width
        pixels = pipeline.video_processor.preprocess(image, height=height, width=width)
        noise = image_noise(shot, height, width).to(self.encodes_on)
        pixels = pixels.to(self.encodes_on) + NOISE_AUG_STRENGTH * noise
        return {"image": embedding, "image_latents": vae.encode(pixels).latent_dist.mode()}

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
        frames = latents.shape[2]
        assert frames == shot.latent_frames, "a shot is one window"
        image, embedding = embeddings["image_latents"], embeddings["image"]
        told = torch.tensor([[shot.fps - 1, MOTION_BUCKET_ID, NOISE_AUG_STRENGTH]])
        hidden = stepper.scale_input(latents, step).to(model.dtype).transpose(1, 2)
        if self.guided(shot):
            hidden, told = torch.cat([hidden] * 2), torch.cat([told] * 2)
            image, embedding = _with_blank(image), _with_blank(embedding)
        beside = image.unsqueeze(1).repeat(1, frames, 1, 1, 1)
        with branch("both" if self.guided(shot) else "cond"):
            prediction = model(
                torch.cat([hidden, beside], dim=2),
                stepper.timesteps[step],
                encoder_hidden_states=embedding,
                added_time_ids=told.to(latents.device, embedding.dtype),
                return_dict=False,
            )[0].transpose(1, 2)
        if not self.guided(shot):
            return prediction
        uncond, cond = prediction.chunk(2)
        guidance = torch.linspace(MIN_GUIDANCE, shot.guidance[0], frames)
        guidance = guidance.to(prediction.device, prediction.dtype).view(1, 1, frames, 1, 1)
        return uncond + guidance * (cond - uncond)

    @torch.no_grad()
    def decode(self, task: DecodeTask, latents: torch.Tensor) -> np.ndarray:
        """The whole shot at once: every frame of the decoder looks at the frames around it."""
        assert (task.warm_start, task.start, task.stop) == (0, 0, task.shot.latent_frames)
        self.free_text()
        vae = self.vae
        frames = latents.to(vae.device, vae.dtype)[0].transpose(0, 1)  # [T, C, H, W]
        scaled = 1 / vae.config.scaling_factor * frames.contiguous()
        pixels = vae.decode(scaled, num_frames=len(scaled)).sample.float()  # [T, 3, H, W]
        return to_rgb8(pixels.transpose(0, 1).unsqueeze(0))


def _with_blank(tensor: torch.Tensor) -> torch.Tensor:
    """The unconditional branch sees zeros instead."""
    return torch.cat([torch.zeros_like(tensor), tensor])
