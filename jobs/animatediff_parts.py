"""The two folders that AnimateDiff is published as: found, and looked at before any weight loads.

Reads configs and file names only: no torch, no diffusers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.errors import CannotRunHere
from jobs.families.animatediff import AnimateDiff
from jobs.model_folder import download_patterns, read_json, resolve_folder, weight_files

_VALID = "its folder, or a Hugging Face id like org/name"


def find_base(name: str) -> Path:
    """The folder of a Stable Diffusion 1.x model, by path or Hugging Face id. Raises BadJob or
    CannotRunHere."""
    first = ["model_index.json", "unet/config.json"]
    folder = resolve_folder(name, "base", _VALID, first, _rest_of_base)
    _rest_of_base(folder)
    for component in AnimateDiff.components:
        weight_files(folder, component)
    read_json(folder, "scheduler/scheduler_config.json")
    read_json(folder, "tokenizer/tokenizer_config.json")
    return folder


def _rest_of_base(folder: Path) -> list[str]:
    """What else is to be fetched. Raises CannotRunHere for another kind of model."""
    index = _config_of(folder, "model_index.json", "base", "Stable Diffusion 1.x")
    found = index.get("_class_name")
    later = found == "StableDiffusionPipeline" and read_json(folder, "unet/config.json").get(
        "use_linear_projection"
    )
    if found != "StableDiffusionPipeline" or later:
        told = "a Stable Diffusion 2.x" if later else found
        raise CannotRunHere(
            f"base {folder} is {told}; it must be a StableDiffusionPipeline of Stable Diffusion 1.x"
        )
    return download_patterns(AnimateDiff())


def _config_of(folder: Path, file: str, what: str, kind: str) -> dict[str, Any]:
    if not (folder / file).is_file():
        raise CannotRunHere(
            f"{what} {folder} has no {file}; it must be {kind} in diffusers format. The base comes "
            "first, then the adapter"
        )
    return read_json(folder, file)


def find_adapter(name: str) -> Path:
    """The folder of a motion adapter, by path or Hugging Face id. Raises BadJob or
    CannotRunHere."""
    folder = resolve_folder(name, "adapter", _VALID, ["config.json"], _rest_of_adapter)
    _rest_of_adapter(folder)
    weight_files(folder, ".")
    return folder


def _rest_of_adapter(folder: Path) -> list[str]:
    found = _config_of(folder, "config.json", "adapter", "a motion adapter").get("_class_name")
    if found != "MotionAdapter":
        raise CannotRunHere(
            f"adapter {folder} is {found}; it must be a MotionAdapter, as "
            "guoyww/animatediff-motion-adapter-v1-5-2"
        )
    return ["config.json", "diffusion_pytorch_model.safetensors"]
