"""How large a layer's features are: what accelerations keep with a tile. Pure."""

from __future__ import annotations

import math

from jobs.families.family import DTYPE_BYTES, Config


def feature_bytes(
    denoiser: Config, latent_size: tuple[int, int, int], dtype: str, text_tokens: int = 0
) -> int:
    """Of one layer and one guidance branch: a UNet's at its finest level, or a transformer's
    tokens; ``latent_size`` is (frames, height, width). ``text_tokens`` are those whose features
    are kept, too."""
    if "block_out_channels" in denoiser:
        values = math.prod(latent_size) * denoiser["block_out_channels"][0]
    else:
        width = denoiser["num_attention_heads"] * denoiser["attention_head_dim"]
        tokens = math.prod(latent_size) // _patch_places(denoiser) + text_tokens
        values = tokens * width
    return int(values * DTYPE_BYTES[dtype])


def _patch_places(denoiser: Config) -> int:
    """Latent places of a token. One number is that of height and width, frames stand beside it."""
    patch = denoiser.get("patch_size") or 1
    if isinstance(patch, int):
        return patch**2 * (denoiser.get("patch_size_t") or 1)
    return math.prod(patch)
