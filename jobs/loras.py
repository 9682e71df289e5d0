"""LoRA adapters that a job adds to its model: found, checked and named by their content.

Reads file headers and hashes only: no torch, no weight is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.errors import BadJob, CannotRunHere
from jobs.families.family import ModelDefaults
from jobs.model_folder import SIDECAR, ModelInfo, read_defaults
from jobs.model_hashes import hash_files
from jobs.spec_lora import Lora
from jobs.weight_headers import read_header

#: What diffusers calls an adapter's file.
LORA_FILE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True, slots=True)
class LoraFile:
    """An adapter as a plan keeps it: the file, its weight, and what it holds."""

    path: str  # absolute
    scale: float
    sha256: str


def with_loras(
    model: ModelInfo, loras: Sequence[Lora | LoraFile]
) -> tuple[ModelInfo, list[LoraFile]]:
    """The model with adapters added: its identity tells them, and a pyramid that one of them was
    trained for is the model's own. Raises BadJob, CannotRunHere."""
    found = [_hashed(find_lora(lora.path), lora) for lora in loras]
    if not found:
        return model, []
    defaults = _with_pyramid(model, [Path(each.path).parent for each in found])
    model.family.geometry(model.configs, defaults)  # raises where they do not fit the family
    told = [[each.sha256, each.scale] for each in found]
    both = hashlib.sha256(json.dumps([model.identity, told]).encode()).hexdigest()
    return replace(model, identity=both, defaults=defaults), found


def find_lora(path: str) -> Path:
    """The safetensors file that ``path`` is, or that a folder of this name holds."""
    there = Path(path).expanduser().absolute()  # a link of Hugging Face's cache has the name
    if there.is_dir():
        files = sorted(there.glob("*.safetensors"))
        named = [file for file in files if file.name == LORA_FILE]
        if len(files) > 1 and not named:
            names = ", ".join(file.name for file in files[:5])
            raise BadJob(f"{path} holds several adapters; give one of its files: {names}")
        if files:
            return (named or files)[0]
        raise BadJob(f"{path} holds no .safetensors file; give an adapter's file or folder")
    if not there.is_file():
        raise BadJob(f"{path} is no file here; give an adapter's file or folder")
    if there.suffix != ".safetensors":
        raise BadJob(
            f"{path} is no .safetensors file; pickled weights can run code when they are loaded: "
            "convert it to safetensors"
        )
    return there


def _hashed(file: Path, lora: Lora | LoraFile) -> LoraFile:
    header = read_header(file)
    if not any("lora" in name for name in header.shapes):
        raise BadJob(f"{file} holds no LoRA: none of its tensors has lora in its name")
    found = hash_files(file.parent, [file.name])[file.name]
    if lora.sha256 not in (None, found):
        raise BadJob(f"{file} is another file than asked for: its sha256 is {found}")
    return LoraFile(str(file), lora.scale, found)


def _with_pyramid(model: ModelInfo, folders: Sequence[Path]) -> ModelDefaults:
    """The model's defaults with the pyramid that its adapters were trained for, if they say one;
    a single stage is none."""
    said: dict[tuple[tuple[int, ...], bool], Path] = {}
    for folder in folders:
        if (folder / SIDECAR).is_file():
            try:
                told = read_defaults(folder, replace(model.family.defaults, pyramid_steps=()))
            except CannotRunHere as error:
                raise BadJob(f"{folder}: {error}") from None
            if told.pyramid_steps:
                said[told.pyramid_steps, told.stage_positions] = folder
    if len(said) > 1:
        one, other = list(said.values())[:2]
        raise BadJob(f"{one} and {other} were trained for different pyramids; give one of them")
    if not said:
        return model.defaults
    ((steps, positions),) = said
    return replace(model.defaults, pyramid_steps=steps, stage_positions=positions)
