"""Slicing for HunyuanVideo's transformer, in which video and text attend as one sequence.

As in ``slicing_tokens``, keys and values of all tokens come first. The text stands behind the video
and is a slice of its own. The first blocks have modules of their own for it (double blocks); the
others take it as they take the video (single blocks), and have feed-forward beside attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoAttnProcessor2_0,
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTransformerBlock,
)
from torch import Tensor

from accel.slices import Slices, put
from jobs.errors import CannotRunHere

if TYPE_CHECKING:
    from accel.slicing import SlicingHandle


class _Part(NamedTuple):
    """A slice of the joint sequence: some tokens of the video, or the text."""

    tokens: Tensor  # [B, tokens, C]
    start: int  # in the joint sequence
    rotary: tuple[Tensor, Tensor] | None  # cosines and sines, each [tokens, head_dim]
    is_text: bool


class _Projection(NamedTuple):
    """What makes one of the queries, keys or values of a part."""

    linear: Any
    norm: Any = None


#: The parts of a block's sequence, in order, the text last.
_Parts = Callable[[], Iterator[_Part]]


def attach_hunyuan_video(model: Any, handle: SlicingHandle) -> None:
    kinds = {
        HunyuanVideoTransformerBlock: (model.transformer_blocks, _double_block),
        HunyuanVideoSingleTransformerBlock: (model.single_transformer_blocks, _single_block),
    }
    for kind, (blocks, forward) in kinds.items():
        for block in blocks:
            handle.know(block, kind)
            handle.know(block.attn, Attention)
            _check_attention(block.attn)
            handle.replace(block, partial(forward, block, handle.slices()))


def _check_attention(attention: Any) -> None:
    """At every pass: what is attached after slicing could change it."""
    processor = attention.processor
    if type(processor) is not HunyuanVideoAttnProcessor2_0 or attention.fused_projections:
        raise CannotRunHere(
            f"slicing: the attention processor is {type(processor).__name__}; it knows "
            "HunyuanVideoAttnProcessor2_0, and does not go together with fused projections or "
            "techniques that change attention"
        )
    if processor._parallel_config is not None:
        raise CannotRunHere("slicing does not know context parallelism; leave it out")


def _parts(slices: Slices, video: Tensor, text: Tensor, rotary: Any) -> Iterator[_Part]:
    for start, stop in slices.of(video.shape[1]):
        turn = None if rotary is None else tuple(each[start:stop] for each in rotary)
        yield _Part(video[:, start:stop], start, turn, False)
    yield _Part(text, video.shape[1], None, True)


def _double_block(
    block: Any,
    slices: Slices,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    attention_mask: Tensor | None = None,
    freqs_cis: tuple[Tensor, Tensor] | None = None,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    return _sliced(
        block,
        partial(_parts, slices, hidden_states, encoder_hidden_states, freqs_cis),
        lambda part: _norm(block, part)(part.tokens, emb=temb)[0],
        lambda part, context: _double_part(block, part, temb, context, attention_mask),
    )


def _single_block(
    block: Any,
    slices: Slices,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    attention_mask: Tensor | None = None,
    image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    return _sliced(
        block,
        partial(_parts, slices, hidden_states, encoder_hidden_states, image_rotary_emb),
        lambda part: block.norm(part.tokens, emb=temb)[0],
        lambda part, context: _single_part(block, part, temb, context, attention_mask),
    )


def _sliced(
    block: Any,
    parts: _Parts,
    normed: Callable[[_Part], Tensor],
    through: Callable[[_Part, tuple[Tensor, Tensor]], Tensor],
) -> tuple[Tensor, Tensor]:
    """Video and text after a block: ``normed`` gives what its attention sees of a part, ``through``
    a part's tokens after it."""
    _check_attention(block.attn)
    lengths = [part.tokens.shape[1] for part in parts()]
    context = _keys_and_values(block.attn, parts, normed, sum(lengths))
    video = text = None
    for part in parts():
        tokens = through(part, context)
        if part.is_text:
            text = tokens
        else:
            video = put(video, tokens, part.start, sum(lengths[:-1]))
        del tokens
    assert video is not None and text is not None
    return video, text


def _norm(block: Any, part: _Part) -> Any:
    return block.norm1_context if part.is_text else block.norm1


def _double_part(block: Any, part: _Part, temb: Tensor, context: Any, mask: Any) -> Tensor:
    attention, tokens = block.attn, part.tokens
    normed, gate, shift_mlp, scale_mlp, gate_mlp = _norm(block, part)(tokens, emb=temb)
    result = _attend(attention, part, normed, context, mask)
    del normed
    if part.is_text:
        result = attention.to_add_out(result)
    else:
        projection, dropout = attention.to_out
        result = dropout(projection(result))
    tokens = tokens + result * gate.unsqueeze(1)
    del result
    norm, forward = (
        (block.norm2_context, block.ff_context) if part.is_text else (block.norm2, block.ff)
    )
    modulated = norm(tokens) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
    return tokens + gate_mlp.unsqueeze(1) * forward(modulated)


def _single_part(block: Any, part: _Part, temb: Tensor, context: Any, mask: Any) -> Tensor:
    normed, gate = block.norm(part.tokens, emb=temb)
    result = _attend(block.attn, part, normed, context, mask)
    beside = block.act_mlp(block.proj_mlp(normed))
    del normed
    joined = torch.cat([result, beside], dim=2)
    del result, beside
    return gate.unsqueeze(1) * block.proj_out(joined) + part.tokens


def _projections(attention: Any, part: _Part) -> tuple[_Projection, _Projection, _Projection]:
    """Of queries, keys and values: a double block has others for the text."""
    if part.is_text and attention.add_q_proj is not None:
        query = _Projection(attention.add_q_proj, attention.norm_added_q)
        key = _Projection(attention.add_k_proj, attention.norm_added_k)
        return query, key, _Projection(attention.add_v_proj)
    query = _Projection(attention.to_q, attention.norm_q)
    key = _Projection(attention.to_k, attention.norm_k)
    return query, key, _Projection(attention.to_v)


def _heads(attention: Any, projection: _Projection, normed: Tensor) -> Tensor:
    """[B, tokens, heads, head_dim]"""
    x = projection.linear(normed).unflatten(2, (attention.heads, -1))
    return x if projection.norm is None else projection.norm(x)


def _turned(x: Tensor, part: _Part) -> Tensor:
    return x if part.rotary is None else apply_rotary_emb(x, part.rotary, sequence_dim=1)


def _keys_and_values(
    attention: Any, parts: _Parts, normed: Callable[[_Part], Tensor], length: int
) -> tuple[Tensor, Tensor]:
    """Of all tokens, each [B, tokens, heads, head_dim]."""
    keys = values = None
    for part in parts():
        _, to_key, to_value = _projections(attention, part)
        tokens = normed(part)
        key = _turned(_heads(attention, to_key, tokens), part)
        keys = put(keys, key, part.start, length)
        del key
        values = put(values, _heads(attention, to_value, tokens), part.start, length)
        del tokens
    assert keys is not None and values is not None
    return keys, values


def _attend(
    attention: Any,
    part: _Part,
    normed: Tensor,
    context: tuple[Tensor, Tensor],
    mask: Tensor | None,
) -> Tensor:
    """[B, tokens, C], not yet projected."""
    to_query, _, _ = _projections(attention, part)
    query = _turned(_heads(attention, to_query, normed), part)
    backend = attention.processor._attention_backend
    result = dispatch_attention_fn(query, *context, attn_mask=mask, backend=backend)
    return result.flatten(2, 3).to(query.dtype)
