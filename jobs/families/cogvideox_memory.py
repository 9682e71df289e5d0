"""How much memory a CogVideoX model needs, estimated from its configs. Pure.

Estimates, for planning: a worker measures what it really has left, and what runs out is retried.
"""

from __future__ import annotations

from jobs.families.family import DTYPE_BYTES, VAE_BYTES, Config

#: Live copies of a token's features while a block runs: queries, keys, values, feed-forward.
_TOKEN_COPIES = 16

#: Live copies of a decoder level's features while a residual block runs: its input, the normalised
#: one, scale and offset from the latents. Counted on CogVideoX's shapes.
_LEVEL_COPIES = 4

#: Frames of its past that a causal convolution keeps, and the copies of it while a batch replaces
#: the one before.
_PAST_FRAMES, _PAST_COPIES = 2, 2

#: Bytes per colour value of a decoded piece: float32 frames, joined, rescaled and made uint8.
_PIXEL_BYTES = 16


def denoise_bytes(transformer: Config, latent_size: tuple[int, int, int], dtype: str) -> int:
    """Estimate of a tile's activations in the denoiser; ``latent_size`` is (frames, height,
    width). Attention is counted as fused: its matrix is never held."""
    frames, height, width = latent_size
    patch = transformer["patch_size"]
    tokens = frames * (height // patch) * (width // patch) + transformer["max_text_seq_length"]
    features = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    branches = 2  # both guidance branches at once
    return int(branches * tokens * features * _TOKEN_COPIES * DTYPE_BYTES[dtype])


def decode_bytes(
    vae: Config, height_px: int, width_px: int, pixel_frames: int, batch_latent_frames: int
) -> int:
    """Estimate of what decoding a piece of ``pixel_frames`` needs.

    The decoder takes a batch of latent frames at a time, so its activations don't grow with the
    piece: they are the past that every causal convolution keeps, what every normalisation keeps of
    the latents until the batch is done (one copy of all of it for scale and offset each), and the
    largest level at work.
    """
    widths = [*reversed(vae["block_out_channels"])]
    resnets = vae["layers_per_block"] + 1
    doublings = int(vae["temporal_compression_ratio"]).bit_length() - 1
    frames, entering = batch_latent_frames + 1, widths[0]  # the first batch has one more
    past = work = 0
    for level, width in enumerate(widths):
        area = (height_px * width_px) // 4 ** (len(widths) - 1 - level)
        # A convolution follows each normalisation: of the middle block first, of the end last.
        normalised = 2 * (resnets + 2 * (level == 0)) + (level == len(widths) - 1)
        past += _PAST_COPIES * normalised * _PAST_FRAMES * width * area
        past += normalised * 2 * frames * vae["latent_channels"] * area
        work = max(work, _LEVEL_COPIES * (frames + _PAST_FRAMES) * max(entering, width) * area)
        frames, entering = (2 * frames - 1 if level < doublings else frames), width
    pixels = pixel_frames * height_px * width_px * 3
    return int((past + work) * VAE_BYTES + pixels * _PIXEL_BYTES)
