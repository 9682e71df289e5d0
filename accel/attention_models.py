"""Where video transformers of diffusers have their self-attention, and in which order their tokens
lie: one entry a class, nothing else asks for a model's name."""

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

    ``layers`` are its self-attention modules in the order in which they run, ``grid`` the tokens of
    a video (frames, rows, columns; the frame slowest) from the arguments of its forward. Text that
    takes part in the self-attention stands before the video's tokens or after them. ``outputs``
    counts the tensors that an attention module returns.
    """

    layers: Callable[[Any], Sequence[Module]]
    grid: Callable[[Any, Mapping[str, Any]], Extent]
    text: Literal["none", "first", "last"] = "none"
    outputs: int = 1


def _patched(latents: torch.Tensor, patch: Sequence[int], first: int = 2) -> Extent:
    """Tokens of latents whose frames, height and width are the dimensions from ``first``."""
    frames, height, width = latents.shape[first : first + 3]
    return frames // patch[0], height // patch[1], width // patch[2]


VIDEO_TRANSFORMERS: dict[str, VideoTransformer] = {
    "WanTransformer3DModel": VideoTransformer(
        layers=lambda model: [block.attn1 for block in model.blocks],
        grid=lambda model, given: _patched(given["hidden_states"], model.config.patch_size),
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
