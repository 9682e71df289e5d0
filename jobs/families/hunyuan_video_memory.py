"""How much memory HunyuanVideo's transformer needs, estimated from its config. Pure."""

from __future__ import annotations

from jobs.families.family import DTYPE_BYTES, Config

#: Live copies of a token's features while a block runs, at its peak where queries and keys are
#: turned in float32: counted on the published model's shapes.
_TOKEN_COPIES = 26

#: Live copies of a text token's features in the refiner's attention: counted on fake tensors.
_REFINER_COPIES = 6


def denoise_bytes(
    transformer: Config, latent_size: tuple[int, int, int], dtype: str, text_tokens: int
) -> int:
    """Estimate of a tile's activations in the denoiser; ``latent_size`` is (frames, height,
    width). Blocks see text and video as one sequence; their attention is counted as fused: its
    matrix is never held."""
    frames, height, width = latent_size
    patch = transformer["patch_size"]
    tokens = frames * (height // patch) * (width // patch)
    features = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    block = (tokens + text_tokens) * features * _TOKEN_COPIES * DTYPE_BYTES[dtype]
    return int(max(block, refining_bytes(transformer, tokens, text_tokens, dtype)))


def refining_bytes(transformer: Config, tokens: int, text_tokens: int, dtype: str) -> int:
    """Estimate while the text is refined, before the first block: what grows with the square of its
    length is a mask of every pair of its tokens. That lives twice, then once for every head, and
    for every head in the features' dtype. The video's tokens wait, with their rotary embedding."""
    heads, head_dim = transformer["num_attention_heads"], transformer["attention_head_dim"]
    width = DTYPE_BYTES[dtype]
    pair_bytes = 2 + heads * (1 + width)
    text = _REFINER_COPIES * text_tokens * heads * head_dim * width + pair_bytes * text_tokens**2
    waiting = tokens * heads * head_dim * width + 2 * tokens * head_dim * 4
    return int(text + waiting)
