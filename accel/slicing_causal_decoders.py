"""Slicing for the decoders of causal video autoencoders, HunyuanVideo's and CogVideoX's, by rows.

Every operator of a residual block sees one row above and one below at most, all frames and the
whole width. So rows of its output are made from a few more rows of its input, through norm,
activation, padding and convolution; whole are the block's input and what stands between its two
convolutions. Norms take their statistics over all rows first. The result is added to the input in
place: nothing else in these decoders reads that.

Where a block has fewer channels than the one before, what the upsampler between makes would be the
widest features of all. They never exist whole, but are made twice: for the statistics and the
shortcut, and for the first convolution.

A reader gives rows [start, stop) of features [B, C, F, H, W]. An operator's reader reads what it
needs from the reader of the operator before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    CogVideoXDecoder3D,
    CogVideoXMidBlock3D,
    CogVideoXResnetBlock3D,
    CogVideoXSpatialNorm3D,
    CogVideoXUpBlock3D,
)
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import (
    HunyuanVideoDecoder3D,
    HunyuanVideoMidBlock3D,
    HunyuanVideoResnetBlockCausal3D,
    HunyuanVideoUpBlock3D,
    HunyuanVideoUpsampleCausal3D,
)
from diffusers.models.upsampling import CogVideoXUpsample3D
from torch import Tensor
from torch.nn import functional

from accel.slices import GroupStatistics, Slices, put
from accel.slicing_unets import know_attention

if TYPE_CHECKING:
    from accel.slicing import SlicingHandle

Reader = Callable[[int, int], Tensor]
Normaliser = Callable[[Tensor], Tensor]
Ranges = list[tuple[int, int]]

_ROWS = 3  # the dimension that is cut


class _Operators(Protocol):
    """What the residual blocks of a decoder are made of."""

    def group_norm(self, norm: Any) -> torch.nn.GroupNorm:
        """What has statistics in a norm."""

    def normed(self, norm: Any, normalise: Normaliser, read: Reader, height: int) -> Reader:
        """Of a norm, whose input ``normalise`` has the statistics of."""

    def convolved(self, module: Any, name: str, read: Reader, height: int) -> Reader:
        """Of a causal convolution, which sees one row beside each."""

    def upsampled(self, module: Any, x: Tensor) -> Tensor:
        """An upsampler's output."""

    def inside(self, name: str) -> _Operators:
        """Those of a submodule of that name."""


@dataclass(frozen=True)
class _Level:
    """A block of residual blocks, after the upsampler of the block before."""

    name: str
    block: Any
    slices: Slices
    upsampler: Any = None
    scale: int = 1  # rows that the upsampler makes of one


def _levels(
    decoder: Any, handle: SlicingHandle, scale: Callable[[Any], tuple[int, int, int]]
) -> list[_Level]:
    """A decoder's, with slices by their size. ``scale`` is an upsampler's, of frames, rows and
    columns."""
    size, sizes, upsamplers = 1, [], [None]
    for block in decoder.up_blocks:
        conv = block.resnets[0].conv1.conv
        sizes.append(size * max(conv.in_channels, conv.out_channels))
        (upsampler,) = block.upsamplers or (None,)
        size *= math.prod(scale(upsampler)) if upsampler else 1
        upsamplers.append(upsampler)
    levels = [_Level("mid_block", decoder.mid_block, handle.slices(sizes[0] / max(sizes)))]
    for i, block in enumerate(decoder.up_blocks):
        slices, before = handle.slices(sizes[i] / max(sizes)), upsamplers[i]
        rows = scale(before)[1] if before else 1
        levels.append(_Level(f"up_block_{i}", block, slices, before, rows))
    return levels


# -- readers


def _whole(x: Tensor) -> Reader:
    return lambda start, stop: x[..., start:stop, :]


def _seeing(
    read: Reader, operator: Callable[[Tensor, int], Tensor], height: int, scale: int = 1
) -> Reader:
    """Of an operator that makes ``scale`` rows of one and then sees one beside each. It gets a part
    of its input, ``height`` rows in all, and the part's first row. What it takes for the border of
    the whole may be one of the part: a row there is left out."""

    def rows(start: int, stop: int) -> Tensor:
        first = max(0, (start - 1) // scale)
        made = operator(read(first, min(height, -(-(stop + 1) // scale))), first)
        return made[..., start - first * scale : stop - first * scale, :]

    return rows


def _joined(
    read: Reader,
    ranges: Ranges,
    statistics: GroupStatistics | None = None,
    then: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """All rows, of which the statistics are taken, and ``then`` what a pointwise operator makes of
    them."""
    joined, height = None, ranges[-1][1]
    for start, stop in ranges:
        part = read(start, stop)
        if statistics is not None:
            statistics.add(part)
        if then is not None:
            part = then(part)
        joined = put(joined, part, start, height, dim=_ROWS)
        del part  # or it would live beside the next
    assert joined is not None
    return joined


# -- residual blocks


def _resnet(
    block: Any,
    slices: Slices,
    operators: _Operators,
    x: Tensor,
    upsampler: Any = None,
    scale: int = 1,
) -> Tensor:
    """Changes x where nothing else changes its shape."""
    read, shortcut = _whole(x), getattr(block, "conv_shortcut", None)
    ranges = slices.of(x.shape[_ROWS] * scale)
    if upsampler is not None:
        up = partial(operators.upsampled, upsampler)
        read = _seeing(read, lambda part, first: up(part), x.shape[_ROWS], scale)
    norm1, norm2 = (
        GroupStatistics(operators.group_norm(norm)) for norm in (block.norm1, block.norm2)
    )
    if upsampler is None and shortcut is None:
        for start, stop in ranges:
            norm1.add(read(start, stop))
    else:
        x = _joined(read, ranges, norm1, shortcut)
        read = _whole(x) if shortcut is None else read
    convolved = partial(_convolved, operators, block.nonlinearity, ranges[-1][1])
    hidden = _joined(convolved(block.norm1, norm1, block.conv1, "conv1", read), ranges, norm2)
    read = convolved(block.norm2, norm2, block.conv2, "conv2", _whole(hidden))
    for start, stop in ranges:
        x[..., start:stop, :] += read(start, stop)
    return x


def _convolved(
    operators: _Operators,
    activation: Callable[[Tensor], Tensor],
    height: int,
    norm: Any,
    statistics: GroupStatistics,
    convolution: Any,
    name: str,
    read: Reader,
) -> Reader:
    """Of a norm, an activation and a convolution."""
    normed = operators.normed(norm, statistics.normaliser(), read, height)
    return operators.convolved(
        convolution, name, lambda start, stop: activation(normed(start, stop)), height
    )


def _head(norm: Any, decoder: Any, slices: Slices, operators: _Operators, x: Tensor) -> Tensor:
    """The last norm, activation and convolution."""
    ranges, statistics = slices.of(x.shape[_ROWS]), GroupStatistics(operators.group_norm(norm))
    for start, stop in ranges:
        statistics.add(x[..., start:stop, :])
    height, conv_out = ranges[-1][1], decoder.conv_out
    return _joined(
        _convolved(
            operators, decoder.conv_act, height, norm, statistics, conv_out, "conv_out", _whole(x)
        ),
        ranges,
    )


def _blocks(levels: list[_Level], operators: _Operators, x: Tensor) -> Tensor:
    for level in levels:
        inside, upsampler = operators.inside(level.name), (level.upsampler, level.scale)
        for i, resnet in enumerate(level.block.resnets):
            x = _resnet(resnet, level.slices, inside.inside(f"resnet_{i}"), x, *upsampler)
            upsampler = (None, 1)
    return x


def _spread(part: Tensor, frames: int) -> Tensor:
    """Each frame twice, of the first one as many as make it ``frames``; or the part as it is."""
    if part.shape[2] == frames:
        return part
    return part.repeat_interleave(2, dim=2)[:, :, -frames:]


# -- HunyuanVideo


def attach_hunyuan_video_decoder(model: Any, handle: SlicingHandle) -> None:
    """The decoder of AutoencoderKLHunyuanVideo; encoding stays as it is. The middle block's
    attention goes by frames, each of which sees those up to itself, and by queries."""
    decoder = model.decoder
    handle.know(decoder, HunyuanVideoDecoder3D)
    handle.know(decoder.mid_block, HunyuanVideoMidBlock3D)
    know_attention(decoder, handle)
    for block in (decoder.mid_block, *decoder.up_blocks):
        if block is not decoder.mid_block:
            handle.know(block, HunyuanVideoUpBlock3D)
        for upsampler in getattr(block, "upsamplers", None) or ():
            handle.know(upsampler, HunyuanVideoUpsampleCausal3D)
        for resnet in block.resnets:
            handle.know(resnet, HunyuanVideoResnetBlockCausal3D)
    levels = _levels(decoder, handle, lambda upsampler: upsampler.upsample_factor)
    forward = partial(_decode_hunyuan_video, decoder, levels, handle.slices())
    handle.replace(decoder, forward)


def _decode_hunyuan_video(
    decoder: Any, levels: list[_Level], queries: Slices, hidden_states: Tensor
) -> Tensor:
    operators, (mid, *ups) = _HunyuanVideo(), levels
    x = decoder.conv_in(hidden_states)
    first, *resnets = mid.block.resnets
    x = _resnet(first, mid.slices, operators, x)
    for attention, resnet in zip(mid.block.attentions, resnets, strict=True):
        if attention is not None:
            x = _attention(attention, queries, x)
        x = _resnet(resnet, mid.slices, operators, x)
    x = _blocks(ups, operators, x)
    return _head(decoder.conv_norm_out, decoder, ups[-1].slices, operators, x)


class _HunyuanVideo:
    def group_norm(self, norm: Any) -> torch.nn.GroupNorm:
        return norm

    def normed(self, norm: Any, normalise: Normaliser, read: Reader, height: int) -> Reader:
        return lambda start, stop: normalise(read(start, stop))

    def convolved(self, module: Any, name: str, read: Reader, height: int) -> Reader:
        return _seeing(read, lambda part, first: module(part), height)

    def upsampled(self, module: Any, x: Tensor) -> Tensor:
        frames, *scale = module.upsample_factor
        x = _spread(x, frames * (x.shape[2] - 1) + 1)
        return module.conv(functional.interpolate(x, scale_factor=(1, *scale)))

    def inside(self, name: str) -> _HunyuanVideo:
        return self


def _attention(attention: Attention, slices: Slices, x: Tensor) -> Tensor:
    batch, _, frames, height, width = x.shape
    x_BCN = x.flatten(2)
    normed = attention.group_norm(x_BCN).transpose(1, 2)
    query, key, value = (
        project(normed).unflatten(2, (attention.heads, -1)).transpose(1, 2)
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    attended = torch.empty_like(query)
    for frame in range(frames):
        begin, end = (each * height * width for each in (frame, frame + 1))
        for start, stop in slices.of(end - begin):
            part = slice(begin + start, begin + stop)
            attended[:, :, part] = functional.scaled_dot_product_attention(
                query[:, :, part], key[:, :, :end], value[:, :, :end]
            )
    result = attention.to_out[0](attended.transpose(1, 2).flatten(2)).transpose(1, 2) + x_BCN
    return (result / attention.rescale_output_factor).contiguous().view_as(x)


# -- CogVideoX


def attach_cogvideox_decoder(model: Any, handle: SlicingHandle) -> None:
    """The decoder of AutoencoderKLCogVideoX; encoding stays as it is. What a convolution keeps for
    the next batch of frames takes the place of what it kept of the last one, which is taken out of
    the context that the decoder is given."""
    decoder = model.decoder
    handle.know(decoder, CogVideoXDecoder3D)
    handle.know(decoder.mid_block, CogVideoXMidBlock3D)
    for block in (decoder.mid_block, *decoder.up_blocks):
        if block is not decoder.mid_block:
            handle.know(block, CogVideoXUpBlock3D)
        for upsampler in getattr(block, "upsamplers", None) or ():
            handle.know(upsampler, CogVideoXUpsample3D)
        for resnet in block.resnets:
            handle.know(resnet, CogVideoXResnetBlock3D)
            handle.know(resnet.norm1, CogVideoXSpatialNorm3D)
            if resnet.use_conv_shortcut:
                handle.refuse(resnet, "has a shortcut that is a convolution of width 3")
    levels = _levels(decoder, handle, lambda upsampler: (1 + upsampler.compress_time, 2, 2))
    handle.replace(decoder, partial(_decode_cogvideox, decoder, levels))


def _decode_cogvideox(
    decoder: Any,
    levels: list[_Level],
    sample: Tensor,
    temb: Tensor | None = None,  # these decoders have no use for it
    conv_cache: dict[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    kept: dict[str, Any] = {}
    operators = _CogVideoX(sample, conv_cache or {}, kept)
    x, kept["conv_in"] = decoder.conv_in(sample, conv_cache=operators.past.pop("conv_in", None))
    x = _blocks(levels, operators, x)
    return _head(decoder.norm_out, decoder, levels[-1].slices, operators, x), kept


@dataclass(frozen=True)
class _CogVideoX:
    latents: Tensor
    past: dict[str, Any]  # what convolutions kept of the frames before
    kept: dict[str, Any]  # what they keep of these

    def group_norm(self, norm: Any) -> torch.nn.GroupNorm:
        return norm.norm_layer

    def normed(self, norm: Any, normalise: Normaliser, read: Reader, height: int) -> Reader:
        """Scale and offset are made of the latents, pixel by pixel: before they are enlarged."""
        (scale, _), (offset, _) = (each(self.latents) for each in (norm.conv_y, norm.conv_b))
        times = height // self.latents.shape[_ROWS]

        def rows(start: int, stop: int) -> Tensor:
            part = normalise(read(start, stop))
            for change, maps in ((part.mul_, scale), (part.add_, offset)):
                change(_enlarged(maps, part.shape[2], times, start, stop))
            return part

        return rows

    def convolved(self, module: Any, name: str, read: Reader, height: int) -> Reader:
        past = self.past.pop(name, None)

        def operator(part: Tensor, first: int) -> Tensor:
            before = None if past is None else past[..., first : first + part.shape[_ROWS], :]
            made, kept = module(part, conv_cache=before)
            self.kept[name] = put(self.kept.get(name), kept, first, height, dim=_ROWS)
            return made

        return _seeing(read, operator, height)

    def upsampled(self, module: Any, x: Tensor) -> Tensor:
        frames = x.shape[2]
        if module.compress_time:
            x = _spread(x, 2 * frames - frames % 2)
        grown = functional.interpolate(x.transpose(1, 2).flatten(0, 1), scale_factor=2.0)
        return module.conv(grown).unflatten(0, (len(x), -1)).transpose(1, 2)

    def inside(self, name: str) -> _CogVideoX:
        past, kept = self.past.get(name) or {}, self.kept.setdefault(name, {})
        return _CogVideoX(self.latents, past, kept)


def _enlarged(maps: Tensor, frames: int, times: int, start: int, stop: int) -> Tensor:
    """Rows [start, stop) of maps [B, C, F, H, W] of the latents, each pixel ``times`` as high and
    wide, for ``frames`` frames: each latent frame for as many; the first of an odd number for one
    alone."""
    first, alone = start // times, frames % 2
    each = (frames - alone) // max(maps.shape[2] - alone, 1)
    spread = maps[..., first : -(-stop // times), :].repeat_interleave(max(each, 1), dim=2)
    grown = functional.interpolate(spread[:, :, -frames:], scale_factor=(1, times, times))
    return grown[..., start - first * times : stop - first * times, :]
