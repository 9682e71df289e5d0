"""Slicing for LTX-Video's decoder, by rows (``accel.slicing_rows``).

Its norms see one place at a time, so they need no statistics. An upsampler convolves before it
doubles: its rows are made from the coarse ones, a few more of them than are kept.

What a piece needs of each block is the caller's to say (``workers.ltx_decoding``), by hooks on the
blocks; so blocks are called as modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from diffusers.models.autoencoders.autoencoder_kl_ltx import (
    LTXVideoCausalConv3d,
    LTXVideoDecoder3d,
    LTXVideoMidBlock3d,
    LTXVideoResnetBlock3d,
    LTXVideoUpBlock3d,
    LTXVideoUpsampler3d,
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

_DOUBLED = 8  # frames, rows and columns

#: What is added to a norm's output, and one less than what it is multiplied by; by the norm.
Modulations = Mapping[Any, tuple[Tensor, Tensor]]


def attach_ltx_decoder(model: Any, handle: SlicingHandle) -> None:
    """The decoder of AutoencoderKLLTXVideo; encoding stays as it is."""
    decoder = model.decoder
    handle.know(decoder, LTXVideoDecoder3d)
    handle.know(decoder.mid_block, LTXVideoMidBlock3d)
    handle.know(decoder.conv_out, LTXVideoCausalConv3d)
    _know_resnets(decoder.mid_block.resnets, handle)
    for block in decoder.up_blocks:
        _know_block(block, handle)
    slices = _slices(decoder, handle)
    handle.replace(decoder.mid_block, partial(_block, decoder.mid_block, slices[0]))
    for block, cut in zip(decoder.up_blocks, slices, strict=True):
        handle.replace(block, partial(_block, block, cut))
    handle.replace(decoder, partial(_decode, decoder, slices[-1]))


def _know_block(block: Any, handle: SlicingHandle) -> None:
    handle.know(block, LTXVideoUpBlock3d)
    _know_resnets(
        block.resnets if block.conv_in is None else (block.conv_in, *block.resnets), handle
    )
    for upsampler in block.upsamplers or ():
        handle.know(upsampler, LTXVideoUpsampler3d)


def _know_resnets(resnets: Iterable[Any], handle: SlicingHandle) -> None:
    for resnet in resnets:
        handle.know(resnet, LTXVideoResnetBlock3d)
        if resnet.per_channel_scale1 is not None:
            handle.refuse(resnet, "adds noise of its own")


def _slices(decoder: Any, handle: SlicingHandle) -> list[Slices]:
    """Of each block, by the size of what leaves it."""
    size, sizes = 1, []
    for block in decoder.up_blocks:
        size *= 1 if block.upsamplers is None else _DOUBLED
        sizes.append(size * block.resnets[0].conv1.in_channels)
    return [handle.slices(each / max(sizes)) for each in sizes]


def _decode(
    decoder: Any, slices: Slices, hidden_states: Tensor, temb: Tensor | None = None
) -> Tensor:
    time = temb
    if decoder.timestep_scale_multiplier is not None:
        time = temb * decoder.timestep_scale_multiplier
    x = decoder.mid_block(decoder.conv_in(hidden_states), time)
    for block in decoder.up_blocks:
        x = block(x, time)
    modulations: Modulations = {}
    if decoder.time_embedder is not None:
        told = _embedded(decoder, time, x).unflatten(1, (2, -1)) + _table(decoder)
        modulations = {decoder.norm_out: told.unbind(1)}
    head = decoder.norm_out, decoder.conv_act, decoder.conv_out
    x = head_by_rows(*head, slices, _Operators(modulations), x)
    p, p_t = decoder.patch_size, decoder.patch_size_t
    patches = x.unflatten(1, (-1, p_t, p, p)).permute(0, 1, 5, 2, 6, 4, 7, 3)
    return patches.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _block(
    block: Any,
    slices: Slices,
    hidden_states: Tensor,
    temb: Tensor | None = None,
    generator: Any = None,  # of noise that none of these blocks adds
) -> Tensor:
    """The middle one, or an upsampling one."""
    x, time = hidden_states, temb
    if getattr(block, "conv_in", None) is not None:
        x = _resnet(block.conv_in, slices, x, time)
    if block.time_embedder is not None:
        time = _embedded(block, time, x)
    for upsampler in getattr(block, "upsamplers", None) or ():
        x = _upsampled(upsampler, slices, x)
    for resnet in block.resnets:
        x = _resnet(resnet, slices, x, time)
    return x


def _embedded(block: Any, time: Any, x: Tensor) -> Tensor:
    embedded = block.time_embedder(
        timestep=time.flatten(),
        resolution=None,
        aspect_ratio=None,
        batch_size=len(x),
        hidden_dtype=x.dtype,
    )
    return embedded.view(len(x), -1, 1, 1, 1)


def _table(module: Any) -> Tensor:
    return module.scale_shift_table[None, ..., None, None, None]


def _resnet(block: Any, slices: Slices, x: Tensor, time: Tensor | None) -> Tensor:
    modulations: Modulations = {}
    if block.scale_shift_table is not None:
        assert time is not None
        shift1, scale1, shift2, scale2 = (time.unflatten(1, (4, -1)) + _table(block)).unbind(1)
        modulations = {block.norm1: (shift1, scale1), block.norm2: (shift2, scale2)}
    return resnet_by_rows(block, slices, _Operators(modulations), x)


def _upsampled(upsampler: Any, slices: Slices, x: Tensor) -> Tensor:
    joined, height = None, x.shape[ROWS]
    for start, stop in slices.of(height):
        first = max(0, start - 1)
        made = upsampler(x[..., first : stop + 1, :])
        kept = made[..., 2 * (start - first) : 2 * (stop - first), :]
        joined = put(joined, kept, 2 * start, 2 * height, dim=ROWS)
        del made, kept  # or they would live beside the next
    assert joined is not None
    return joined


class _Operators:
    def __init__(self, modulations: Modulations) -> None:
        self._modulations = modulations

    def statistics(self, norm: Any) -> Statistics:
        return PlaceByPlace(_last(norm))

    def shortcut(self, block: Any) -> Normaliser | None:
        if block.conv_shortcut is None:
            return None
        norm = _last(block.norm3)
        return lambda part: block.conv_shortcut(norm(part))

    def normed(self, norm: Any, normalise: Normaliser, read: Reader, height: int) -> Reader:
        if norm not in self._modulations:
            return lambda start, stop: normalise(read(start, stop))
        shift, scale = self._modulations[norm]
        return lambda start, stop: normalise(read(start, stop)) * (1 + scale) + shift

    def convolved(self, module: Any, name: str, read: Reader, height: int) -> Reader:
        return seeing(read, lambda part, first: module(part), height)


def _last(norm: Any) -> Normaliser:
    """Of a norm that takes channels last."""
    return lambda part: norm(part.movedim(1, -1)).movedim(-1, 1)
