"""How much memory Stable Diffusion's UNet needs with frames, estimated from its config. Pure."""

from __future__ import annotations

import math

from jobs.families.family import DTYPE_BYTES, Config

#: Live copies of the UNet's widest level at its peak, in a gated feed-forward of eight times its
#: width, skip connections among them: counted on Stable Diffusion 1.5's shapes.
_UNET_COPIES = 28


def unet_bytes(unet: Config, latent_size: tuple[int, int, int], dtype: str) -> int:
    """Activations of a tile, both guidance branches at once."""
    widths = unet["block_out_channels"]
    width = max(channels / 4**level for level, channels in enumerate(widths))
    return int(2 * math.prod(latent_size) * width * _UNET_COPIES * DTYPE_BYTES[dtype])
