"""A model whose files lack a tensor is refused: by its files' headers, and again when it loads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.errors import CannotRunHere
from jobs.model_folder import inspect_model
from tests.workers.tiny import tiny_shot
from workers.families.wan import WanFamily

FILES = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
LOADS: dict[str, Callable[[WanFamily], object]] = {
    "transformer": lambda family: family.denoiser,
    "vae": lambda family: family.vae,
    "text_encoder": lambda family: family.encode(tiny_shot()),
}
each_part = pytest.mark.parametrize("part", FILES)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def changed(tiny_wan: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny model with one component's tensors changed."""

    def change(part: str, edit: Callable[[Tensors], object]) -> Path:
        folder = tmp_path / "wan"
        shutil.copytree(tiny_wan, folder)
        path = folder / part / FILES[part]
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
        return folder

    return change


def last_bias_or_norm(tensors: Tensors) -> str:
    return sorted(name for name in tensors if tensors[name].ndim < 2)[-1]


def refused(folder: Path, part: str, dtype: str) -> tuple[str, str]:
    """What the folder's check says, and what loading says."""
    with pytest.raises(CannotRunHere) as inspected:
        inspect_model(folder)
    with pytest.raises(CannotRunHere) as loaded:
        LOADS[part](WanFamily(str(folder), dtype, "cpu"))
    return str(inspected.value), str(loaded.value)


@each_part
@each_dtype
def test_a_missing_tensor(changed, part: str, dtype: str) -> None:
    gone: list[str] = []

    def drop(tensors: Tensors) -> None:
        gone.append(last_bias_or_norm(tensors))
        del tensors[gone[0]]

    inspected, loaded = refused(changed(part, drop), part, dtype)
    assert f"{part}/{FILES[part]}: weight {gone[0]} is missing" in inspected
    assert part in loaded and f"missing: {gone[0]}" in loaded


@each_part
def test_a_tensor_too_many(changed, part: str) -> None:
    folder = changed(part, lambda tensors: tensors.update({"stray.weight": torch.zeros(3)}))
    inspected, loaded = refused(folder, part, "float32")
    assert "more than config.json implies: stray.weight" in inspected
    assert part in loaded and "unexpected: stray.weight" in loaded


@each_part
def test_a_tensor_of_another_shape(changed, part: str) -> None:
    names: list[str] = []

    def grow(tensors: Tensors) -> None:
        names.append(last_bias_or_norm(tensors))
        tensors[names[0]] = torch.cat([tensors[names[0]]] * 2)

    inspected, loaded = refused(changed(part, grow), part, "float32")
    assert f"weight {names[0]} has shape" in inspected
    assert part in loaded and f"mismatched in shape: {names[0]}" in loaded


@pytest.mark.parametrize("kept", ["shared.weight", "encoder.embed_tokens.weight"])
def test_one_name_of_a_tied_tensor_is_enough(changed, kept: str) -> None:
    def rename(tensors: Tensors) -> None:
        found = [tensors.pop(name) for name in ("shared.weight", "encoder.embed_tokens.weight")
                 if name in tensors]  # fmt: skip
        tensors[kept] = found[0]

    folder = changed("text_encoder", rename)
    inspect_model(folder)
    embeddings = WanFamily(str(folder), "float32", "cpu").encode(tiny_shot())
    assert float(embeddings["cond"].abs().sum()) > 0


def test_both_names_of_a_tied_tensor_are_missed(changed) -> None:
    def drop(tensors: Tensors) -> None:
        for name in ("shared.weight", "encoder.embed_tokens.weight"):
            tensors.pop(name, None)

    inspected, loaded = refused(changed("text_encoder", drop), "text_encoder", "float32")
    assert "shared.weight is missing" in inspected and "shared.weight" in loaded
