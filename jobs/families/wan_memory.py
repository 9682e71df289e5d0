"""How much memory a Wan model needs, estimated from its configs. Pure.

Estimates, for planning: a worker measures what it really has left, and what runs out is retried.
"""

from __future__ import annotations

from jobs.families.family import VAE_BYTES, Config
from jobs.families.tokens_memory import tokens_bytes

#: Live copies of a token's features while a block runs: queries, keys, values, feed-forward.
_TOKEN_COPIES = 16

#: Live copies of a decoder level's features while a residual block runs: the block's input, the
#: normalised one, that with its past and padding, and the convolution's result. A CPU's libraries
#: take workspace besides: peaks measured there were about one and a half times the estimate.
_LEVEL_COPIES = 4

#: Frames of its past that a causal convolution keeps.
_PAST_FRAMES = 2

#: Bytes per colour value of a decoded piece: float32 frames, joined, rescaled and made uint8.
_PIXEL_BYTES = 16


def denoise_bytes(
    transformer: Config, latent_size: tuple[int, int, int], dtype: str, text_tokens: int
) -> int:
    """Estimate of a tile's activations in the denoiser; ``latent_size`` is (frames, height,
    width)."""
    frames, height, width = latent_size
    _, patch_height, patch_width = transformer["patch_size"]
    tokens = frames * (height // patch_height) * (width // patch_width)
    features = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    return tokens_bytes(features, tokens, text_tokens, dtype, copies=_TOKEN_COPIES)


def decode_bytes(vae: Config, height_px: int, width_px: int, pixel_frames: int) -> int:
    """Estimate of what decoding a piece of ``pixel_frames`` needs.

    The decoder takes one latent frame at a time, so its activations don't grow with the piece:
    they are the past that every causal convolution keeps, and the largest level at work.
    """
    patch = vae.get("patch_size") or 1
    base = vae.get("decoder_base_dim") or vae.get("base_dim") or 96
    widths = [base * multiple for multiple in reversed(vae["dim_mult"])]
    doubles = [*reversed(vae["temperal_downsample"]), False]
    resnets = 2 * ((vae.get("num_res_blocks") or 2) + 1)  # convolutions of a level
    past = work = 0
    frames = 1
    for level, width in enumerate(widths):
        last = level == len(widths) - 1
        area = (height_px // patch) * (width_px // patch) // 4 ** (len(widths) - 1 - level)
        convolutions = resnets + (5 if level == 0 else 0) + doubles[level] + last
        past += convolutions * _PAST_FRAMES * width * area
        work = max(work, _LEVEL_COPIES * (frames + _PAST_FRAMES) * width * area)
        frames *= 2 if doubles[level] else 1
        if not last:  # upsampled with all its channels, then halved
            work = max(work, frames * (width + width // 2) * 4 * area)
    pixels = pixel_frames * height_px * width_px * 3
    return int((past + work) * VAE_BYTES + pixels * _PIXEL_BYTES)
