"""LoRA adapters, added to a denoiser's weights by diffusers and peft."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from jobs.errors import CannotRunHere

#: An adapter's file, and what its weights are multiplied by.
Adapter = tuple[str, float]

#: How the first of the two matrices of an adapted layer is called in the formats there are.
_DOWN = ("lora_A.weight", "lora.down.weight", "lora_down.weight")


def fuse(pipeline: Any, denoiser: torch.nn.Module, adapters: Sequence[Adapter]) -> None:
    """Add adapters to the weights of the pipeline's denoiser, in order. Raises CannotRunHere unless
    every layer that an adapter has was found there: diffusers leaves out what it does not find."""
    names = [f"adapter_{number}" for number in range(len(adapters))]
    for name, (path, _) in zip(names, adapters, strict=True):
        file = Path(path)
        if not file.is_file():
            raise CannotRunHere(f"{file} is missing on this machine; copy it to the same path")
        try:
            pipeline.load_lora_weights(
                str(file.parent),
                weight_name=file.name,
                adapter_name=name,
                use_safetensors=True,
                local_files_only=True,
            )
        except (ValueError, KeyError, RuntimeError) as error:
            raise CannotRunHere(f"{file} does not fit {_kind(denoiser)}: {error}") from error
        _check_all_found(file, denoiser, name)
    if adapters:
        pipeline.set_adapters(names, [scale for _, scale in adapters])
        pipeline.fuse_lora(adapter_names=names, safe_fusing=True)
        pipeline.unload_lora_weights()
        denoiser.eval().requires_grad_(False)


def _check_all_found(file: Path, denoiser: torch.nn.Module, name: str) -> None:
    with safe_open(file, framework="pt") as weights:
        layers = [key for key in weights.keys() if key.endswith(_DOWN)]  # noqa: SIM118
    adapted = [m for m in denoiser.modules() if name in getattr(m, "lora_A", {})]
    if len(adapted) != len(layers):
        raise CannotRunHere(
            f"{file} does not fit {_kind(denoiser)}: of its {len(layers)} adapted layers "
            f"{len(adapted)} were found (among them {', '.join(sorted(layers)[:2])}); adapters of "
            "text encoders are not built yet"
        )


def _kind(denoiser: torch.nn.Module) -> str:
    return f"this {type(denoiser).__name__}"
