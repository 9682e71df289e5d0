"""How much memory HunyuanVideo's transformer needs to refine its text, from its config. Pure."""

from __future__ import annotations

from jobs.families.family import DTYPE_BYTES, Config

#: Live copies of a text token's features in the refiner's attention: counted on fake tensors.
_REFINER_COPIES = 6


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
