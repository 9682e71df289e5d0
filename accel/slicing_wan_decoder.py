"""Slicing for Wan's decoder, by rows (``accel.slicing_rows``).

It decodes a latent frame at a time: every convolution over time keeps the last two frames of its
input for the next one, in a list that diffusers hands through the decoder, with a counter of its
places. A row's part of what was kept is read, and a row's part of what is kept is written. Norms
see one place at a time, so they need no statistics. An upsampler doubles frames first, row by row,
then rows and columns, and convolves those; what it doubles never exists whole.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanCausalConv3d,
    WanDecoder3d,
    WanMidBlock,
    WanResample,
    WanResidualBlock,
    WanResidualUpBlock,
    WanUpBlock,
)
from torch import Tensor

from accel.slices import Slices, put
from accel.slicing_rows import (
    ROWS,
    Normaliser,
    PlaceByPlace,
    Reader,
    Statistics,
    head_by_rows,
    resnet_by_rows,
    seeing,
)

if TYPE_CHECKING:
    from accel.slicing import SlicingHandle

#: Frames of its input that a convolution keeps.
KEPT = 2
#: What diffusers puts in the place of a time convolution that has seen the very first frame, which
#: is not doubled.
_FIRST = "Rep"


def attach_wan_decoder(model: Any, handle: SlicingHandle) -> None:
    """The decoder of AutoencoderKLWan; encoding stays as it is."""
    decoder = model.decoder
    handle.know(decoder, WanDecoder3d)
    handle.know(decoder.mid_block, WanMidBlock)
    for attention in decoder.mid_block.attentions:
        handle.know(attention, WanAttentionBlock)
    for block in decoder.up_blocks:
        handle.know(block, WanUpBlock, WanResidualUpBlock)
        if (upsampler := _upsampler(block)) is not None:
            handle.know(upsampler, WanResample)
    for block in (decoder.mid_block, *decoder.up_blocks):
        for resnet in block.resnets:
            handle.know(resnet, WanResidualBlock)
    handle.replace(decoder, partial(_decode, decoder, _slices(decoder, handle)))


def _upsampler(block: Any) -> Any:
    if isinstance(block, WanResidualUpBlock):
        return block.upsampler
    return block.upsamplers[0] if block.upsamplers is not None else None


def _slices(decoder: Any, handle: SlicingHandle) -> list[tuple[Slices, Slices]]:
    """Of each block's residual blocks, and of its upsampler, by what lives in a slice: of a
    convolution's input about twice as much as of what an upsampler doubles."""
    size, sizes = 1, []
    for block in decoder.up_blocks:
        width, own, upsampler = block.resnets[0].conv1.out_channels, size, _upsampler(block)
        size *= 1 if upsampler is None else 4 * (2 if upsampler.mode == "upsample3d" else 1)
        sizes.append((2 * own * width, size * width))
    largest = max(map(max, sizes))
    return [(handle.slices(own / largest), handle.slices(up / largest)) for own, up in sizes]


def _decode(
    decoder: Any,
    slices: list[tuple[Slices, Slices]],
    x: Tensor,
    feat_cache: list[Any],
    feat_idx: list[int],
    first_chunk: bool = False,
) -> Tensor:
    operators = _Operators(feat_cache, feat_idx)
    read = operators.convolved(decoder.conv_in, "", lambda a, b, z=x: z[..., a:b, :], x.shape[ROWS])
    x = read(0, x.shape[ROWS])
    first, *resnets = decoder.mid_block.resnets
    inmost, _ = slices[0]
    x = resnet_by_rows(first, inmost, operators, x)
    for attention, resnet in zip(decoder.mid_block.attentions, resnets, strict=True):
        x = resnet_by_rows(resnet, inmost, operators, attention(x))
    for block, cut in zip(decoder.up_blocks, slices, strict=True):
        x = _up_block(block, *cut, operators, x, first_chunk)
    layers = decoder.norm_out, decoder.nonlinearity, decoder.conv_out
    return head_by_rows(*layers, slices[-1][0], operators, x)


def _up_block(
    block: Any,
    slices: Slices,
    doubling: Slices,
    operators: _Operators,
    x: Tensor,
    first_chunk: bool,
) -> Tensor:
    """With a shortcut, what enters lives on, for the residual blocks change theirs."""
    shortcut, entered = getattr(block, "avg_shortcut", None), x
    if shortcut is not None:
        entered = x.clone()
    for resnet in block.resnets:
        x = resnet_by_rows(resnet, slices, operators, x)
    upsampler = _upsampler(block)
    if upsampler is None:
        return x
    doubled = operators.doubled_frames(upsampler, x)
    joined, height = None, x.shape[ROWS]
    for start, stop in doubling.of(height):
        first = max(0, start - 1)
        made = _enlarged(upsampler, doubled(first, min(height, stop + 1)))
        part = made[..., 2 * (start - first) : 2 * (stop - first), :]
        if shortcut is not None:
            part = part + shortcut(entered[..., start:stop, :], first_chunk=first_chunk)
        joined = put(joined, part, 2 * start, 2 * height, dim=ROWS)
        del made, part  # or they would live beside the next
    assert joined is not None
    operators.keep_frames(upsampler, x)
    return joined


def _enlarged(upsampler: Any, x: Tensor) -> Tensor:
    """Rows and columns twice, and a convolution of each frame."""
    frames = upsampler.resample(x.transpose(1, 2).flatten(0, 1))
    return frames.unflatten(0, (len(x), -1)).transpose(1, 2)


class _Operators:
    """Convolutions in the order of the decoder, each with its place in the list of what is kept."""

    def __init__(self, kept: list[Any], counter: list[int]) -> None:
        self._kept, self._counter = kept, counter

    def statistics(self, norm: Any) -> Statistics:
        return PlaceByPlace(norm)

    def shortcut(self, block: Any) -> Normaliser | None:
        convolution = block.conv_shortcut
        return convolution if isinstance(convolution, WanCausalConv3d) else None

    def normed(self, norm: Any, normalise: Normaliser, read: Reader, height: int) -> Reader:
        return lambda start, stop: normalise(read(start, stop))

    def convolved(self, module: Any, name: str, read: Reader, height: int) -> Reader:
        place = self._next()
        past, keeping = self._kept[place], None

        def operator(part: Tensor, first: int) -> Tensor:
            nonlocal keeping
            before = None if past is None else past[..., first : first + part.shape[ROWS], :]
            keeping = put(keeping, _tail(before, part), first, height, dim=ROWS)
            self._kept[place] = keeping
            return module(part, before)

        return seeing(read, operator, height)

    def doubled_frames(self, upsampler: Any, x: Tensor) -> Reader:
        """Rows of an upsampler's input with twice as many frames, if it doubles them: not the very
        first one. What was kept stays until ``keep_frames``, for slices share rows of it."""
        past = self._kept[self._counter[0]] if upsampler.mode == "upsample3d" else None
        if past is None:
            return lambda start, stop: x[..., start:stop, :]

        def rows(start: int, stop: int) -> Tensor:
            part = x[..., start:stop, :]
            before = None if isinstance(past, str) else past[..., start:stop, :]
            two = upsampler.time_conv(part, before).unflatten(1, (2, -1))
            return two.transpose(1, 2).transpose(2, 3).flatten(2, 3)

        return rows

    def keep_frames(self, upsampler: Any, x: Tensor) -> None:
        """Its time convolution's place goes on to the next frame."""
        if upsampler.mode != "upsample3d":
            return
        place = self._next()
        past = self._kept[place]
        if past is None:
            self._kept[place] = _FIRST
        elif isinstance(past, str):
            self._kept[place] = _tail(torch.zeros_like(x), x)
        else:
            self._kept[place] = _tail(past, x)

    def _next(self) -> int:
        place = self._counter[0]
        self._counter[0] += 1
        return place


def _tail(before: Tensor | None, part: Tensor) -> Tensor:
    """The last frames of a convolution's input; of a single one with the last one before it."""
    if part.shape[2] >= KEPT or before is None:
        return part[:, :, -KEPT:].clone()
    return torch.cat([before[:, :, -1:], part], dim=2)
