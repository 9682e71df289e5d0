"""Tiny CogVideoX folders with random weights: of the kind of 2b and of 5b."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel

from jobs.units import ShotRender
from tests.workers.tiny import CHANNELS, tiny_shot, tiny_tokenizer

TEXT_TOKENS = 20

#: Autoencoders: one doubling of everything, and the ratio of time that CogVideoX has.
SMALL_VAE = {"block_out_channels": (4, 8), "layers_per_block": 1, "temporal_compression_ratio": 2}
DEEP_VAE = {
    "block_out_channels": (4, 4, 8),
    "layers_per_block": 1,
    "temporal_compression_ratio": 4,
}
SCALE_PX = 2  # pixels per latent pixel of SMALL_VAE


def tiny_vae(config: Mapping[str, object] = SMALL_VAE) -> AutoencoderKLCogVideoX:
    torch.manual_seed(2)
    levels = len(config["block_out_channels"])
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * levels,
        up_block_types=("CogVideoXUpBlock3D",) * levels,
        latent_channels=CHANNELS,
        norm_num_groups=2,
        scaling_factor=0.7,
        **config,
    ).eval()


def tiny_transformer(*, rotary: bool, layers: int = 2) -> CogVideoXTransformer3DModel:
    torch.manual_seed(1)
    return CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=layers,
        sample_width=16,
        sample_height=16,
        sample_frames=9,
        temporal_compression_ratio=2,
        max_text_seq_length=TEXT_TOKENS,
        use_rotary_positional_embeddings=rotary,
    ).eval()


def tiny_text_encoder() -> T5EncoderModel:
    torch.manual_seed(3)
    config = T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    return T5EncoderModel(config).eval()


def write_tiny_cogvideox(folder: Path, *, rotary: bool = False, layers: int = 2) -> Path:
    """Write a complete diffusers folder, of 5b's kind where it is ``rotary``; returns it."""
    kind, shift = (CogVideoXDPMScheduler, 1.0) if rotary else (CogVideoXDDIMScheduler, 3.0)
    pipeline = CogVideoXPipeline(
        tokenizer=tiny_tokenizer(),
        text_encoder=tiny_text_encoder(),
        vae=tiny_vae(),
        transformer=tiny_transformer(rotary=rotary, layers=layers),
        scheduler=kind(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=shift,
            timestep_spacing="trailing",
            clip_sample=False,
        ),
    )
    pipeline.save_pretrained(folder)
    return folder


def cogvideox_shot(**changes: object) -> ShotRender:
    """A shot of 9 latent frames, 32x32 px, 4 steps, guided."""
    return tiny_shot(
        **{
            "scheduler": "auto",
            "stage_steps": (4,),
            "guidance": (6.0,),
            "text_tokens": TEXT_TOKENS,
        }
        | changes
    )
