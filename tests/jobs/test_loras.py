"""Adapters: found, checked, and told in what depends on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jobs.errors import BadJob, CannotRunHere
from jobs.loras import LORA_FILE, find_lora, with_loras
from jobs.model_folder import inspect_model
from jobs.spec_lora import Lora


def write_lora(file: Path, value: float = 1.0, name: str = "transformer.a.lora_A.weight") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.full((1, 2), value, np.float32)}, file)
    return file


def test_a_file_or_the_one_of_a_folder(tmp_path: Path) -> None:
    file = write_lora(tmp_path / "style" / "mine.safetensors")
    assert find_lora(str(file)) == find_lora(str(tmp_path / "style")) == file
    named = write_lora(tmp_path / "style" / LORA_FILE)
    assert find_lora(str(tmp_path / "style")) == named


def test_a_link_of_hugging_faces_cache_is_what_it_is_called(tmp_path: Path) -> None:
    blob = write_lora(tmp_path / "blobs" / "a.safetensors").rename(tmp_path / "blobs" / "0123")
    link = tmp_path / "snapshots" / "mine.safetensors"
    link.parent.mkdir()
    link.symlink_to(blob)
    assert find_lora(str(link)) == find_lora(str(link.parent)) == link


@pytest.mark.parametrize(
    ("files", "path", "says"),
    [
        ([], "style", "no file here"),
        (["style/a.safetensors", "style/b.safetensors"], "style", "several adapters.*a.safe"),
        (["style/a.txt"], "style", "holds no .safetensors"),
        (["style/a.bin"], "style/a.bin", "pickled weights"),
    ],
)
def test_what_is_no_adapter_is_refused(tmp_path: Path, files, path: str, says: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(BadJob, match=says):
        find_lora(str(tmp_path / path))


def test_the_models_identity_tells_content_and_scale(model: Path, tmp_path: Path) -> None:
    plain = inspect_model(model)
    assert with_loras(plain, []) == (plain, [])
    file = str(write_lora(tmp_path / "a.safetensors"))
    one, found = with_loras(plain, [Lora(path=file)])
    half, _ = with_loras(plain, [Lora(path=file, scale=0.5)])
    write_lora(Path(file), value=2.0)
    other, _ = with_loras(plain, [Lora(path=file)])
    assert len({info.identity for info in (plain, one, half, other)}) == 4
    assert (found[0].path, found[0].scale) == (file, 1.0)
    with pytest.raises(BadJob, match="another file than asked for"):
        with_loras(plain, found)


def test_files_that_hold_none_are_refused(model: Path, tmp_path: Path) -> None:
    info = inspect_model(model)
    other = write_lora(tmp_path / "a.safetensors", name="weight")
    with pytest.raises(BadJob, match="holds no LoRA"):
        with_loras(info, [Lora(path=str(other))])
    other.write_bytes(other.read_bytes()[:-1])
    with pytest.raises(CannotRunHere, match="damaged or not copied whole"):
        with_loras(info, [Lora(path=str(other))])


def test_a_pyramid_that_it_was_trained_for_is_the_models(model: Path, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "lora" / LORA_FILE)
    said = {"format": 1, "steps": 3, "pyramid_steps": [2, 1], "stage_positions": True}
    (file.parent / "longtake.json").write_text(json.dumps(said))
    plain = inspect_model(model)
    info, _ = with_loras(plain, [Lora(path=str(file.parent))])
    assert (info.defaults.pyramid_steps, info.defaults.stage_positions) == ((2, 1), True)
    assert info.defaults.steps == plain.defaults.steps, "all else is the model's"
    other = write_lora(tmp_path / "other" / LORA_FILE)
    (other.parent / "longtake.json").write_text(json.dumps({"format": 1, "pyramid_steps": [1]}))
    alone, _ = with_loras(info, [Lora(path=str(other))])
    assert alone.defaults.pyramid_steps == (1,), "it was trained for none"
    with pytest.raises(BadJob, match="different pyramids"):
        with_loras(plain, [Lora(path=str(file)), Lora(path=str(other))])
    (file.parent / "longtake.json").write_text(json.dumps({"format": 1, "pyramid_steps": "x"}))
    with pytest.raises(BadJob, match="pyramid_steps cannot be"):
        with_loras(plain, [Lora(path=str(file.parent))])
