"""Slicing for transformers in which text and video attend as one sequence: CogVideoX's.

As in ``slicing_tokens``, keys and values of all tokens come first, or the attention of the whole.
The text is a slice of its own, before those of the video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention, CogVideoXAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from torch import Tensor

from accel.slices import Slices, put
from accel.wrapping import LeftToSlices
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
        slices = handle.slices()
        handle.replace(block.attn1, LeftToSlices(partial(_whole_attention, block, slices)))
        handle.replace(block, partial(_block, block, slices))


def _check_attention(attention: Any) -> None:
    """At every pass: what is attached after slicing could change it."""
    if type(attention.processor) is not CogVideoXAttnProcessor2_0:
        raise CannotRunHere(
            f"slicing: the attention processor is {type(attention.processor).__name__}; it knows "
            "CogVideoXAttnProcessor2_0, and does not go together with fused projections or "
            "what replaces the attention's processor"
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
    whole = block.attn1(hidden_states, encoder_hidden_states, temb, image_rotary_emb)
    inputs = slices, hidden_states, encoder_hidden_states, image_rotary_emb
    if whole is None:
        attend = partial(_attend, block.attn1, _of_all(block, temb, inputs, _key, _value))
    else:
        attend = partial(_cut, whole)
    return _by_parts(partial(_through, block, temb, attend), inputs)


def _whole_attention(
    block: Any, slices: Slices, hidden: Tensor, text: Tensor, temb: Tensor, rotary: Any
) -> tuple[Tensor, Tensor]:
    """What the attention gives of video and text, projected: all queries attend in one call."""
    inputs = slices, hidden, text, rotary
    heads = torch.nn.functional.scaled_dot_product_attention(
        *_of_all(block, temb, inputs, _query, _key, _value)
    )

    def project(part: _Part) -> Tensor:
        length = part.tokens.shape[1]
        return _projected(block.attn1, heads[:, :, part.start : part.start + length])

    return _by_parts(project, inputs)


def _by_parts(group: Callable[[_Part], Tensor], inputs: Any) -> tuple[Tensor, Tensor]:
    """Video and text after a group that goes through them part by part."""
    _, hidden, before, _ = inputs
    video = text = None
    for part in _parts(*inputs):
        tokens = group(part)
        if part.is_text:
            text = tokens
        else:
            video = put(video, tokens, part.start - before.shape[1], hidden.shape[1])
        del tokens
    assert video is not None and text is not None
    return video, text


def _cut(whole: tuple[Tensor, Tensor], part: _Part, normed: Tensor) -> Tensor:
    """A part of what the attention gives of video and text."""
    video, text = whole
    if part.is_text:
        return text
    start = part.start - text.shape[1]
    return video[:, start : start + part.tokens.shape[1]]


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


def _query(attention: Any, part: _Part, normed: Tensor) -> Tensor:
    return _heads(attention, attention.to_q(normed), attention.norm_q, part.rotary)


def _key(attention: Any, part: _Part, normed: Tensor) -> Tensor:
    return _heads(attention, attention.to_k(normed), attention.norm_k, part.rotary)


def _value(attention: Any, part: _Part, normed: Tensor) -> Tensor:
    return _heads(attention, attention.to_v(normed), None, None)


def _of_all(
    block: Any, temb: Tensor, inputs: Any, *wanted: Callable[[Any, _Part, Tensor], Tensor]
) -> list[Tensor]:
    """Queries, keys or values of all tokens, each [B, heads, tokens, head_dim]."""
    _, hidden, text, _ = inputs
    length = hidden.shape[1] + text.shape[1]
    found: dict[Callable[..., Tensor], Tensor] = {}
    for part in _parts(*inputs):
        normed, _ = _normed(block.norm1, temb, part.tokens, part.is_text)
        for each in wanted:
            heads = each(block.attn1, part, normed)
            found[each] = put(found.get(each), heads, part.start, length, dim=2)
            del heads
    return list(found.values())


def _heads(attention: Any, x: Tensor, norm: Any, rotary: Any) -> Tensor:
    x = x.unflatten(2, (attention.heads, -1)).transpose(1, 2)
    x = x if norm is None else norm(x)
    return x if rotary is None else apply_rotary_emb(x, rotary)


def _attend(attention: Any, context: list[Tensor], part: _Part, normed: Tensor) -> Tensor:
    query = _query(attention, part, normed)
    result = torch.nn.functional.scaled_dot_product_attention(query, *context)
    return _projected(attention, result)


def _projected(attention: Any, result: Tensor) -> Tensor:
    """Of heads [B, heads, tokens, head_dim]."""
    projection, dropout = attention.to_out
    return dropout(projection(result.transpose(1, 2).flatten(2)))


def _through(
    block: Any, temb: Tensor, attend: Callable[[_Part, Tensor], Tensor], part: _Part
) -> Tensor:
    """A part's tokens after the block; ``attend`` gives what its attention gives of the part."""
    normed, gate = _normed(block.norm1, temb, part.tokens, part.is_text)
    tokens = part.tokens + gate * attend(part, normed)
    del normed
    normed, gate = _normed(block.norm2, temb, tokens, part.is_text)
    return tokens + gate * block.ff(normed)
