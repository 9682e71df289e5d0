"""Slicing for transformers over all tokens of a video: Wan's and LTX-Video's.

Only attention looks at other tokens, and there only through keys and values. A block first makes
the keys and values of all tokens, slice by slice, and then takes each slice of tokens through the
rest of the block: queries against all keys, cross-attention, feed-forward. Live are the block's
input and output, keys and values, and one slice's intermediates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_ltx import (
    LTXAttention,
    LTXVideoAttnProcessor,
    LTXVideoTransformerBlock,
    apply_rotary_emb,
)
from diffusers.models.transformers.transformer_wan import (
    WanAttention,
    WanAttnProcessor,
    WanTransformerBlock,
)
from torch import Tensor

from accel.slices import Slices, put
from jobs.errors import CannotRunHere

if TYPE_CHECKING:
    from accel.slicing import SlicingHandle

#: Rotary embeddings of tokens: cosines and sines, each [1, tokens, 1, head_dim].
Rotary = tuple[Tensor, Tensor]

#: The attention processors whose arithmetic stands here.
_PROCESSORS = (WanAttnProcessor, LTXVideoAttnProcessor)

#: Text tokens that stand behind the image's in an image-to-video model, as in the library.
_TEXT_TOKENS = 512


def attach_wan(model: Any, handle: SlicingHandle) -> None:
    for block in model.blocks:
        handle.know(block, WanTransformerBlock)
        _attach(block, handle, WanAttention, _wan_block)


def attach_ltx(model: Any, handle: SlicingHandle) -> None:
    for block in model.transformer_blocks:
        handle.know(block, LTXVideoTransformerBlock)
        _attach(block, handle, LTXAttention, _ltx_block)


def _attach(block: Any, handle: SlicingHandle, kind: type, forward: Callable[..., Tensor]) -> None:
    for attention in (block.attn1, block.attn2):
        handle.know(attention, kind)
        _check_attention(attention)
    handle.replace(block, partial(forward, block, handle.slices()))


def _check_attention(attention: Any) -> None:
    """At every pass: what is attached after slicing could change it."""
    processor = attention.processor
    if type(processor) not in _PROCESSORS:
        known = ", ".join(sorted(each.__name__ for each in _PROCESSORS))
        raise CannotRunHere(
            f"slicing: the attention processor is {type(processor).__name__}; it knows {known}, "
            "and does not go together with techniques that change attention"
        )
    if processor._parallel_config is not None or getattr(attention, "fused_projections", False):
        raise CannotRunHere(
            "slicing does not know context parallelism or fused projections; leave them out"
        )


def _wan_block(
    block: Any,
    slices: Slices,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    rotary_emb: Rotary,
) -> Tensor:
    for attention in (block.attn1, block.attn2):
        _check_attention(attention)
    length = hidden_states.shape[1]
    ranges = slices.of(length)
    context = _keys_and_values(block, ranges, hidden_states, temb, rotary_emb)
    text = _text_keys_and_values(block.attn2, encoder_hidden_states)
    output = None
    for start, stop in ranges:
        part = hidden_states[:, start:stop]
        modulation = _modulation(block, temb, start, stop)
        rotary = tuple(each[:, start:stop] for each in rotary_emb)
        part = _self_attention(block, part, modulation, rotary, context)
        part = _cross_attention(block, part, text)
        output = put(output, _feed_forward(block, part, modulation), start, length)
        del part
    assert output is not None
    return output


def _modulation(block: Any, temb: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
    """Shift, scale and gate of attention, then those of feed-forward: of all tokens at once, or of
    each (Wan 2.2 with an image in its first frame)."""
    if temb.ndim == 3:
        return (block.scale_shift_table + temb.float()).chunk(6, dim=1)
    return (block.scale_shift_table[None] + temb[:, start:stop].float()).unbind(2)


def _modulated(norm: Any, part: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (norm(part.float()) * (1 + scale) + shift).type_as(part)


def _keys_and_values(
    block: Any,
    ranges: Sequence[tuple[int, int]],
    hidden: Tensor,
    temb: Tensor,
    rotary_emb: Rotary,
) -> list[tuple[Tensor, Tensor]]:
    """Of self-attention, for all tokens, [B, tokens, heads, head_dim]."""
    attention, length = block.attn1, hidden.shape[1]
    keys = values = None
    for start, stop in ranges:
        shift, scale, *_ = _modulation(block, temb, start, stop)
        part = _modulated(block.norm1, hidden[:, start:stop], shift, scale)
        key = _heads(attention, attention.norm_k(attention.to_k(part)))
        key = _rotated(key, *(each[:, start:stop] for each in rotary_emb))
        keys = put(keys, key, start, length)
        del key
        values = put(values, _heads(attention, attention.to_v(part)), start, length)
    assert keys is not None and values is not None
    return [(keys, values)]


def _text_keys_and_values(attention: Any, text: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of the text, and of the image where the model takes one: its tokens come first."""
    image = None
    if attention.add_k_proj is not None:
        image, text = text[:, :-_TEXT_TOKENS], text[:, -_TEXT_TOKENS:]
    heads: Callable[[Tensor], Tensor] = partial(_heads, attention)
    pairs = [(heads(attention.norm_k(attention.to_k(text))), heads(attention.to_v(text)))]
    if image is not None:
        key = heads(attention.norm_added_k(attention.add_k_proj(image)))
        pairs.append((key, heads(attention.add_v_proj(image))))
    return pairs


def _self_attention(
    block: Any, part: Tensor, modulation: tuple[Tensor, ...], rotary: Any, context: Any
) -> Tensor:
    attention = block.attn1
    shift, scale, gate, *_ = modulation
    query = attention.norm_q(attention.to_q(_modulated(block.norm1, part, shift, scale)))
    query = _rotated(_heads(attention, query), *rotary)
    return (part.float() + _attend(attention, query, context) * gate).type_as(part)


def _cross_attention(block: Any, part: Tensor, text: Any) -> Tensor:
    attention = block.attn2
    query = attention.to_q(block.norm2(part.float()).type_as(part))
    return part + _attend(attention, _heads(attention, attention.norm_q(query)), text)


def _feed_forward(block: Any, part: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
    *_, shift, scale, gate = modulation
    result = block.ffn(_modulated(block.norm3, part, shift, scale))
    return (part.float() + result.float() * gate).type_as(part)


def _attend(
    attention: Any,
    query: Tensor,
    pairs: Sequence[tuple[Tensor, Tensor]],
    mask: Tensor | None = None,
) -> Tensor:
    """Attention of a slice's queries to each pair of keys and values, summed, and projected."""
    options = {"attn_mask": mask, "backend": attention.processor._attention_backend}
    results = (
        dispatch_attention_fn(query, key, value, **options).flatten(2, 3).type_as(query)
        for key, value in pairs
    )
    projection, dropout = attention.to_out
    return dropout(projection(reduce(torch.add, results)))


def _heads(attention: Any, x: Tensor) -> Tensor:
    return x.unflatten(2, (attention.heads, -1))


def _rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary embedding of neighbouring pairs, [B, tokens, heads, head_dim]."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = cosines[..., 0::2], sines[..., 1::2]
    output = torch.empty_like(x)
    output[..., 0::2] = first * cosine - second * sine
    output[..., 1::2] = first * sine + second * cosine
    return output


# -- LTX-Video


def _ltx_block(
    block: Any,
    slices: Slices,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Rotary,
    encoder_attention_mask: Tensor | None = None,
) -> Tensor:
    for attention in (block.attn1, block.attn2):
        _check_attention(attention)
    length = hidden_states.shape[1]
    ranges = slices.of(length)
    context = _ltx_keys_and_values(block, ranges, hidden_states, temb, image_rotary_emb)
    attention = block.attn2
    key = attention.norm_k(attention.to_k(encoder_hidden_states))
    value = attention.to_v(encoder_hidden_states)
    text = [(_heads(attention, key), _heads(attention, value))]
    mask = _ltx_mask(attention, encoder_attention_mask, encoder_hidden_states)
    output = None
    for start, stop in ranges:
        part = hidden_states[:, start:stop]
        modulation = _ltx_modulation(block, temb, start, stop)
        rotary = tuple(each[:, start:stop] for each in image_rotary_emb)
        part = _ltx_self_attention(block, part, modulation, rotary, context)
        query = attention.norm_q(attention.to_q(part))
        part = part + _attend(attention, _heads(attention, query), text, mask)
        *_, shift, scale, gate = modulation
        part = part + block.ff(block.norm2(part) * (1 + scale) + shift) * gate
        output = put(output, part, start, length)
        del part
    assert output is not None
    return output


def _ltx_mask(attention: Any, mask: Tensor | None, text: Tensor) -> Tensor | None:
    if mask is None:
        return None
    batch, length, _ = text.shape
    mask = attention.prepare_attention_mask(mask, length, batch)
    return mask.view(batch, attention.heads, -1, mask.shape[-1])


def _ltx_modulation(block: Any, temb: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
    """As Wan's; of one time, or of each token's."""
    part = temb if temb.shape[1] == 1 else temb[:, start:stop]
    return (block.scale_shift_table[None, None] + part.unflatten(2, (6, -1))).unbind(2)


def _ltx_keys_and_values(
    block: Any,
    ranges: Sequence[tuple[int, int]],
    hidden: Tensor,
    temb: Tensor,
    rotary_emb: Rotary,
) -> list[tuple[Tensor, Tensor]]:
    attention, length = block.attn1, hidden.shape[1]
    keys = values = None
    for start, stop in ranges:
        shift, scale, *_ = _ltx_modulation(block, temb, start, stop)
        part = block.norm1(hidden[:, start:stop]) * (1 + scale) + shift
        rotary = tuple(each[:, start:stop] for each in rotary_emb)
        key = apply_rotary_emb(attention.norm_k(attention.to_k(part)), rotary)
        keys = put(keys, _heads(attention, key), start, length)
        del key
        values = put(values, _heads(attention, attention.to_v(part)), start, length)
    assert keys is not None and values is not None
    return [(keys, values)]


def _ltx_self_attention(
    block: Any, part: Tensor, modulation: tuple[Tensor, ...], rotary: Any, context: Any
) -> Tensor:
    attention = block.attn1
    shift, scale, gate, *_ = modulation
    query = attention.norm_q(attention.to_q(block.norm1(part) * (1 + scale) + shift))
    query = _heads(attention, apply_rotary_emb(query, rotary))
    return part + _attend(attention, query, context) * gate
