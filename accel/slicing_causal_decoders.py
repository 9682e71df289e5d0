"""Slicing for the decoders of HunyuanVideo and CogVideoX, by rows (``accel.slicing_rows``)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    CogVideoXDecoder3D,
    CogVideoXMidBlock3D,
    CogVideoXResnetBlock3D,
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
from accel.slicing_rows import (
    ROWS,
    Level,
    Normaliser,
    Reader,
    blocks_by_rows,
    decoder_levels,
    head_by_rows,
    know_blocks,
    resnet_by_rows,
    seeing,
    spread,
)
from accel.slicing_unets import know_attention

if TYPE_CHECKING:
    from accel.slicing import SlicingHandle

# -- HunyuanVideo


def attach_hunyuan_video_decoder(model: Any, handle: SlicingHandle) -> None:
    """The decoder of AutoencoderKLHunyuanVideo; encoding stays as it is. The middle block's
    attention goes by frames, each of which sees those up to itself, and by queries."""
    decoder = model.decoder
    handle.know(decoder, HunyuanVideoDecoder3D)
    handle.know(decoder.mid_block, HunyuanVideoMidBlock3D)
    know_attention(decoder, handle)
    kinds = HunyuanVideoUpBlock3D, HunyuanVideoResnetBlockCausal3D, HunyuanVideoUpsampleCausal3D
    know_blocks(decoder, handle, *kinds)
    levels = decoder_levels(decoder, handle, lambda upsampler: upsampler.upsample_factor)
    handle.replace(decoder, partial(_decode_hunyuan_video, decoder, levels, handle.slices()))


def _decode_hunyuan_video(
    decoder: Any, levels: list[Level], queries: Slices, hidden_states: Tensor
) -> Tensor:
    operators, (mid, *ups) = _HunyuanVideo(), levels
    x = decoder.conv_in(hidden_states)
    first, *resnets = mid.block.resnets
    x = resnet_by_rows(first, mid.slices, operators, x)
    for attention, resnet in zip(mid.block.attentions, resnets, strict=True):
        if attention is not None:
            x = _attention(attention, queries, x)
        x = resnet_by_rows(resnet, mid.slices, operators, x)
    x = blocks_by_rows(ups, operators, x)
    return head_by_rows(
        decoder.conv_norm_out, decoder.conv_act, decoder.conv_out, ups[-1].slices, operators, x
    )


class _HunyuanVideo:
    def statistics(self, norm: Any) -> GroupStatistics:
        return GroupStatistics(norm)

    def shortcut(self, block: Any) -> Normaliser | None:
        return block.conv_shortcut

    def normed(self, norm: Any, normalise: Normaliser, read: Reader, height: int) -> Reader:
        return lambda start, stop: normalise(read(start, stop))

    def convolved(self, module: Any, name: str, read: Reader, height: int) -> Reader:
        return seeing(read, lambda part, first: module(part), height)

    def upsampled(self, module: Any, x: Tensor) -> Tensor:
        frames, *scale = module.upsample_factor
        x = spread(x, frames * (x.shape[2] - 1) + 1)
        return module.conv(functional.interpolate(x, scale_factor=(1, *scale)))

    def inside(self, name: str) -> _HunyuanVideo:
        return self


def _attention(attention: Attention, slices: Slices, x: Tensor) -> Tensor:
    """Of all places; those of a frame see the frames up to theirs, and no other. So no mask is
    needed, which diffusers makes for every pair of them."""
    frames, height, width = x.shape[2:]
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
    know_blocks(decoder, handle, CogVideoXUpBlock3D, CogVideoXResnetBlock3D, CogVideoXUpsample3D)
    levels = decoder_levels(decoder, handle, lambda upsampler: (1 + upsampler.compress_time, 2, 2))
    handle.replace(decoder, partial(_decode_cogvideox, decoder, levels))


def _decode_cogvideox(
    decoder: Any,
    levels: list[Level],
    sample: Tensor,
    temb: Tensor | None = None,  # these decoders have no use for it
    conv_cache: dict[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    kept: dict[str, Any] = {}
    operators = _CogVideoX(sample, conv_cache or {}, kept)
    x, kept["conv_in"] = decoder.conv_in(sample, conv_cache=operators.past.pop("conv_in", None))
    x = blocks_by_rows(levels, operators, x)
    head = decoder.norm_out, decoder.conv_act, decoder.conv_out
    return head_by_rows(*head, levels[-1].slices, operators, x), kept


@dataclass(frozen=True)
class _CogVideoX:
    latents: Tensor
    past: dict[str, Any]  # what convolutions kept of the frames before
    kept: dict[str, Any]  # what they keep of these

    def statistics(self, norm: Any) -> GroupStatistics:
        return GroupStatistics(norm.norm_layer)

    def shortcut(self, block: Any) -> Normaliser | None:
        return getattr(block, "conv_shortcut", None)

    def normed(self, norm: Any, normalise: Normaliser, read: Reader, height: int) -> Reader:
        """Scale and offset are made of the latents, pixel by pixel: before they are enlarged."""
        (scale, _), (offset, _) = (each(self.latents) for each in (norm.conv_y, norm.conv_b))
        times = height // self.latents.shape[ROWS]

        def rows(start: int, stop: int) -> Tensor:
            part = normalise(read(start, stop))
            for change, maps in ((part.mul_, scale), (part.add_, offset)):
                change(_enlarged(maps, part.shape[2], times, start, stop))
            return part

        return rows

    def convolved(self, module: Any, name: str, read: Reader, height: int) -> Reader:
        past = self.past.pop(name, None)

        def operator(part: Tensor, first: int) -> Tensor:
            before = None if past is None else past[..., first : first + part.shape[ROWS], :]
            made, kept = module(part, conv_cache=before)
            self.kept[name] = put(self.kept.get(name), kept, first, height, dim=ROWS)
            return made

        return seeing(read, operator, height)

    def upsampled(self, module: Any, x: Tensor) -> Tensor:
        frames = x.shape[2]
        if module.compress_time:
            x = spread(x, 2 * frames - frames % 2)
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
    maps = maps[..., first : -(-stop // times), :].repeat_interleave(max(each, 1), dim=2)
    grown = functional.interpolate(maps[:, :, -frames:], scale_factor=(1, times, times))
    return grown[..., start - first * times : stop - first * times, :]
