"""Tiny video models with random weights in float64, and a pass of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNetMotionModel

FRAMES = 5


@dataclass(frozen=True)
class Case:
    """A model and one pass of it on fixed inputs."""

    model: torch.nn.Module
    forward: Callable[[], torch.Tensor]


def random_(model: torch.nn.Module) -> torch.nn.Module:
    """Norms begin as ones and last layers as zeros: then much of a model would not be seen."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
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
