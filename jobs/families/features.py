"""How large a layer's features are: what accelerations keep with a tile. Pure."""

from __future__ import annotations

import math

from jobs.families.family import DTYPE_BYTES, Config


def feature_bytes(denoiser: Config, latent_size: tuple[int, int, int], dtype: str) -> int:
    """Of one layer and one guidance branch: a UNet's at its finest level, or a transformer's
    tokens; ``latent_size`` is (frames, height, width)."""
    if "block_out_channels" in denoiser:
        values = math.prod(latent_size) * denoiser["block_out_channels"][0]
    else:
        width = denoiser["num_attention_heads"] * denoiser["attention_head_dim"]
        values = math.prod(latent_size) // math.prod(denoiser["patch_size"]) * width
    return int(values * DTYPE_BYTES[dtype])
