"""A tiny LTX-Video folder with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)

from jobs.units import ShotRender
from tests.workers.tiny import CHANNELS, tiny_shot, tiny_tokenizer
from tests.workers.tiny_cogvideox import tiny_text_encoder
from training.families.ltx import SCHEDULER

TEXT_TOKENS = 24

#: Autoencoders: the first release's kind, with one doubling; the later ones' kind, which are
#: conditioned on time and double by residuals, with two; and a causal one.
SMALL_VAE = {
    "block_out_channels": (4, 8),
    "down_block_types": ("LTXVideoDownBlock3D",) * 2,
    "decoder_block_out_channels": (4, 8),
    "layers_per_block": (1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1),
    "spatio_temporal_scaling": (True, False),
    "decoder_spatio_temporal_scaling": (True, False),
    "decoder_inject_noise": (False, False, False),
    "downsample_type": ("conv", "conv"),
    "upsample_residual": (False, False),
    "upsample_factor": (1, 1),
    "patch_size": 2,
}
LATER_VAE = SMALL_VAE | {
    "decoder_block_out_channels": (8, 16),
    "spatio_temporal_scaling": (True, True),
    "decoder_spatio_temporal_scaling": (True, True),
    "upsample_residual": (True, True),
    "upsample_factor": (2, 2),
    "timestep_conditioning": True,
}
CAUSAL_VAE = SMALL_VAE | {"decoder_causal": True}


def tiny_vae(config: Mapping[str, object] = SMALL_VAE) -> AutoencoderKLLTXVideo:
    torch.manual_seed(2)
    vae = AutoencoderKLLTXVideo(latent_channels=CHANNELS, scaling_factor=0.7, **config).eval()
    vae.latents_mean += torch.arange(CHANNELS) * 0.1
    vae.latents_std += torch.arange(CHANNELS) * 0.3
    return vae


def tiny_transformer(layers: int = 2) -> LTXVideoTransformer3DModel:
    torch.manual_seed(1)
    return LTXVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=layers,
        caption_channels=16,
    ).eval()


def write_tiny_ltx(
    folder: Path,
    vae: Mapping[str, object] = SMALL_VAE,
    layers: int = 2,
    kind: type = LTXPipeline,
    **schedule: object,
) -> Path:
    """Write a complete diffusers folder, its scheduler as LTX-Video's first; returns it."""
    pipeline = kind(
        tokenizer=tiny_tokenizer(),
        text_encoder=tiny_text_encoder(),
        vae=tiny_vae(vae),
        transformer=tiny_transformer(layers),
        scheduler=FlowMatchEulerDiscreteScheduler(**schedule or SCHEDULER),
    )
    pipeline.save_pretrained(folder)
    return folder


def write_tiny_ltx_condition(folder: Path, layers: int = 2) -> Path:
    """The same as LTX-Video is published from 0.9.5 on."""
    return write_tiny_ltx(folder, LATER_VAE, layers, LTXConditionPipeline, shift=1.0)


def ltx_shot(**changes: object) -> ShotRender:
    """A shot of 9 latent frames, 32x32 px, 4 steps, guided."""
    return tiny_shot(
        **{
            "scheduler": "auto",
            "stage_steps": (4,),
            "guidance": (3.0,),
            "text_tokens": TEXT_TOKENS,
            "latent_height": 8,
            "latent_width": 8,
            "fps": 25,
        }
        | changes
    )
