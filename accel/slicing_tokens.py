"""Slicing for transformers over all tokens of a video: Wan's and LTX-Video's.

Only attention looks at other tokens, and there only through keys and values. A block first makes
the keys and values of all tokens, slice by slice, and then takes each slice of tokens through the
rest of the block: queries against all keys, cross-attention, feed-forward. Live are the block's
input and output, keys and values, and one slice's intermediates.

Where a technique in front of it changes or keeps a block's self-attention, all queries attend in
one call, and what that gives lives whole, too. All else stays in slices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, NamedTuple

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
from accel.wrapping import LeftToSlices
from jobs.errors import CannotRunHere

if TYPE_CHECKING:
    from accel.slicing import SlicingHandle

#: Rotary embeddings of tokens: cosines and sines, each [1, tokens, 1, head_dim].
Rotary = tuple[Tensor, Tensor]

#: The attention processors whose arithmetic stands here.
_PROCESSORS = (WanAttnProcessor, LTXVideoAttnProcessor)

#: Text tokens that stand behind the image's in an image-to-video model, as in the library.
_TEXT_TOKENS = 512


class _Kind(NamedTuple):
    """What a kind of block does to its tokens, in its own way, for them to attend to each other."""

    modulation: Callable[..., tuple[Tensor, ...]]  # of a slice, as ``_modulation``
    modulated: Callable[..., Tensor]
    turned: Callable[..., Tensor]  # queries or keys, as ``_turned``


class _Tokens(NamedTuple):
    """A block's, on their way to self-attention."""

    kind: _Kind
    block: Any
    hidden: Tensor  # [B, tokens, C]
    temb: Tensor
    rotary: Rotary


def attach_wan(model: Any, handle: SlicingHandle) -> None:
    kind = _Kind(_modulation, _modulated, _turned)
    handle.replace(model, partial(_told_once, model.forward))
    for block in model.blocks:
        handle.know(block, WanTransformerBlock)
        _attach(block, handle, WanAttention, kind, _wan_block)


def _told_once(
    forward: Callable[..., Any], hidden_states: Tensor, timestep: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """A time that is one for all tokens, [B, tokens] of which each row repeats a number, as the
    first token's: what is made of it has as many features as the tokens themselves, and more."""
    if timestep.ndim == 2 and timestep.stride(1) == 0:
        timestep = timestep[:, :1]
    return forward(hidden_states, timestep, *args, **kwargs)


def attach_ltx(model: Any, handle: SlicingHandle) -> None:
    kind = _Kind(_ltx_modulation, _ltx_modulated, _ltx_turned)
    for block in model.transformer_blocks:
        handle.know(block, LTXVideoTransformerBlock)
        _attach(block, handle, LTXAttention, kind, _ltx_block)


def _attach(
    block: Any, handle: SlicingHandle, known: type, kind: _Kind, forward: Callable[..., Tensor]
) -> None:
    for attention in (block.attn1, block.attn2):
        handle.know(attention, known)
        _check_attention(attention)
    slices = handle.slices()
    handle.replace(block.attn1, LeftToSlices(partial(_whole_attention, kind, block, slices)))
    handle.replace(block, partial(forward, kind, block, slices))


def _check_attention(attention: Any) -> None:
    """At every pass: what is attached after slicing could change it."""
    processor = attention.processor
    if type(processor) not in _PROCESSORS:
        known = ", ".join(sorted(each.__name__ for each in _PROCESSORS))
        raise CannotRunHere(
            f"slicing: the attention processor is {type(processor).__name__}; it knows {known}, "
            "and does not go together with what replaces the attention's processor"
        )
    if processor._parallel_config is not None or getattr(attention, "fused_projections", False):
        raise CannotRunHere(
            "slicing does not know context parallelism or fused projections; leave them out"
        )


class _SelfAttention:
    """What self-attention gives for one slice of a block's tokens after another: cut from that of
    the whole, where a technique in front of it computes that; else computed slice by slice."""

    def __init__(self, tokens: _Tokens, slices: Slices) -> None:
        block = tokens.block
        for attention in (block.attn1, block.attn2):
            _check_attention(attention)
        self._tokens = tokens
        self._whole = block.attn1(tokens.hidden, tokens.temb, tokens.rotary)
        self.ranges = slices.of(tokens.hidden.shape[1])
        if self._whole is None:
            self._context = tuple(_of_all(tokens, self.ranges, _key, _value))

    def __call__(self, start: int, stop: int, modulation: tuple[Tensor, ...]) -> Tensor:
        """[B, stop - start, C], projected."""
        if self._whole is not None:
            return self._whole[:, start:stop]
        query = _query(self._tokens, _normed(self._tokens, start, stop, modulation), start, stop)
        return _attend(self._tokens.block.attn1, query, [self._context])


def _whole_attention(
    kind: _Kind, block: Any, slices: Slices, hidden: Tensor, temb: Tensor, rotary_emb: Rotary
) -> Tensor:
    """What self-attention gives for all tokens, [B, tokens, C], projected: all queries attend in
    one call."""
    attention, length = block.attn1, hidden.shape[1]
    tokens, ranges = _Tokens(kind, block, hidden, temb, rotary_emb), slices.of(length)
    heads = dispatch_attention_fn(
        *_of_all(tokens, ranges, _query, _key, _value),
        backend=attention.processor._attention_backend,
    )
    output = None
    for start, stop in ranges:
        part = _projected(attention, heads[:, start:stop].flatten(2, 3).type_as(hidden))
        output = put(output, part, start, length)
        del part
    assert output is not None
    return output


def _wan_block(
    kind: _Kind,
    block: Any,
    slices: Slices,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    rotary_emb: Rotary,
) -> Tensor:
    attend = _SelfAttention(_Tokens(kind, block, hidden_states, temb, rotary_emb), slices)
    text = _text_keys_and_values(block.attn2, encoder_hidden_states)
    output = None
    for start, stop in attend.ranges:
        part = hidden_states[:, start:stop]
        modulation = _modulation(block, temb, start, stop)
        part = (attend(start, stop, modulation) * modulation[2] + part.float()).type_as(part)
        part = _cross_attention(block, part, text)
        part = _feed_forward(block, part, modulation)
        output = put(output, part, start, hidden_states.shape[1])
        del part, modulation
    assert output is not None
    return output


def _modulation(block: Any, temb: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
    """Shift, scale and gate of attention, then those of feed-forward: of all tokens at once, or of
    each (Wan 2.2's 5B, with an image in its first frame)."""
    if temb.ndim == 3:
        return (block.scale_shift_table + temb.float()).chunk(6, dim=1)
    part = temb if temb.shape[1] == 1 else temb[:, start:stop]
    return (block.scale_shift_table[None] + part.float()).unbind(2)


def _modulated(norm: Any, part: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (norm(part.float()) * (1 + scale) + shift).type_as(part)


def _normed(tokens: _Tokens, start: int, stop: int, modulation: tuple[Tensor, ...]) -> Tensor:
    """What self-attention sees of a slice."""
    shift, scale, *_ = modulation
    return tokens.kind.modulated(tokens.block.norm1, tokens.hidden[:, start:stop], shift, scale)


def _query(tokens: _Tokens, normed: Tensor, start: int, stop: int) -> Tensor:
    attention, rotary = tokens.block.attn1, tuple(each[:, start:stop] for each in tokens.rotary)
    return tokens.kind.turned(attention, attention.norm_q(attention.to_q(normed)), rotary)


def _key(tokens: _Tokens, normed: Tensor, start: int, stop: int) -> Tensor:
    attention, rotary = tokens.block.attn1, tuple(each[:, start:stop] for each in tokens.rotary)
    return tokens.kind.turned(attention, attention.norm_k(attention.to_k(normed)), rotary)


def _value(tokens: _Tokens, normed: Tensor, start: int, stop: int) -> Tensor:
    return _heads(tokens.block.attn1, tokens.block.attn1.to_v(normed))


def _of_all(
    tokens: _Tokens, ranges: Sequence[tuple[int, int]], *wanted: Callable[..., Tensor]
) -> list[Tensor]:
    """Queries, keys or values of all tokens, each [B, tokens, heads, head_dim]."""
    found: dict[Callable[..., Tensor], Tensor] = {}
    for start, stop in ranges:
        modulation = tokens.kind.modulation(tokens.block, tokens.temb, start, stop)
        normed = _normed(tokens, start, stop, modulation)
        for each in wanted:
            heads = each(tokens, normed, start, stop)
            found[each] = put(found.get(each), heads, start, tokens.hidden.shape[1])
            del heads
        del modulation, normed
    return list(found.values())


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
    return _projected(attention, reduce(torch.add, results))


def _projected(attention: Any, result: Tensor) -> Tensor:
    projection, dropout = attention.to_out
    return dropout(projection(result))


def _heads(attention: Any, x: Tensor) -> Tensor:
    return x.unflatten(2, (attention.heads, -1))


def _turned(attention: Any, x: Tensor, rotary: Rotary) -> Tensor:
    """Queries or keys of a slice [B, tokens, C] with their rotary embedding, of neighbouring pairs:
    [B, tokens, heads, head_dim]."""
    x, (cosines, sines) = _heads(attention, x), rotary
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = cosines[..., 0::2], sines[..., 1::2]
    output = torch.empty_like(x)
    output[..., 0::2] = first * cosine - second * sine
    output[..., 1::2] = first * sine + second * cosine
    return output


# -- LTX-Video


def _ltx_block(
    kind: _Kind,
    block: Any,
    slices: Slices,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Rotary,
    encoder_attention_mask: Tensor | None = None,
) -> Tensor:
    attend = _SelfAttention(_Tokens(kind, block, hidden_states, temb, image_rotary_emb), slices)
    attention = block.attn2
    key = attention.norm_k(attention.to_k(encoder_hidden_states))
    value = attention.to_v(encoder_hidden_states)
    text = [(_heads(attention, key), _heads(attention, value))]
    mask = _ltx_mask(attention, encoder_attention_mask, encoder_hidden_states)
    output = None
    for start, stop in attend.ranges:
        part = hidden_states[:, start:stop]
        modulation = _ltx_modulation(block, temb, start, stop)
        part = part + attend(start, stop, modulation) * modulation[2]
        query = attention.norm_q(attention.to_q(part))
        part = part + _attend(attention, _heads(attention, query), text, mask)
        *_, shift, scale, gate = modulation
        part = part + block.ff(block.norm2(part) * (1 + scale) + shift) * gate
        output = put(output, part, start, hidden_states.shape[1])
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


def _ltx_modulated(norm: Any, part: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return norm(part) * (1 + scale) + shift


def _ltx_turned(attention: Any, x: Tensor, rotary: Rotary) -> Tensor:
    return _heads(attention, apply_rotary_emb(x, rotary))
