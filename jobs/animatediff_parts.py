"""The two folders that AnimateDiff is published as: found, and looked at before any weight loads.

Reads configs and file names only: no torch, no diffusers.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from jobs.errors import CannotRunHere
from jobs.families.animatediff import AnimateDiff
from jobs.model_folder import download_patterns, read_json, resolve_folder, snapshot, weight_files

_VALID = "its folder, or a Hugging Face id like org/name"
_ADAPTER_FILES = ["config.json", "diffusion_pytorch_model.safetensors"]


def find_base(name: str) -> Path:
    """The folder of a Stable Diffusion 1.x model, by path or Hugging Face id. Raises BadJob or
    CannotRunHere."""
    patterns = download_patterns(AnimateDiff())
    folder = resolve_folder(name, partial(snapshot, patterns=patterns), "base", _VALID)
    found = read_json(folder, "model_index.json").get("_class_name")
    if found != "StableDiffusionPipeline":
        raise CannotRunHere(
            f"base {folder}: model_index.json says {found}; it must be a StableDiffusionPipeline "
            "(Stable Diffusion 1.x)"
        )
    for component in AnimateDiff.components:
        weight_files(folder, component)
    return folder


def find_adapter(name: str) -> Path:
    """The folder of a motion adapter, by path or Hugging Face id. Raises BadJob or
    CannotRunHere."""
    fetch = partial(snapshot, patterns=_ADAPTER_FILES)
    folder = resolve_folder(name, fetch, "adapter", _VALID)
    found = read_json(folder, "config.json").get("_class_name")
    if found != "MotionAdapter":
        raise CannotRunHere(
            f"adapter {folder}: config.json says {found}; it must be a MotionAdapter, as "
            "guoyww/animatediff-motion-adapter-v1-5-2"
        )
    weight_files(folder, ".")
    return folder
