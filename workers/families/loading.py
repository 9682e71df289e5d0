"""Loading the parts of a diffusers folder, and refusing those that are not whole."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from jobs.errors import BadJob, CannotRunHere

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def read_dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise BadJob(f"unknown dtype '{name}'; valid: {', '.join(DTYPES)}")
    return DTYPES[name]


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise CannotRunHere(f"not a diffusers model folder: {path} is missing") from None


def read_parts(
    folder: Path, index: Mapping[str, Any], components: Mapping[str, tuple[str, ...]]
) -> dict[str, str]:
    """The class of each part, which must be one of those that ``components`` has for it."""
    parts = {part: (index.get(part) or (None, None))[1] for part in components}
    for part, name in parts.items():
        if name not in components[part]:
            valid = " or ".join(components[part])
            raise CannotRunHere(f"{folder}: {part} is {name}; this family needs {valid}")
    return parts


def load_part(cls: Any, folder: Path, part: str, device: torch.device, **dtype: torch.dtype) -> Any:
    """Diffusers and transformers make up what they don't find: here that is an error."""
    model, info = cls.from_pretrained(
        folder,
        subfolder=part,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported in info instead, and refused there
        **dtype,
    )
    check_loaded(f"{folder}/{part}", model, info)
    return model.to(device).eval().requires_grad_(False)


def load_plain(cls: Any, folder: Path) -> Any:
    """A tokenizer or an image processor.

    A file of ``tokenizers`` is the tokenizer, whatever class is named beside it. Transformers 5
    takes its words alone and has the class split the text: Llama's cuts at spaces, which Llama 3,
    HunyuanVideo's encoder, has none of (huggingface/transformers#45488), and T5's loses the bytes
    that stand for rare signs. What the class says of padding is kept.
    """
    if not (folder / "tokenizer.json").is_file():
        return cls.from_pretrained(folder, local_files_only=True)
    settings = folder / "tokenizer_config.json"
    told = json.loads(settings.read_text("utf-8")) if settings.is_file() else {}
    side = told.get("padding_side", cls.padding_side)
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, padding_side=side)


def release(device: torch.device | str) -> None:
    """Let go of what only holds itself, too: models do, in cycles."""
    gc.collect()
    empty_cache(device)


def empty_cache(device: torch.device | str) -> None:
    """Give back what a part that is gone had: free memory is then what a worker says it is."""
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def check_loaded(part: str, model: torch.nn.Module, info: Mapping[str, Any]) -> None:
    """Raise CannotRunHere unless every tensor of the model came from its files, and none is left.

    A tensor that is tied to another one that was found is not missing.
    """
    missing = set(info["missing_keys"])
    names: dict[int, set[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), set()).add(name)
    tied = {name for group in names.values() if group - missing for name in group}
    problems = {
        "missing": missing - tied,
        "unexpected": set(info["unexpected_keys"]),
        "mismatched in shape": {
            each if isinstance(each, str) else each[0] for each in info["mismatched_keys"]
        },
    }
    found = [
        f"{what}: {', '.join(sorted(keys)[:5])}" + (f" and {len(keys) - 5} more" * (len(keys) > 5))
        for what, keys in problems.items()
        if keys
    ] + [str(message) for message in info.get("error_msgs") or ()]
    if found:
        raise CannotRunHere(
            f"the weights in {part} are not those of {type(model).__name__}; {'; '.join(found)}. "
            "Copy the model again"
        )
