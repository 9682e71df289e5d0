"""Tiny video models with random weights in float64, and a pass of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    CogVideoXTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
    WanTransformer3DModel,
)
from diffusers.models.normalization import RMSNorm

FRAMES = 5


@dataclass(frozen=True)
class Case:
    """A model and one pass of it on fixed inputs."""

    model: torch.nn.Module
    forward: Callable[[], torch.Tensor]


def random_(model: torch.nn.Module, std: float = 0.3) -> torch.nn.Module:
    """Norms begin as ones and last layers as zeros: then much of a model would not be seen."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.double().eval()


def motion_unet(height: int = 8, width: int = 12, batch: int = 2, **config: Any) -> Case:
    model = random_(
        UNetMotionModel(
            **{
                "block_out_channels": (8, 16),
                "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
                "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
                "norm_num_groups": 4,
                "layers_per_block": 2,
                "cross_attention_dim": 12,
                "num_attention_heads": 2,
                "motion_num_attention_heads": 2,
                "motion_max_seq_length": 8,
            }
            | config
        )
    )
    x = torch.randn(batch, 4, FRAMES, height, width, dtype=torch.float64)
    text = torch.randn(batch * FRAMES, 3, 12, dtype=torch.float64)
    return Case(model, lambda: model(x, 7, encoder_hidden_states=text).sample)


def svd_unet(height: int = 8, width: int = 12, batch: int = 2, layers: int = 2) -> Case:
    """32 channels at least: the temporal norms have 32 groups."""
    model = random_(
        UNetSpatioTemporalConditionModel(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=12,
            layers_per_block=1,
            cross_attention_dim=12,
            num_attention_heads=(2, 2),
            transformer_layers_per_block=layers,
        ),
        std=0.1,
    )
    x = torch.randn(batch, FRAMES, 8, height, width, dtype=torch.float64)
    image = torch.randn(batch, 1, 12, dtype=torch.float64)
    ids = torch.tensor([[6.0, 127.0, 0.02]] * batch, dtype=torch.float64)
    return Case(model, lambda: model(x, 7, image, ids).sample)


def temporal_decoder() -> Case:
    model = random_(
        AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            layers_per_block=1,
        ),
        std=0.1,
    )
    z = torch.randn(FRAMES, 4, 7, 6, dtype=torch.float64)
    return Case(model, lambda: model.decode(z, num_frames=FRAMES).sample)


def decoder() -> Case:
    model = random_(
        AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
        )
    )
    z = torch.randn(FRAMES, 4, 7, 6, dtype=torch.float64)
    return Case(model, lambda: model.decode(z).sample)


def hunyuan_video_decoder(latent_frames: int = 4) -> Case:
    """More than five latent frames are decoded in tiles."""
    model = random_(
        AutoencoderKLHunyuanVideo(
            latent_channels=4,
            block_out_channels=(4, 8, 8, 16),
            layers_per_block=1,
            norm_num_groups=4,
        ),
        std=0.2,
    )
    z = torch.randn(2, 4, latent_frames, 3, 2, dtype=torch.float64)
    return Case(model, lambda: model.decode(z).sample)


def cogvideox_decoder(latent_frames: int = 5) -> Case:
    """Decoded two latent frames at a time, the first time one more if their number is odd."""
    model = random_(
        AutoencoderKLCogVideoX(
            latent_channels=4,
            block_out_channels=(4, 8, 8, 16),
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            layers_per_block=1,
            norm_num_groups=4,
        ),
        std=0.2,
    )
    z = torch.randn(2, 4, latent_frames, 3, 2, dtype=torch.float64)
    return Case(model, lambda: model.decode(z).sample)


def ltx_decoder(latent_frames: int = 4, *, later: bool = False, **config: Any) -> Case:
    """``later``: as since 0.9.1, told the time, and with doublings that add their input. Its norms
    have float64 statistics here: float32's depend on how features lie in memory."""
    doubles, widths = (True, True, later), (16, 32, 32)
    more = {"timestep_conditioning": True, "upsample_residual": (True,) * 3} if later else {}
    model = random_(
        AutoencoderKLLTXVideo(
            **{
                "latent_channels": 4,
                "block_out_channels": widths,
                "decoder_block_out_channels": (32, 64, 128) if later else widths,
                "down_block_types": ("LTXVideoDownBlock3D",) * 3,
                "layers_per_block": (1,) * 4,
                "decoder_layers_per_block": (1,) * 4,
                "spatio_temporal_scaling": doubles,
                "decoder_spatio_temporal_scaling": doubles,
                "decoder_inject_noise": (False,) * 4,
                "downsample_type": ("conv",) * 3,
                "upsample_residual": (False,) * 3,
                "upsample_factor": (2 if later else 1,) * 3,
                "patch_size": 2,
            }
            | more
            | config
        ),
        std=0.2,
    )
    for module in model.modules():
        if type(module) is RMSNorm:
            module.__class__ = _Float64RMSNorm
    z = torch.randn(2, 4, latent_frames, 5, 3, dtype=torch.float64)
    time = torch.tensor([0.05, 0.05], dtype=torch.float64) if later else None
    return Case(model, lambda: model.decode(z, time).sample)


def wan_decoder(latent_frames: int = 4, **config: Any) -> Case:
    """Decoded one latent frame at a time."""
    model = random_(
        AutoencoderKLWan(
            **{
                "base_dim": 8,
                "z_dim": 4,
                "num_res_blocks": 1,
                "latents_mean": [0.0] * 4,
                "latents_std": [1.0] * 4,
            }
            | config
        ),
        std=0.15,
    )
    model.clear_cache()  # makes it
    z = torch.randn(2, 4, latent_frames, 5, 3, dtype=torch.float64)
    return Case(model, lambda: model.decode(z).sample)


class _Float64RMSNorm(RMSNorm):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * torch.rsqrt(hidden_states.square().mean(-1, keepdim=True) + self.eps)


def wan(
    *, image: bool = False, times_per_token: bool = False, alike: bool = False, layers: int = 2
) -> Case:
    """``image``: of Wan 2.1's image-to-video kind. ``times_per_token``: as Wan 2.2's 5B, with an
    image; ``alike``: without one."""
    config = {"image_dim": 10, "added_kv_proj_dim": 24} if image else {}
    model = random_(
        WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=96,
            num_layers=layers,
            rope_max_seq_len=64,
            **config,
        ),
        std=0.2,
    )
    x = torch.randn(2, 4, FRAMES, 6, 10, dtype=torch.float64)
    text = torch.randn(2, 512 if image else 7, 16, dtype=torch.float64)
    pictures = torch.randn(2, 3, 10, dtype=torch.float64) if image else None
    tokens = FRAMES * 3 * 5
    times = torch.arange(2 * tokens).view(2, tokens) if times_per_token else torch.tensor([7, 7])
    if alike:
        times = torch.tensor([7, 9])[:, None].expand(2, tokens)
    return Case(model, lambda: model(x, times, text, pictures).sample)


def ltx(*, times_per_token: bool = False, layers: int = 2) -> Case:
    model = random_(
        LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            num_layers=layers,
            caption_channels=10,
        ),
        std=0.2,
    )
    tokens = FRAMES * 4 * 5
    x = torch.randn(2, tokens, 4, dtype=torch.float64)
    text = torch.randn(2, 7, 10, dtype=torch.float64)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    times = torch.arange(2 * tokens).view(2, tokens) if times_per_token else torch.tensor([7, 7])
    size = {"num_frames": FRAMES, "height": 4, "width": 5}
    return Case(model, lambda: model(x, text, times, mask, **size).sample)


def cogvideox(*, rotary: bool = True, layers: int = 2) -> Case:
    """``rotary``: as the 5B model; without, learned positions, as the 2B one."""
    model = random_(
        CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=10,
            num_layers=layers,
            sample_width=12,
            sample_height=8,
            sample_frames=4 * FRAMES - 3,
            max_text_seq_length=7,
            use_rotary_positional_embeddings=rotary,
        ),
        std=0.2,
    )
    x = torch.randn(2, FRAMES, 4, 8, 12, dtype=torch.float64)
    text = torch.randn(2, 7, 10, dtype=torch.float64)
    angles = torch.randn(2, FRAMES * 4 * 6, 16, dtype=torch.float64)
    turn = (angles[0].cos(), angles[1].sin()) if rotary else None
    return Case(model, lambda: model(x, text, torch.tensor([7, 7]), image_rotary_emb=turn).sample)


def hunyuan_video(*, guidance: bool = True) -> Case:
    """Two double blocks and two single ones; the second prompt is shorter, and masked."""
    model = random_(
        HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            num_single_layers=2,
            num_refiner_layers=1,
            guidance_embeds=guidance,
            text_embed_dim=10,
            pooled_projection_dim=6,
            rope_axes_dim=(4, 6, 6),
        ),
        std=0.2,
    )
    x = torch.randn(2, 4, FRAMES, 8, 12, dtype=torch.float64)
    text, pooled = (torch.randn(2, *shape, dtype=torch.float64) for shape in ((7, 10), (6,)))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    told = torch.tensor([6000.0, 6000.0], dtype=torch.float64) if guidance else None
    return Case(model, lambda: model(x, torch.tensor([7, 7]), text, mask, pooled, told).sample)
