"""How a model is named, found, fetched and told from another."""

from __future__ import annotations

import json
import os
import shutil
import threading

import pytest
from safetensors.numpy import load_file, save_file

from jobs import model_hashes
from jobs.errors import BadJob, CannotRunHere
from jobs.families.wan import Wan
from jobs.model_folder import (
    DEMO_NAMES,
    DEMOS,
    download_patterns,
    inspect_model,
    pinned_name,
    resolve_model,
)
from tests.jobs.model_folders import (
    CONFIGS,
    SHAPES,
    VAE,
    edit,
    edit_weights,
    words,
)


def test_the_identity_changes_with_every_file_that_is_loaded(model):
    seen = {inspect_model(model).identity}
    for name in [*CONFIGS, *SHAPES]:
        if name in SHAPES:
            tensors = load_file(model / name)
            save_file({key: value + 1 for key, value in tensors.items()}, model / name)
        elif name == "tokenizer/tokenizer.json":
            (model / name).write_text(words(28))
        else:
            edit(model, name, extra=1)
        seen.add(inspect_model(model).identity)
    assert len(seen) == 1 + len(CONFIGS) + len(SHAPES)
    edit(model, "longtake.json", format=1)
    (model / "README.md").write_text("hello")
    assert inspect_model(model).identity in seen


def test_the_identity_does_not_depend_on_the_place(model, tmp_path):
    shutil.copytree(model, tmp_path / "copy")
    assert inspect_model(model).identity == inspect_model(tmp_path / "copy").identity


def test_an_unchanged_file_is_hashed_once(model, monkeypatch):
    read = []
    whole = model_hashes.file_sha256
    monkeypatch.setattr(
        model_hashes, "file_sha256", lambda path: read.append(path.name) or whole(path)
    )
    first = model_hashes.hash_files(model, SHAPES)
    assert model_hashes.hash_files(model, SHAPES) == first and len(read) == 3
    edit_weights(model, VAE, extra=(3,))
    assert model_hashes.hash_files(model, SHAPES)[VAE] != first[VAE] and len(read) == 4


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 3}', "\0"])
def test_a_broken_cache_of_hashes_is_no_matter(model, content):
    first = model_hashes.hash_files(model, SHAPES)
    model_hashes.cache_file().write_text(content)
    assert model_hashes.hash_files(model, SHAPES) == first


def test_many_may_write_the_cache_at_once(model):
    first = model_hashes.hash_files(model, SHAPES)
    model_hashes.cache_file().unlink()
    found = []
    jobs = [
        threading.Thread(target=lambda: found.append(model_hashes.hash_files(model, SHAPES)))
        for _ in range(8)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert found == [first] * 8
    assert json.loads(model_hashes.cache_file().read_text())
    assert os.listdir(model_hashes.cache_file().parent) == ["hashes.json"]


def test_a_home_that_cannot_be_written_is_no_matter(model, monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null")
    assert len(model_hashes.hash_files(model, SHAPES)) == 3


def test_names_resolve(model, monkeypatch):
    assert resolve_model("demo").name == "demo_model"
    assert resolve_model(str(model)) == model
    monkeypatch.chdir(model.parent)
    assert resolve_model("model") == resolve_model("./model") == model


@pytest.mark.parametrize("name", ["nothing", "./a/b", "/a/b", "a/b/c", "a b/c", "../x", "~/none/x"])
def test_names_that_can_be_nothing(name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(BadJob, match=f"valid: {DEMO_NAMES}, the folder of a model, or a Hug"):
        resolve_model(name)


def test_a_file_is_no_model(model):
    with pytest.raises(BadJob, match="is a file"):
        resolve_model(str(model / "model_index.json"))


def test_an_id_is_fetched_without_code_and_only_if_built(model, monkeypatch):
    asked = []

    def download(repository, revision, allow_patterns):
        asked.append((repository, revision, allow_patterns))
        return str(model)

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("org/name-1.3B@v1") == model
    assert asked[0] == ("org/name-1.3B", "v1", ["model_index.json", "config.json"])
    assert asked[1] == ("org/name-1.3B", "v1", download_patterns(Wan()))
    assert all(each.endswith((".json", ".safetensors", ".txt", ".model")) for each in asked[1][2])
    edit(model, "model_index.json", _class_name="MochiPipeline")
    with pytest.raises(CannotRunHere, match="not built"):
        resolve_model("org/name")
    assert len(asked) == 3


def test_an_id_that_cannot_be_had_says_what_is_valid(monkeypatch):
    import huggingface_hub

    def download(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CannotRunHere, match=r"'org/name@v1'.*no network\nValid: 'demo'"):
        resolve_model("org/name@v1")


def test_a_job_keeps_a_name_that_stays_true(model, monkeypatch, tmp_path):
    commit = "0123456789abcdef" * 2 + "01234567"
    snapshot = tmp_path / "models--org--name" / "snapshots" / commit
    shutil.copytree(model, snapshot)
    for name in DEMOS:
        assert pinned_name(name, resolve_model(name)) == name
    for named in ("org/name", "org/name@main", f"org/name@{commit}"):
        assert pinned_name(named, snapshot) == f"org/name@{commit}"
    assert pinned_name("org/name@v1", model) == "org/name@v1"
    monkeypatch.chdir(model.parent)
    assert pinned_name("model", resolve_model("model")) == str(model)


def test_a_pinned_name_is_fetched_by_its_commit(model, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda repository, revision, allow_patterns: asked.append(revision) or str(model),
    )
    resolve_model("org/name@" + "a" * 40)
    assert asked == ["a" * 40] * 2
