"""Models with random weights: small ones, whose pass takes seconds at most, and published widths
on few small frames, whose pass takes a minute. For times on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
    WanTransformer3DModel,
)

Forward = Callable[[], Any]


def small_wan() -> tuple[Any, Forward]:
    model: Any = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, ffn_dim=64, num_layers=3, text_dim=32
    )
    x, t, text = torch.randn(1, 16, 5, 16, 16), torch.tensor([5]), torch.randn(1, 512, 32)
    return model, lambda: model(x, t, text)


def small_animatediff(frames: int = 8) -> tuple[Any, Forward]:
    """With 64 channels of text."""
    unet: Any = UNetMotionModel(
        block_out_channels=(64, 128, 128),
        down_block_types=("CrossAttnDownBlockMotion",) * 2 + ("DownBlockMotion",),
        up_block_types=("UpBlockMotion",) + ("CrossAttnUpBlockMotion",) * 2,
        cross_attention_dim=64,
        num_attention_heads=4,
        motion_num_attention_heads=4,
    )
    x, text = torch.randn(2, 4, frames, 32, 32), torch.randn(2 * frames, 77, 64)
    return unet, lambda: unet(x, 5, encoder_hidden_states=text)


def small_svd() -> tuple[Any, Forward]:
    kinds, model = "BlockSpatioTemporal", UNetSpatioTemporalConditionModel
    unet: Any = model(
        block_out_channels=(64, 128, 128),
        down_block_types=("CrossAttnDown" + kinds,) * 2 + ("Down" + kinds,),
        up_block_types=("Up" + kinds,) + ("CrossAttnUp" + kinds,) * 2,
        cross_attention_dim=64,
        num_attention_heads=(4,) * 3,
    )
    x, image, ids = torch.randn(2, 7, 8, 32, 32), torch.randn(2, 1, 64), torch.randn(2, 3)
    return unet, lambda: unet(x, 5, image, ids)


def published_animatediff() -> tuple[Any, Forward]:
    """Sixteen frames of 128x128."""
    unet: Any = UNetMotionModel(
        cross_attention_dim=768, num_attention_heads=8, motion_max_seq_length=32
    )
    x, text = torch.randn(2, 4, 16, 16, 16), torch.randn(2 * 16, 77, 768)
    return unet, lambda: unet(x, 5, encoder_hidden_states=text)


def published_svd() -> tuple[Any, Forward]:
    """Seven frames of 128x128."""
    unet: Any = UNetSpatioTemporalConditionModel()
    x, image, ids = torch.randn(2, 7, 8, 16, 16), torch.randn(2, 1, 1024), torch.randn(2, 3)
    return unet, lambda: unet(x, 5, image, ids)


def published_svd_decoder() -> tuple[Any, Forward]:
    """Seven frames of 128x128."""
    vae: Any = AutoencoderKLTemporalDecoder(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        layers_per_block=2,
    )
    z = torch.randn(7, 4, 16, 16)
    return vae, lambda: vae.decode(z, num_frames=7)


def small_svd_decoder() -> tuple[Any, Forward]:
    """A clip of 7 frames, which it decodes in one piece."""
    vae: Any = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        layers_per_block=1,
    )
    z = torch.randn(7, 4, 32, 32)
    return vae, lambda: vae.decode(z, num_frames=7)


def small_wan_decoder() -> tuple[Any, Forward]:
    vae: Any = AutoencoderKLWan(base_dim=16)
    z = torch.randn(1, 16, 3, 16, 16)
    return vae, lambda: vae.decode(z)
