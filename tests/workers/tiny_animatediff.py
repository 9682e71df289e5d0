"""A tiny AnimateDiff folder with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from jobs.units import ShotRender
from tests.workers.tiny import CHANNELS, tiny_shot, tiny_tokenizer

TEXT_TOKENS = 20
SCALE_PX = 2  # pixels per latent pixel


def tiny_unet() -> UNetMotionModel:
    torch.manual_seed(1)
    return UNetMotionModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=16,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=16,
    ).eval()


def tiny_text_encoder() -> CLIPTextModel:
    torch.manual_seed(3)
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_TOKENS,
        eos_token_id=1,
        bos_token_id=2,
        pad_token_id=0,
    )
    return CLIPTextModel(config).eval()


def tiny_vae() -> AutoencoderKL:
    torch.manual_seed(2)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=CHANNELS,
        scaling_factor=0.7,
    ).eval()


def write_tiny_animatediff(folder: Path) -> Path:
    """Write a complete diffusers folder; returns it."""
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = TEXT_TOKENS
    pipeline = AnimateDiffPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tokenizer,
        unet=tiny_unet(),
        motion_adapter=None,
        scheduler=DDIMScheduler(
            beta_schedule="linear", clip_sample=False, steps_offset=1, timestep_spacing="linspace"
        ),
    )
    pipeline.save_pretrained(folder)
    return folder


def write_as_published(base: Path, adapter: Path) -> None:
    """The same model's two parts: a Stable Diffusion folder, and a motion adapter."""
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = TEXT_TOKENS
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
    )
    StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(base)
    MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        motion_max_seq_length=16,
    ).save_pretrained(adapter)


def animatediff_shot(**changes: object) -> ShotRender:
    """A shot of 9 frames, 32x32 px, 6 steps, guided."""
    return tiny_shot(
        **{"scheduler": "ddim", "pixel_frames": 9, "text_tokens": TEXT_TOKENS} | changes
    )
