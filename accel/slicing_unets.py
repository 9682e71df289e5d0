"""Slicing for the UNets of video models: AnimateDiff's.

A layer is a spatial group over frames, [B*F, C, H, W] (upsampling of the level below, joining the
skip connection, resnet, spatial attention), and temporal operators over positions. The upsampler of
a block is the first operator of the next block's first group, so that what it makes never exists
whole; nothing looks at it in between.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import CROSS_ATTENTION_PROCESSORS, Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2DCrossAttn
from diffusers.models.unets.unet_motion_model import (
    AnimateDiffTransformer3D,
    CrossAttnDownBlockMotion,
    CrossAttnUpBlockMotion,
    DownBlockMotion,
    UNetMidBlockCrossAttnMotion,
    UpBlockMotion,
)
from diffusers.models.upsampling import Upsample2D
from torch import Tensor

from accel.slices import Slices, by_frames, statistics_of
from accel.wrapping import LastLayers
from jobs.errors import CannotRunHere

if TYPE_CHECKING:
    from accel.slicing import SlicingHandle


def shares(widths: list[int]) -> list[float]:
    """The size of each level's features as a share of the largest, by their channels: each level
    has a quarter of the positions of the one before."""
    sizes = [width / 4**level for level, width in enumerate(widths)]
    return [size / max(sizes) for size in sizes]


def attach_motion_unet(model: Any, handle: SlicingHandle) -> None:
    levels = [handle.slices(share) for share in shares(model.config.block_out_channels)]
    for block, slices in zip(model.down_blocks, levels, strict=True):
        handle.know(block, CrossAttnDownBlockMotion, DownBlockMotion)
        _know_layers(block, handle, slices)
        handle.replace(block, partial(_motion_down, block, slices))
    upsampler = None
    for block, slices in zip(model.up_blocks, reversed(levels), strict=True):
        handle.know(block, CrossAttnUpBlockMotion, UpBlockMotion)
        _know_layers(block, handle, slices)
        handle.replace(block, LastLayers(_motion_up, block, slices, upsampler))
        upsampler = know_upsampler(block, handle)
    mid = model.mid_block
    handle.know(mid, UNetMidBlockCrossAttnMotion, UNetMidBlock2DCrossAttn)
    _know_layers(mid, handle, levels[-1])
    handle.replace(mid, partial(_motion_mid, mid, levels[-1]))
    attach_head(model, handle, levels[0])


def _know_layers(block: Any, handle: SlicingHandle, slices: Slices) -> None:
    for resnet in block.resnets:
        handle.know(resnet, ResnetBlock2D)
    for attention in getattr(block, "attentions", ()):
        handle.know(attention, Transformer2DModel)
        know_attention(attention, handle)
    for module in getattr(block, "motion_modules", ()):
        handle.know(module, AnimateDiffTransformer3D)
        for inner in module.transformer_blocks:
            handle.know(inner, BasicTransformerBlock)
        handle.replace(module, partial(_motion, module, slices))
    for downsampler in getattr(block, "downsamplers", None) or ():
        handle.know(downsampler, Downsample2D)
        handle.replace(downsampler, by_frames_of(downsampler, slices))


def know_attention(module: torch.nn.Module, handle: SlicingHandle) -> None:
    """An attention processor may look at other frames; the library's ordinary ones do not."""
    for inner in module.modules():
        if isinstance(inner, Attention) and type(inner.processor) not in CROSS_ATTENTION_PROCESSORS:
            known = ", ".join(sorted({kind.__name__ for kind in CROSS_ATTENTION_PROCESSORS}))
            handle.refuse(
                inner,
                f"has the attention processor {type(inner.processor).__name__}; it knows: {known}. "
                "Set one of these, or render without slicing",
            )


def know_upsampler(block: Any, handle: SlicingHandle) -> Upsample2D | None:
    """The block's upsampler, which the next block's first group runs."""
    if not block.upsamplers:
        return None
    (upsampler,) = block.upsamplers
    handle.know(upsampler, Upsample2D)
    return upsampler


def attach_head(model: Any, handle: SlicingHandle, slices: Slices) -> None:
    """The last norm, activation and convolution as one group, which the convolution runs."""
    handle.know(model.conv_out, torch.nn.Conv2d)
    before = [module for module in (model.conv_norm_out, model.conv_act) if module is not None]
    operators = [module.forward for module in (*before, model.conv_out)]
    for module in before:
        handle.replace(module, _pass)
    handle.replace(model.conv_out, partial(by_frames, slices, _chain(operators)))


def _pass(x: Tensor) -> Tensor:
    return x


def _chain(operators: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    def group(x: Tensor) -> Tensor:
        for operator in operators:
            x = operator(x)
        return x

    return group


def by_frames_of(module: torch.nn.Module, slices: Slices) -> Callable[[Tensor], Tensor]:
    """A module's forward, run by frames."""
    return partial(by_frames, slices, module.forward)


# -- groups over frames


def spatial_group(
    resnet: Callable[..., Tensor],
    attention: Any = None,
    upsampler: Any = None,
    **options: Any,
) -> Callable[..., Tensor]:
    """A layer's spatial operators, of (hidden, skip, temb, text), each per frame or None."""

    def group(hidden: Tensor, skip: Tensor | None, temb: Tensor | None, text: Any) -> Tensor:
        if upsampler is not None:
            hidden = upsampler(hidden, None if skip is None else skip.shape[2:])
        if skip is not None:
            hidden = torch.cat([hidden, skip], dim=1)
        hidden = resnet(hidden, temb)
        if attention is not None:
            (hidden,) = attention(hidden, encoder_hidden_states=text, return_dict=False, **options)
        return hidden

    return group


def _options(cross_attention_kwargs: Any, **refused: Any) -> dict[str, Any]:
    """What goes to the attention of every slice. Raises for what would have to be cut."""
    given = [name for name, value in refused.items() if value is not None]
    given += [n for n, value in (cross_attention_kwargs or {}).items() if torch.is_tensor(value)]
    if given:
        raise CannotRunHere(f"slicing cannot cut {', '.join(given)}; render without slicing")
    return {"cross_attention_kwargs": cross_attention_kwargs}


def _layers(block: Any) -> list[tuple[Any, Any, Any]]:
    attentions = getattr(block, "attentions", [None] * len(block.resnets))
    return list(zip(block.resnets, attentions, block.motion_modules, strict=True))


def _motion_down(
    block: Any,
    slices: Slices,
    hidden_states: Tensor,
    temb: Tensor | None = None,
    *,
    encoder_hidden_states: Any = None,
    num_frames: int = 1,
    cross_attention_kwargs: Any = None,
    additional_residuals: Tensor | None = None,
    **refused: Any,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    options = _options(cross_attention_kwargs, **refused)
    outputs: tuple[Tensor, ...] = ()
    for resnet, attention, motion_module in _layers(block):
        group = spatial_group(resnet, attention, **options)
        hidden_states = by_frames(slices, group, hidden_states, None, temb, encoder_hidden_states)
        hidden_states = motion_module(hidden_states, num_frames=num_frames)
        outputs = (*outputs, hidden_states)
    if additional_residuals is not None:
        hidden_states = hidden_states + additional_residuals
        outputs = (*outputs[:-1], hidden_states)
    for downsampler in block.downsamplers or ():
        hidden_states = downsampler(hidden_states)
        outputs = (*outputs, hidden_states)
    return hidden_states, outputs


def _motion_mid(
    block: Any,
    slices: Slices,
    hidden_states: Tensor,
    temb: Tensor | None = None,
    *,
    encoder_hidden_states: Any = None,
    num_frames: int = 1,
    cross_attention_kwargs: Any = None,
    **refused: Any,
) -> Tensor:
    options = _options(cross_attention_kwargs, **refused)
    motion_modules = getattr(block, "motion_modules", [None] * len(block.attentions))
    layers = zip(block.resnets, [*block.attentions, None], [*motion_modules, None], strict=True)
    for resnet, attention, motion_module in layers:
        group = spatial_group(resnet, attention, **options)
        hidden_states = by_frames(slices, group, hidden_states, None, temb, encoder_hidden_states)
        if motion_module is not None:
            hidden_states = motion_module(hidden_states, num_frames=num_frames)
    return hidden_states


def _motion_up(
    block: Any,
    slices: Slices,
    upsampler: Any,
    hidden_states: Tensor,
    res_hidden_states_tuple: tuple[Tensor, ...],
    temb: Tensor | None = None,
    *,
    encoder_hidden_states: Any = None,
    num_frames: int = 1,
    cross_attention_kwargs: Any = None,
    upsample_size: Any = None,  # each skip connection has its size
    **refused: Any,
) -> Tensor:
    options = _options(cross_attention_kwargs, **refused)
    if getattr(block, "s1", None):
        raise CannotRunHere("slicing does not know FreeU; call disable_freeu()")
    skips, layers = list(res_hidden_states_tuple), _layers(block)
    if len(skips) < len(layers):
        upsampler = None  # the input is what a layer made
    for resnet, attention, motion_module in layers[-len(skips) :]:
        group = spatial_group(resnet, attention, upsampler, **options)
        inputs = hidden_states, skips.pop(), temb, encoder_hidden_states
        hidden_states = by_frames(slices, group, *inputs)
        del inputs
        hidden_states = motion_module(hidden_states, num_frames=num_frames)
        upsampler = None
    return hidden_states


# -- groups over positions


def positions(x: Tensor, num_frames: int) -> Tensor:
    """[B*F, C, H, W] as [B, C, F, H*W], a view of contiguous features."""
    return x.unflatten(0, (-1, num_frames)).flatten(3).transpose(1, 2)


def _motion(module: Any, slices: Slices, hidden_states: Tensor, *, num_frames: int) -> Tensor:
    """A motion module, sliced over positions after its GroupNorm's statistics of all of them."""
    x = positions(hidden_states, num_frames)
    ranges = slices.of(x.shape[3])
    normalise = statistics_of(module.norm, (x[..., start:stop] for start, stop in ranges))
    output = hidden_states.new_empty(hidden_states.shape)
    y = positions(output, num_frames)
    for start, stop in ranges:
        part = x[..., start:stop]
        y[..., start:stop] = _motion_blocks(module, normalise(part)) + part
    return output


def _motion_blocks(module: Any, x: Tensor) -> Tensor:
    """[B, C, F, P] -> the same: every position's frames are a sequence."""
    batch, _, frames, length = x.shape
    x = module.proj_in(x.permute(0, 3, 2, 1).reshape(batch * length, frames, -1))
    for block in module.transformer_blocks:
        x = block(x)
    return module.proj_out(x).unflatten(0, (batch, length)).permute(0, 3, 2, 1)
