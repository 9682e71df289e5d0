"""LoRA adapters, added to a denoiser's weights by diffusers and peft.

Diffusers leaves out what it does not find or know, and says so in a log at most. Here that is an
error: an adapter is used whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from jobs.errors import CannotRunHere
from workers.families.loading import empty_cache
from workers.machine import ran_out_of_memory

#: An adapter's file, and what its weights are multiplied by.
Adapter = tuple[str, float]

#: How the two matrices of an adapted layer are called in the formats there are, and what may stand
#: beside them: a factor, which diffusers multiplies in, and a bias, which it knows for some layers.
_DOWN = ("lora_A.weight", "lora.down.weight", "lora_down.weight")
_UP = ("lora_B.weight", "lora.up.weight", "lora_up.weight")
_FACTOR = (".alpha", "lora_B.bias")
_BIAS = ".diff_b"


def fuse(pipeline: Any, denoiser: torch.nn.Module, adapters: Sequence[Adapter]) -> None:
    """Add adapters to the weights of a denoiser, in order, as its ``pipeline`` class reads them.
    Raises CannotRunHere unless all of each one fits."""
    for number, (path, scale) in enumerate(adapters):
        file = Path(path)
        if not file.is_file():
            raise CannotRunHere(f"{file} is missing on this machine; copy it to the same path")
        try:
            _add(pipeline, denoiser, file, f"adapter_{number}", scale)
        except Exception as error:  # the libraries raise whatever they stumble over
            if isinstance(error, CannotRunHere) or ran_out_of_memory(error):
                raise
            raise _refusal(file, denoiser, f"{type(error).__name__}: {error}") from error
    denoiser.eval().requires_grad_(False)
    if adapters:
        empty_cache(next(denoiser.parameters()).device)


def _add(pipeline: Any, denoiser: Any, file: Path, name: str, scale: float) -> None:
    layers = _check_file(file, denoiser)
    state, *alphas, metadata = pipeline.lora_state_dict(
        str(file.parent),
        weight_name=file.name,
        use_safetensors=True,
        local_files_only=True,
        return_lora_metadata=True,
    )
    _check_converted(file, denoiser, state)
    if alphas:
        pipeline.load_lora_into_unet(state, alphas[0], denoiser, name, metadata=metadata)
    else:
        pipeline.load_lora_into_transformer(state, denoiser, name, metadata=metadata)
    adapted = sum(name in getattr(module, "lora_A", {}) for module in denoiser.modules())
    if adapted != layers:
        raise _refusal(file, denoiser, f"of its {layers} adapted layers {adapted} were found")
    denoiser.set_adapters([name], [scale])
    denoiser.fuse_lora(adapter_names=[name], safe_fusing=True)
    denoiser.unload_lora()


def _check_file(file: Path, denoiser: torch.nn.Module) -> int:
    """How many layers the file adapts. Refuses what nobody would look at."""
    with safe_open(file, framework="pt") as weights:
        names = list(weights.keys())
        text = [name for name in names if name.startswith(("text_encoder", "lora_te"))]
        if text:
            raise _refusal(
                file, denoiser, f"{text[0]}: adapters of text encoders are not built yet"
            )
        known = (*_DOWN, *_UP, *_FACTOR)
        others = [name for name in names if not name.endswith(known)]
        unread = [n for n in others if not _is_read_bias(n) and weights.get_tensor(n).any()]
    if unread:
        raise _refusal(
            file, denoiser, f"{unread[0]} ({len(unread)} such) is neither half of an adapted "
            "layer; whole differences and DoRA are not built yet",
        )  # fmt: skip
    down, up = (sum(name.endswith(ends) for name in names) for ends in (_DOWN, _UP))
    if not down or down != up:
        raise _refusal(file, denoiser, f"it has {down} first and {up} second halves of layers")
    return down


def _is_read_bias(name: str) -> bool:
    """Of norms they are left out; of all other layers they become the adapter's bias."""
    return name.endswith(_BIAS) and "norm" not in name


def _check_converted(file: Path, denoiser: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """After diffusers brought it into its own format: every bias found its layer."""
    with safe_open(file, framework="pt") as weights:
        biases = [n for n in weights.keys() if _is_read_bias(n)]  # noqa: SIM118
        nonzero = [name for name in biases if weights.get_tensor(name).any()]
    kept = sum(name.endswith("lora_B.bias") for name in state)
    if len(nonzero) > kept:
        raise _refusal(file, denoiser, f"of its {len(nonzero)} biases {kept} are known here")


def _refusal(file: Path, denoiser: torch.nn.Module, why: str) -> CannotRunHere:
    return CannotRunHere(f"{file} does not fit this {type(denoiser).__name__}: {why}")
