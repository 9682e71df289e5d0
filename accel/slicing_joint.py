"""Slicing for transformers in which text and video attend as one sequence: CogVideoX's.

As in ``slicing_tokens``, keys and values of all tokens come first. The text is a slice of its own,
before those of the video.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention, CogVideoXAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from torch import Tensor

from accel.slices import Slices, put
from jobs.errors import CannotRunHere

if TYPE_CHECKING:
    from accel.slicing import SlicingHandle


class _Part(NamedTuple):
    """A slice of the joint sequence: the text, or some tokens of the video."""

    tokens: Tensor  # [B, tokens, C]
    start: int  # in the joint sequence
    rotary: Any  # (cosines, sines), each [tokens, head_dim], or None
    is_text: bool


def attach_cogvideox(model: Any, handle: SlicingHandle) -> None:
    for block in model.transformer_blocks:
        handle.know(block, CogVideoXBlock)
        handle.know(block.attn1, Attention)
        _check_attention(block.attn1)
        handle.replace(block, partial(_block, block, handle.slices()))


def _check_attention(attention: Any) -> None:
    """At every pass: what is attached after slicing could change it."""
    if type(attention.processor) is not CogVideoXAttnProcessor2_0:
        raise CannotRunHere(
            f"slicing: the attention processor is {type(attention.processor).__name__}; it knows "
            "CogVideoXAttnProcessor2_0, and does not go together with fused projections or "
            "techniques that change attention"
        )


def _block(
    block: Any,
    slices: Slices,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Any = None,
    attention_kwargs: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    _check_attention(block.attn1)
    if attention_kwargs:
        given = ", ".join(attention_kwargs)
        raise CannotRunHere(
            f"slicing does not know the attention's {given}; render without slicing"
        )
    inputs = slices, hidden_states, encoder_hidden_states, image_rotary_emb
    keys, values = _keys_and_values(block, temb, inputs)
    video = text = None
    for part in _parts(*inputs):
        tokens = _feed_forward(block, temb, part, _attention(block, temb, part, keys, values))
        if part.is_text:
            text = tokens
        else:
            start = part.start - encoder_hidden_states.shape[1]
            video = put(video, tokens, start, hidden_states.shape[1])
        del tokens
    assert video is not None and text is not None
    return video, text


def _parts(slices: Slices, hidden: Tensor, text: Tensor, rotary: Any) -> Iterator[_Part]:
    yield _Part(text, 0, None, True)
    for start, stop in slices.of(hidden.shape[1]):
        turn = None if rotary is None else tuple(each[start:stop] for each in rotary)
        yield _Part(hidden[:, start:stop], text.shape[1] + start, turn, False)


def _normed(norm: Any, temb: Tensor, tokens: Tensor, is_text: bool) -> tuple[Tensor, Tensor]:
    """The modulated tokens and their gate. The library's norm takes video and text together: of
    what is not asked for it gets none."""
    none = tokens[:, :0]
    video, text = (none, tokens) if is_text else (tokens, none)
    video, text, gate, text_gate = norm(video, text, temb)
    return (text, text_gate) if is_text else (video, gate)


def _keys_and_values(block: Any, temb: Tensor, inputs: Any) -> tuple[Tensor, Tensor]:
    """Of all tokens, [B, heads, tokens, head_dim]."""
    attention, (_, hidden, text, _) = block.attn1, inputs
    length = hidden.shape[1] + text.shape[1]
    keys = values = None
    for part in _parts(*inputs):
        normed, _ = _normed(block.norm1, temb, part.tokens, part.is_text)
        key = _heads(attention, attention.to_k(normed), attention.norm_k, part.rotary)
        keys = put(keys, key, part.start, length, dim=2)
        del key
        value = _heads(attention, attention.to_v(normed), None, None)
        values = put(values, value, part.start, length, dim=2)
        del value
    assert keys is not None and values is not None
    return keys, values


def _heads(attention: Any, x: Tensor, norm: Any, rotary: Any) -> Tensor:
    x = x.unflatten(2, (attention.heads, -1)).transpose(1, 2)
    x = x if norm is None else norm(x)
    return x if rotary is None else apply_rotary_emb(x, rotary)


def _attention(block: Any, temb: Tensor, part: _Part, keys: Tensor, values: Tensor) -> Tensor:
    attention = block.attn1
    normed, gate = _normed(block.norm1, temb, part.tokens, part.is_text)
    query = _heads(attention, attention.to_q(normed), attention.norm_q, part.rotary)
    del normed
    result = torch.nn.functional.scaled_dot_product_attention(query, keys, values)
    projection, dropout = attention.to_out
    return part.tokens + gate * dropout(projection(result.transpose(1, 2).flatten(2)))


def _feed_forward(block: Any, temb: Tensor, part: _Part, tokens: Tensor) -> Tensor:
    normed, gate = _normed(block.norm2, temb, tokens, part.is_text)
    return tokens + gate * block.ff(normed)
