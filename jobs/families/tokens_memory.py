"""How much memory a transformer needs that looks at the text beside its tokens, estimated. Pure."""

from __future__ import annotations

from jobs.families.family import DTYPE_BYTES


def text_copies(dtype: str) -> int:
    """Live copies of a text's features while a block makes its keys and values: the text, both, and
    the keys while they are normalised, in float32 whatever the dtype. Counted on fake tensors."""
    return 4 if DTYPE_BYTES[dtype] == 4 else 8


#: Live copies of the video's features meanwhile.
_BESIDE_TEXT = 8


def tokens_bytes(
    features: int, tokens: int, text_tokens: int, dtype: str, *, copies: int, branches: int = 1
) -> int:
    """Activations where ``tokens`` of the video and ``text_tokens`` have ``features`` each: the
    most of a block's own work, with ``copies`` of the video's, and of what it does with the text.
    Attention is counted as fused: its matrix is never held."""
    alone = copies * tokens + text_tokens
    beside = _BESIDE_TEXT * tokens + (text_copies(dtype) + 1) * text_tokens
    return branches * max(alone, beside) * features * DTYPE_BYTES[dtype]
