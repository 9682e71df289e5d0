"""Slicing for HunyuanVideo's transformer, in which video and text attend as one sequence.

As in ``slicing_tokens``, keys and values of all tokens come first, or the attention of the whole.
The text stands behind the video and is a slice of its own. The first blocks have modules of their
own for it (double blocks); the others take it as they take the video (single blocks), and have
feed-forward beside attention.
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
from accel.wrapping import LeftToSlices
from jobs.errors import CannotRunHere

if TYPE_CHECKING:
    from accel.slicing import SlicingHandle


class _Part(NamedTuple):
    """A slice of the joint sequence: some tokens of the video, or the text."""

    tokens: Tensor  # [B, tokens, C]
    start: int  # in the joint sequence
    rotary: tuple[Tensor, Tensor] | None  # cosines and sines, each [tokens, head_dim]
    is_text: bool


#: The parts of a block's sequence, in order, the text last.
_Parts = Callable[[], Iterator[_Part]]

#: What a block's attention sees of a part: of (block, temb, part).
_Normed = Callable[[Any, Tensor, _Part], Tensor]

#: What it gives of a part, of that and of what it sees of it.
_Attend = Callable[[_Part, Tensor], Tensor]

#: Video, text, temb, mask and rotary embedding, as a block gets them.
_Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, tuple[Tensor, Tensor] | None]


def attach_hunyuan_video(model: Any, handle: SlicingHandle) -> None:
    double = model.transformer_blocks, _double_normed, _double_block
    single = model.single_transformer_blocks, _single_normed, _single_block
    kinds = {HunyuanVideoTransformerBlock: double, HunyuanVideoSingleTransformerBlock: single}
    for kind, (blocks, normed, forward) in kinds.items():
        for block in blocks:
            handle.know(block, kind)
            handle.know(block.attn, Attention)
            _check_attention(block.attn)
            slices = handle.slices()
            whole = partial(_whole_attention, block, slices, normed)
            handle.replace(block.attn, LeftToSlices(whole))
            handle.replace(block, partial(forward, block, slices))


def _check_attention(attention: Any) -> None:
    """At every pass: what is attached after slicing could change it."""
    processor = attention.processor
    if type(processor) is not HunyuanVideoAttnProcessor2_0 or attention.fused_projections:
        raise CannotRunHere(
            f"slicing: the attention processor is {type(processor).__name__}; it knows "
            "HunyuanVideoAttnProcessor2_0, and does not go together with fused projections or "
            "what replaces the attention's processor"
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
    inputs = hidden_states, encoder_hidden_states, temb, attention_mask, freqs_cis
    return _sliced(block, slices, _double_normed, _double_part, inputs)


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
    inputs = hidden_states, encoder_hidden_states, temb, attention_mask, image_rotary_emb
    return _sliced(block, slices, _single_normed, _single_part, inputs)


def _sliced(
    block: Any, slices: Slices, normed: _Normed, through: Callable[..., Tensor], inputs: _Inputs
) -> tuple[Tensor, Tensor]:
    """Video and text after a block. ``normed`` gives what its attention sees of a part, ``through``
    a part's tokens after the block."""
    _check_attention(block.attn)
    video, text, temb, mask, rotary = inputs
    parts = partial(_parts, slices, video, text, rotary)
    whole = block.attn(*inputs)
    if whole is None:
        seen = partial(normed, block, temb)
        length = video.shape[1] + text.shape[1]
        context = _of_all(block.attn, parts, length, seen, _key, _value)
        attend = partial(_attend, block.attn, context, mask)
    else:
        attend = partial(_cut, whole)
    return _by_parts(parts, video.shape[1], partial(through, block, temb, attend))


def _whole_attention(
    block: Any, slices: Slices, normed: _Normed, *inputs: Any
) -> tuple[Tensor, Tensor]:
    """What the attention gives of video and text, projected: all queries attend in one call."""
    video, text, temb, mask, rotary = inputs
    parts, attention = partial(_parts, slices, video, text, rotary), block.attn
    seen, length = partial(normed, block, temb), video.shape[1] + text.shape[1]
    heads = dispatch_attention_fn(
        *_of_all(attention, parts, length, seen, _query, _key, _value),
        attn_mask=mask,
        backend=attention.processor._attention_backend,
    )

    def project(part: _Part) -> Tensor:
        found = heads[:, part.start : part.start + part.tokens.shape[1]]
        return _projected(attention, part, found.flatten(2, 3).to(video.dtype))

    return _by_parts(parts, video.shape[1], project)


def _by_parts(
    parts: _Parts, length: int, group: Callable[[_Part], Tensor]
) -> tuple[Tensor, Tensor]:
    """Video, of ``length`` tokens, and text after a group that goes through them part by part."""
    video = text = None
    for part in parts():
        tokens = group(part)
        if part.is_text:
            text = tokens
        else:
            video = put(video, tokens, part.start, length)
        del tokens
    assert video is not None and text is not None
    return video, text


def _cut(whole: tuple[Tensor, Tensor], part: _Part, normed: Tensor) -> Tensor:
    """A part of what the attention gives of video and text."""
    video, text = whole
    return text if part.is_text else video[:, part.start : part.start + part.tokens.shape[1]]


def _norm(block: Any, part: _Part) -> Any:
    return block.norm1_context if part.is_text else block.norm1


def _double_normed(block: Any, temb: Tensor, part: _Part) -> Tensor:
    return _norm(block, part)(part.tokens, emb=temb)[0]


def _single_normed(block: Any, temb: Tensor, part: _Part) -> Tensor:
    return block.norm(part.tokens, emb=temb)[0]


def _double_part(block: Any, temb: Tensor, attend: _Attend, part: _Part) -> Tensor:
    normed, gate, shift_mlp, scale_mlp, gate_mlp = _norm(block, part)(part.tokens, emb=temb)
    tokens = part.tokens + attend(part, normed) * gate.unsqueeze(1)
    del normed
    norm, forward = (
        (block.norm2_context, block.ff_context) if part.is_text else (block.norm2, block.ff)
    )
    modulated = norm(tokens) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
    return tokens + gate_mlp.unsqueeze(1) * forward(modulated)


def _single_part(block: Any, temb: Tensor, attend: _Attend, part: _Part) -> Tensor:
    normed, gate = block.norm(part.tokens, emb=temb)
    result = attend(part, normed)
    beside = block.act_mlp(block.proj_mlp(normed))
    del normed
    joined = torch.cat([result, beside], dim=2)
    del result, beside
    return gate.unsqueeze(1) * block.proj_out(joined) + part.tokens


def _query(attention: Any, part: _Part, normed: Tensor) -> Tensor:
    linear, norm = attention.to_q, attention.norm_q
    if _has_own(attention, part):
        linear, norm = attention.add_q_proj, attention.norm_added_q
    return _turned(_heads(attention, linear(normed), norm), part)


def _key(attention: Any, part: _Part, normed: Tensor) -> Tensor:
    linear, norm = attention.to_k, attention.norm_k
    if _has_own(attention, part):
        linear, norm = attention.add_k_proj, attention.norm_added_k
    return _turned(_heads(attention, linear(normed), norm), part)


def _value(attention: Any, part: _Part, normed: Tensor) -> Tensor:
    linear = attention.add_v_proj if _has_own(attention, part) else attention.to_v
    return _heads(attention, linear(normed), None)


def _has_own(attention: Any, part: _Part) -> bool:
    """Whether there are modules for the text alone."""
    return part.is_text and attention.add_q_proj is not None


def _heads(attention: Any, x: Tensor, norm: Any) -> Tensor:
    x = x.unflatten(2, (attention.heads, -1))
    return x if norm is None else norm(x)


def _turned(x: Tensor, part: _Part) -> Tensor:
    return x if part.rotary is None else apply_rotary_emb(x, part.rotary, sequence_dim=1)


def _of_all(
    attention: Any,
    parts: _Parts,
    length: int,
    normed: Callable[[_Part], Tensor],
    *wanted: Callable[[Any, _Part, Tensor], Tensor],
) -> list[Tensor]:
    """Queries, keys or values of all ``length`` tokens, each [B, tokens, heads, head_dim]."""
    found: dict[Callable[..., Tensor], Tensor] = {}
    for part in parts():
        tokens = normed(part)
        for each in wanted:
            heads = each(attention, part, tokens)
            found[each] = put(found.get(each), heads, part.start, length)
            del heads
    return list(found.values())


def _attend(
    attention: Any, context: list[Tensor], mask: Tensor | None, part: _Part, normed: Tensor
) -> Tensor:
    """[B, tokens, C], projected."""
    query = _query(attention, part, normed)
    backend = attention.processor._attention_backend
    result = dispatch_attention_fn(query, *context, attn_mask=mask, backend=backend)
    return _projected(attention, part, result.flatten(2, 3).to(query.dtype))


def _projected(attention: Any, part: _Part, result: Tensor) -> Tensor:
    """A single block's attention has no projection of its own."""
    if part.is_text:
        return result if attention.to_add_out is None else attention.to_add_out(result)
    if attention.to_out is None:
        return result
    projection, dropout = attention.to_out
    return dropout(projection(result))
