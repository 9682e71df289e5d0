"""Slicing for models of spatio-temporal blocks, Stable Video Diffusion's UNet and its decoder, and
for the decoder of single pictures.

A temporal resnet normalises twice over all frames and positions. Its first pass over positions ends
with the sums of the second norm, its second pass works in place: so its input and one tensor more
live. An up block runs the two halves of its layers itself, so that nothing holds what went into the
first. The code that the paper's authors released takes both norms per slice of the width.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import (
    AlphaBlender,
    ResnetBlock2D,
    SpatioTemporalResBlock,
    TemporalResnetBlock,
)
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from diffusers.models.unets.unet_3d_blocks import (
    CrossAttnDownBlockSpatioTemporal,
    CrossAttnUpBlockSpatioTemporal,
    DownBlockSpatioTemporal,
    MidBlockTemporalDecoder,
    UNetMidBlockSpatioTemporal,
    UpBlockSpatioTemporal,
    UpBlockTemporalDecoder,
)
from torch import Tensor

from accel.slices import GroupStatistics, Slices, by_frames, statistics_of
from accel.slicing_unets import (
    attach_head,
    by_frames_of,
    know_attention,
    know_upsampler,
    positions,
    shares,
    spatial_group,
)
from accel.wrapping import LastLayers

if TYPE_CHECKING:
    from accel.slicing import SlicingHandle


def attach_svd_unet(model: Any, handle: SlicingHandle) -> None:
    levels = [handle.slices(share) for share in shares(model.config.block_out_channels)]
    for block, slices in zip(model.down_blocks, levels, strict=True):
        handle.know(block, CrossAttnDownBlockSpatioTemporal, DownBlockSpatioTemporal)
        _attach_layers(block, handle, slices)
    handle.know(model.mid_block, UNetMidBlockSpatioTemporal)
    _attach_layers(model.mid_block, handle, levels[-1])
    upsampler = None
    for block, slices in zip(model.up_blocks, reversed(levels), strict=True):
        handle.know(block, CrossAttnUpBlockSpatioTemporal, UpBlockSpatioTemporal)
        _attach_layers(block, handle, slices)
        handle.replace(block, LastLayers(_up, block, slices, upsampler))
        upsampler = know_upsampler(block, handle)
    attach_head(model, handle, levels[0])


def attach_decoder(model: Any, handle: SlicingHandle) -> None:
    """The decoder of AutoencoderKL, of single pictures: one group from end to end."""
    handle.know(model.decoder, Decoder)
    know_attention(model.decoder, handle)
    handle.replace(model.decoder, by_frames_of(model.decoder, handle.slices()))


def attach_temporal_decoder(model: Any, handle: SlicingHandle) -> None:
    """The decoder of AutoencoderKLTemporalDecoder; encoding stays as it is."""
    decoder = model.decoder
    levels = [handle.slices(share) for share in shares(model.config.block_out_channels)]
    handle.know(decoder.mid_block, MidBlockTemporalDecoder)
    _attach_layers(decoder.mid_block, handle, levels[-1])
    upsampler = None
    for block, slices in zip(decoder.up_blocks, reversed(levels), strict=True):
        handle.know(block, UpBlockTemporalDecoder)
        _attach_layers(block, handle, slices)
        handle.replace(block, partial(_decoder_up, block, slices, upsampler))
        upsampler = know_upsampler(block, handle)
    attach_head(decoder, handle, levels[0])


def _attach_layers(block: Any, handle: SlicingHandle, slices: Slices) -> None:
    for resnet in block.resnets:
        handle.know(resnet, SpatioTemporalResBlock)
        handle.know(resnet.spatial_res_block, ResnetBlock2D)
        handle.know(resnet.temporal_res_block, TemporalResnetBlock)
        handle.know(resnet.time_mixer, AlphaBlender)
        handle.replace(resnet, partial(_resnet, resnet, slices))
    for attention in getattr(block, "attentions", ()):
        handle.know(attention, TransformerSpatioTemporalModel, Attention)
        know_attention(attention, handle)
        if type(attention) is Attention:  # the decoder's, within each frame
            handle.replace(attention, by_frames_of(attention, slices))
            continue
        for inner in attention.transformer_blocks:
            handle.know(inner, BasicTransformerBlock)
        for inner in attention.temporal_transformer_blocks:
            handle.know(inner, TemporalBasicTransformerBlock)
        handle.know(attention.time_mixer, AlphaBlender)
        handle.replace(attention, partial(_transformer, attention, slices))
    for downsampler in getattr(block, "downsamplers", None) or ():
        handle.know(downsampler, Downsample2D)
        handle.replace(downsampler, by_frames_of(downsampler, slices))


def _up(
    block: Any,
    slices: Slices,
    upsampler: Any,
    hidden_states: Tensor,
    res_hidden_states_tuple: tuple[Tensor, ...],
    temb: Tensor | None = None,
    *,
    encoder_hidden_states: Tensor | None = None,
    image_only_indicator: Tensor,
    upsample_size: Any = None,  # each skip connection has its size
) -> Tensor:
    skips = list(res_hidden_states_tuple)
    attentions = getattr(block, "attentions", [None] * len(block.resnets))
    layers = list(zip(block.resnets, attentions, strict=True))
    if len(skips) < len(layers):
        upsampler = None  # the input is what a layer made
    for resnet, attention in layers[-len(skips) :]:
        group = spatial_group(resnet.spatial_res_block, upsampler=upsampler)
        hidden_states = by_frames(slices, group, hidden_states, skips.pop(), temb, None)
        hidden_states = _temporal(resnet, slices, hidden_states, temb, image_only_indicator)
        if attention is not None:
            (hidden_states,) = attention(
                hidden_states, encoder_hidden_states, image_only_indicator, return_dict=False
            )
        upsampler = None
    return hidden_states


def _decoder_up(
    block: Any,
    slices: Slices,
    upsampler: Any,
    hidden_states: Tensor,
    image_only_indicator: Tensor,
) -> Tensor:
    for resnet in block.resnets:
        group = spatial_group(resnet.spatial_res_block, upsampler=upsampler)
        hidden_states = by_frames(slices, group, hidden_states, None, None, None)
        hidden_states = _temporal(resnet, slices, hidden_states, None, image_only_indicator)
        upsampler = None
    return hidden_states


def _resnet(
    module: Any,
    slices: Slices,
    hidden_states: Tensor,
    temb: Tensor | None = None,
    image_only_indicator: Tensor | None = None,
) -> Tensor:
    assert image_only_indicator is not None
    group = spatial_group(module.spatial_res_block)
    spatial = by_frames(slices, group, hidden_states, None, temb, None)
    return _temporal(module, slices, spatial, temb, image_only_indicator)


def _temporal(
    module: Any, slices: Slices, spatial: Tensor, temb: Tensor | None, indicator: Tensor
) -> Tensor:
    """The temporal resnet and the mixer, by positions: as columns, for convolutions on a CPU are
    fast along those."""
    frames = indicator.shape[-1]
    x = positions(spatial, frames)
    output = spatial.new_empty(spatial.shape)
    y = positions(output, frames)
    ranges = slices.of(x.shape[3])
    norm2 = _first_half(module.temporal_res_block, ranges, x, y, _per_frame(temb, frames))
    for start, stop in ranges:
        part = x[..., None, start:stop]
        temporal = _second_half(module.temporal_res_block, part, norm2(y[..., None, start:stop]))
        mixed = module.time_mixer(part, temporal, indicator)
        y[..., start:stop] = mixed.squeeze(-2)
        del temporal, mixed
    return output


def _per_frame(temb: Tensor | None, frames: int) -> Tensor | None:
    return None if temb is None else temb.unflatten(0, (-1, frames))


def _first_half(
    resnet: Any, ranges: list[tuple[int, int]], x: Tensor, y: Tensor, temb: Tensor | None
) -> Any:
    """Up to the second norm, from x [B, C, F, P] into y, slice by slice; returns that norm."""
    norm1 = statistics_of(resnet.norm1, (x[..., start:stop] for start, stop in ranges))
    statistics = GroupStatistics(resnet.norm2)
    if resnet.time_emb_proj is not None:
        temb = resnet.time_emb_proj(resnet.nonlinearity(temb)).transpose(1, 2)[..., None, None]
    for start, stop in ranges:
        part = resnet.conv1(resnet.nonlinearity(norm1(x[..., None, start:stop])))
        if resnet.time_emb_proj is not None:
            part = part + temb
        statistics.add(part)
        y[..., start:stop] = part.squeeze(-2)
        del part
    return statistics.normaliser()


def _second_half(resnet: Any, part: Tensor, hidden: Tensor) -> Tensor:
    """From the second norm's result on, for a slice [B, C, F, 1, P]."""
    hidden = resnet.conv2(resnet.dropout(resnet.nonlinearity(hidden)))
    if resnet.conv_shortcut is not None:
        part = resnet.conv_shortcut(part)
    return part + hidden


def _transformer(
    module: Any,
    slices: Slices,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    image_only_indicator: Tensor | None = None,
    return_dict: bool = True,
) -> tuple[Tensor]:
    """Spatial blocks by frames, temporal ones with the mixer by positions; the last of these goes
    on to the output. The library's blocks ask for a tuple, the only answer that is given here."""
    assert image_only_indicator is not None and encoder_hidden_states is not None
    batch, frames = image_only_indicator.shape
    context = encoder_hidden_states.unflatten(0, (batch, frames))[:, 0]  # of the first frame
    where = _frame_embedding(module, batch, frames, hidden_states)
    output = hidden_states.new_empty(hidden_states.shape)
    y, residual = (
        each.unflatten(0, (batch, frames)).flatten(3) for each in (output, hidden_states)
    )
    hidden, enter = hidden_states, module
    blocks = zip(module.transformer_blocks, module.temporal_transformer_blocks, strict=True)
    last = len(module.transformer_blocks) - 1
    for layer, (block, temporal) in enumerate(blocks):
        hidden = by_frames(slices, _spatial_block(block, enter), hidden, encoder_hidden_states)
        enter = None
        h = hidden.unflatten(0, (batch, frames))  # [B, F, P, C]
        for start, stop in slices.of(h.shape[2]):
            part = h[:, :, start:stop].flatten(0, 1)
            part = _mixed(module, temporal, part, where, context, image_only_indicator)
            if layer < last:
                h[:, :, start:stop] = part.unflatten(0, (batch, frames))
                continue
            part = module.proj_out(part).unflatten(0, (batch, frames)).transpose(2, 3)
            y[..., start:stop] = part + residual[..., start:stop]
    return (output,)


def _spatial_block(block: Any, enter: Any) -> Any:
    """A spatial block on frames' tokens; in the first layer with norm and projection before it."""

    def group(hidden: Tensor, text: Tensor) -> Tensor:
        if enter is not None:
            hidden = enter.proj_in(enter.norm(hidden).permute(0, 2, 3, 1).flatten(1, 2))
        return block(hidden, encoder_hidden_states=text)

    return group


def _frame_embedding(module: Any, batch: int, frames: int, like: Tensor) -> Tensor:
    """The frames' own positions, [B*F, 1, C]."""
    numbers = torch.arange(frames, device=like.device).repeat(batch)
    return module.time_pos_embed(module.time_proj(numbers).to(like.dtype))[:, None]


def _mixed(
    module: Any, temporal: Any, part: Tensor, where: Tensor, context: Tensor, indicator: Tensor
) -> Tensor:
    """A temporal block and the mixer on a slice of positions, [B*F, P, C]."""
    length = part.shape[1]
    text = context[:, None].expand(-1, length, -1, -1).flatten(0, 1)
    moved = temporal(part + where, num_frames=indicator.shape[-1], encoder_hidden_states=text)
    return module.time_mixer(part, moved, indicator)
