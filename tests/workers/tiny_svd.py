"""A tiny Stable Video Diffusion folder with random weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from jobs.images import ImageFile
from jobs.units import ShotRender
from tests.workers.tiny import CHANNELS, tiny_shot

FRAMES = 7  # the most of a shot
SCALE_PX = 2  # pixels per latent pixel
WIDTH = 16  # of the image's embedding

#: As stabilityai/stable-video-diffusion-img2vid has it.
SCHEDULER = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}


def tiny_unet() -> UNetSpatioTemporalConditionModel:
    torch.manual_seed(1)
    return UNetSpatioTemporalConditionModel(
        in_channels=2 * CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        num_attention_heads=2,
        num_frames=FRAMES,
    ).eval()


def tiny_vae() -> AutoencoderKLTemporalDecoder:
    torch.manual_seed(2)
    return AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        latent_channels=CHANNELS,
        scaling_factor=0.7,
    ).eval()


def tiny_image_encoder() -> CLIPVisionModelWithProjection:
    torch.manual_seed(3)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
    )
    return CLIPVisionModelWithProjection(config).eval()


def write_tiny_svd(folder: Path) -> Path:
    """Write a complete diffusers folder; returns it."""
    pipeline = StableVideoDiffusionPipeline(
        vae=tiny_vae(),
        image_encoder=tiny_image_encoder(),
        unet=tiny_unet(),
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
        feature_extractor=CLIPImageProcessor(),
    )
    pipeline.save_pretrained(folder)
    return folder


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (60, 40)) -> ImageFile:
    """A picture of coloured blocks, ``size`` being (width, height)."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize(size).save(path)
    return ImageFile(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), *size)


def svd_shot(image: ImageFile, **changes: object) -> ShotRender:
    """A shot of 5 frames, 32x32 px, 4 steps, guided."""
    return tiny_shot(
        **{
            "image": image,
            "prompt": "",
            "scheduler": "euler",
            "guidance": (3.0,),
            "stage_steps": (4,),
            "latent_frames": 5,
            "pixel_frames": 5,
            "text_tokens": 1,
            "fps": 7,
        }
        | changes
    )
