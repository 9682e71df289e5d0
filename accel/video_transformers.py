"""Where video transformers of diffusers have their blocks and self-attention, and in which order
their tokens lie: one entry a class, for all techniques that look inside one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from jobs.attention_plan import Extent
from jobs.errors import CannotRunHere

Module = torch.nn.Module

#: Diffusers' attention backends that call torch's own ``scaled_dot_product_attention``.
NATIVE = ("native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math")


@dataclass(frozen=True, slots=True)
class VideoTransformer:
    """A class of transformers.

    ``blocks`` are its blocks in the order in which they run, ``attention`` the name of a block's
    self-attention, ``grid`` the tokens of a video (frames, rows, columns; the frame slowest) from
    the arguments of its forward. Text that takes part in the self-attention stands before the
    video's tokens or after them. ``outputs`` counts the tensors that an attention module returns,
    and its block as well: the video's tokens, then those of such text. Both are a block's first
    arguments, ``hidden_states`` and ``encoder_hidden_states``, and what follows the last block
    reads the video's alone.
    """

    blocks: Callable[[Any], Sequence[Module]]
    grid: Callable[[Any, Mapping[str, Any]], Extent]
    attention: str = "attn1"
    text: Literal["none", "first", "last"] = "none"
    outputs: int = 1

    def layers(self, model: Any) -> list[Module]:
        """Its self-attention modules in the order in which they run."""
        return [getattr(block, self.attention) for block in self.blocks(model)]

    def grid_of(self, model: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> Extent:
        """``grid`` from a call's arguments as a forward hook has them."""
        return self.grid(model, {**given, "hidden_states": args[0]} if args else given)


def _patched(latents: torch.Tensor, patch: Sequence[int]) -> Extent:
    """Tokens of latents [B, C, T, H, W]."""
    frames, height, width = latents.shape[2:]
    return frames // patch[0], height // patch[1], width // patch[2]


def _cogvideox(model: Any, given: Mapping[str, Any]) -> Extent:
    """Latents [B, T, C, H, W]."""
    patch, frames = model.config.patch_size, model.config.patch_size_t or 1
    return _patched(given["hidden_states"].transpose(1, 2), (frames, patch, patch))


def _ltx(model: Any, given: Mapping[str, Any]) -> Extent:
    """Its latents come as tokens: the grid is told beside them."""
    grid = tuple(given.get(name) for name in ("num_frames", "height", "width"))
    if None in grid:
        raise CannotRunHere(f"fast attention: {type(model).__name__} is to be told num_frames, "
                            "height and width of its tokens by name")  # fmt: skip
    return grid  # type: ignore[return-value]


def _hunyuan(model: Any, given: Mapping[str, Any]) -> Extent:
    """Latents [B, C, T, H, W]."""
    patch, frames = model.config.patch_size, model.config.patch_size_t
    return _patched(given["hidden_states"], (frames, patch, patch))


def _single_and_double(model: Any) -> list[Module]:
    """Blocks with text beside the video come first, then those with both as one."""
    return [*model.transformer_blocks, *model.single_transformer_blocks]


VIDEO_TRANSFORMERS: dict[str, VideoTransformer] = {
    "WanTransformer3DModel": VideoTransformer(
        blocks=lambda model: model.blocks,
        grid=lambda model, given: _patched(given["hidden_states"], model.config.patch_size),
    ),
    "LTXVideoTransformer3DModel": VideoTransformer(
        blocks=lambda model: model.transformer_blocks,
        grid=_ltx,
    ),
    "CogVideoXTransformer3DModel": VideoTransformer(
        blocks=lambda model: model.transformer_blocks,
        grid=_cogvideox,
        text="first",
        outputs=2,
    ),
    "HunyuanVideoTransformer3DModel": VideoTransformer(
        blocks=_single_and_double, grid=_hunyuan, attention="attn", text="last", outputs=2
    ),
}


def video_transformer(model: Module) -> VideoTransformer:
    """The entry of a model's class. Raises CannotRunHere for one that is not known here."""
    name = type(model).__name__
    if name not in VIDEO_TRANSFORMERS:
        valid = ", ".join(sorted(VIDEO_TRANSFORMERS))
        raise CannotRunHere(f"fast attention does not know {name}; it runs in {valid}")
    return VIDEO_TRANSFORMERS[name]


def check_layers(layers: Sequence[Module]) -> None:
    """Raise CannotRunHere unless every layer computes with torch's own attention on one device."""
    for number, layer in enumerate(layers):
        processor = getattr(layer, "processor", None)
        if processor is None:
            raise CannotRunHere(f"fast attention: layer {number}, {type(layer).__name__}, has no "
                                "attention processor")  # fmt: skip
        backend = getattr(processor, "_attention_backend", None)
        if backend is not None and getattr(backend, "value", backend) not in NATIVE:
            raise CannotRunHere(
                f"fast attention: layer {number} runs attention backend '{backend}'; use one of "
                f"{', '.join(NATIVE)}"
            )
        if getattr(processor, "_parallel_config", None) is not None:
            raise CannotRunHere(
                f"fast attention: layer {number} splits its tokens over devices, and a window "
                "needs them all; use one device per worker"
            )
