"""Model folders: what is wrong with one is named before any weight loads."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models

from jobs import model_hashes
from jobs.errors import BadJob, CannotRunHere
from jobs.model_folder import DOWNLOAD_PATTERNS, inspect_model, pinned_name, resolve_model
from jobs.model_geometry import wan_decode_context
from jobs.model_tensors import check_tensors, expected_tensors

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def words(count: int) -> str:
    """A tokenizer's file with so many words."""
    vocabulary = {"<unk>": 0} | {f"word{number}": number for number in range(1, count)}
    return Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")).to_str()


CONFIGS = {
    "model_index.json": {"_class_name": "WanPipeline", "transformer_2": [None, None]},
    "scheduler/scheduler_config.json": {"_class_name": "UniPCMultistepScheduler"},
    "tokenizer/tokenizer_config.json": {},
    "tokenizer/tokenizer.json": json.loads(words(29)),
    "transformer/config.json": {
        "patch_size": [1, 2, 2],
        "num_attention_heads": 2,
        "attention_head_dim": 6,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 8,
        "ffn_dim": 20,
        "num_layers": 2,
    },
    "vae/config.json": {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 2, 4, 4],
        "temperal_downsample": [False, True, True],
    },
    "text_encoder/config.json": {
        "vocab_size": 30,
        "d_model": 8,
        "d_ff": 12,
        "d_kv": 2,
        "num_heads": 3,
        "num_layers": 1,
    },
}

SHAPES = dict(
    zip(
        (TRANSFORMER, VAE, TEXT),
        expected_tensors(
            {
                name: CONFIGS[f"{name}/config.json"]
                for name in ("transformer", "vae", "text_encoder")
            }
        ).values(),
        strict=True,
    )
)
del SHAPES[TEXT]["encoder.embed_tokens.weight"]  # another name of shared.weight


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    for name, config in CONFIGS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(config))
    for name, shapes in SHAPES.items():
        rng = np.random.default_rng(0)
        tensors = {key: rng.random(shape, np.float32) for key, shape in shapes.items()}
        save_file(tensors, folder / name)
    return folder


def edit(folder: Path, name: str, **changes) -> None:
    path = folder / name
    config = json.loads(path.read_text()) if path.exists() else {}
    config = {key: value for key, value in (config | changes).items() if value is not ...}
    path.write_text(json.dumps(config))


def edit_weights(folder: Path, name: str, **changes) -> None:
    tensors = load_file(folder / name)
    for key, shape in changes.items():
        tensors.pop(key, None)
        if shape is not None:
            tensors[key] = np.zeros(shape, np.float32)
    save_file(tensors, folder / name)


def refusal(folder: Path) -> str:
    with pytest.raises(CannotRunHere) as caught:
        inspect_model(folder)
    return str(caught.value)


def test_a_whole_folder_is_described(model):
    info = inspect_model(model)
    geometry = info.geometry
    assert (info.family, geometry.latent_channels, geometry.text_dim) == ("wan", 4, 8)
    assert (geometry.spatial_scale, geometry.temporal_scale, geometry.size_multiple) == (8, 4, 16)
    assert (geometry.window_latent_frames, geometry.overlap_latent_frames) == (21, 5)
    assert (info.defaults.size, info.defaults.fps, info.defaults.guidance) == (
        (832, 480),
        16,
        (5.0,),
    )
    assert sorted(info.weights) == sorted(SHAPES)
    for name, shapes in SHAPES.items():
        component = name.split("/")[0]
        assert info.parameters[component] == sum(map(math.prod, shapes.values()))
        assert info.parameters_bytes[component] == 4 * info.parameters[component]
    assert info.configs["scheduler"] == CONFIGS["scheduler/scheduler_config.json"]


def test_the_demo_model_is_whole():
    info = inspect_model(resolve_model("demo"))
    assert info.family == "wan" and info.defaults.size[0] % info.geometry.size_multiple == 0


def test_looking_at_a_model_loads_no_torch(model):
    script = (
        "import sys; from jobs.model_folder import *; inspect_model(resolve_model('demo'))\n"
        "import jobs.spec_file; assert not {'torch', 'diffusers', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_sidecar_gives_the_defaults(model):
    edit(
        model, "longtake.json", format=1, size=[96, 64], fps=12, guidance=3, flow_shift=2.5, steps=9
    )
    edit(model, "longtake.json", window_latent_frames=9, overlap_latent_frames=3, text_tokens=64)
    info = inspect_model(model)
    defaults = info.defaults
    assert (defaults.size, defaults.fps, defaults.guidance) == ((96, 64), 12, (3.0,))
    assert (defaults.flow_shift, defaults.steps) == (2.5, 9)
    assert (info.geometry.window_latent_frames, info.geometry.overlap_latent_frames) == (9, 3)
    assert info.geometry.text_tokens == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format must be 1"),
        ({"window": 3}, "unknown 'window'; valid: format, size, fps"),
        ({"negative": ""}, "unknown 'negative'"),
        ({"fps": 0}, "fps cannot be 0"),
        ({"fps": True}, "fps cannot be True"),
        ({"size": [96]}, "size cannot be [96]"),
        ({"guidance": []}, "guidance cannot be []"),
        ({"flow_shift": "3"}, "flow_shift cannot be '3'"),
        ({"window_latent_frames": 4, "overlap_latent_frames": 4}, "overlap_latent_frames must be"),
    ],
)
def test_a_sidecar_that_cannot_be(model, changes, message):
    edit(model, "longtake.json", **{"format": 1} | changes)
    assert message in refusal(model)


@pytest.mark.parametrize("name", [*CONFIGS, *SHAPES])
def test_a_missing_file_is_named(model, name):
    (model / name).unlink()
    assert Path(name).name in refusal(model)


@pytest.mark.parametrize("text", ["", "{}", "[]", words(29)[:200], '{"version": "1.0"}'])
def test_a_broken_tokenizer_is_named(model, text):
    (model / "tokenizer/tokenizer.json").write_text(text)
    assert "tokenizer/tokenizer.json is no tokenizer" in refusal(model)


def test_a_tokenizer_of_another_model_is_refused(model):
    (model / "tokenizer/tokenizer.json").write_text(words(30))
    inspect_model(model)
    (model / "tokenizer/tokenizer.json").write_text(words(31))
    assert "has 31 words up to number 30, but text_encoder knows 30" in refusal(model)


@pytest.mark.parametrize("name", [each for each in CONFIGS if "tokenizer.json" not in each])
@pytest.mark.parametrize("text", ["{", "[]", "\0"])
def test_a_broken_config_is_named(model, name, text):
    (model / name).write_text(text)
    assert name in refusal(model)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "LTXPipeline"},
            "'LTXPipeline' is not built; built: Wan",
        ),
        ("model_index.json", {"_class_name": ["a"]}, "is not built; built: Wan"),
        ("model_index.json", {"boundary_ratio": 0.9}, "two experts (transformer_2) are not built"),
        ("model_index.json", {"transformer_2": ["diffusers", "W"]}, "two experts"),
        ("model_index.json", {"expand_timesteps": True}, "expand_timesteps"),
        ("transformer/config.json", {"text_dim": ...}, "lacks text_dim"),
        ("transformer/config.json", {"text_dim": "8"}, "text_dim cannot be '8'"),
        ("transformer/config.json", {"num_layers": 0}, "num_layers cannot be 0"),
        ("transformer/config.json", {"patch_size": [2, 2, 2]}, "patch_size [2, 2, 2] is not built"),
        ("transformer/config.json", {"patch_size": [1, 2]}, "patch_size [1, 2] is not built"),
        ("transformer/config.json", {"in_channels": 9}, "takes 9 latent channels"),
        ("transformer/config.json", {"image_dim": 1280}, "conditioning on an image"),
        ("transformer/config.json", {"num_layers": 1}, "its weights have more"),
        ("transformer/config.json", {"num_layers": 3}, "blocks.2.attn1.to_q.weight is missing"),
        ("transformer/config.json", {"ffn_dim": 21}, "[20, 12], but config.json implies [21, 12]"),
        ("transformer/config.json", {"text_dim": 16}, "d_model is 8, text_dim is 16"),
        ("vae/config.json", {"scale_factor_spatial": 16}, "is 16, but its layers make 8"),
        ("vae/config.json", {"scale_factor_temporal": 8}, "is 8, but its layers make 4"),
        ("vae/config.json", {"dim_mult": [1, 2]}, "temperal_downsample must have 1 values"),
        ("vae/config.json", {"base_dim": 8}, "weight encoder.conv_in.weight has shape [4,"),
        ("vae/config.json", {"num_res_blocks": 1}, "weight encoder.down_blocks.1.resample.1"),
        ("vae/config.json", {"num_res_blocks": "2"}, "num_res_blocks cannot be '2'"),
        ("vae/config.json", {"attn_scales": [1.0]}, "attn_scales [1.0] is not built"),
        ("vae/config.json", {"latents_mean": [0.0]}, "latents_mean must have 4 values"),
        ("text_encoder/config.json", {"vocab_size": 31}, "shared.weight has shape [30, 8]"),
        (
            "text_encoder/config.json",
            {"num_layers": 2},
            "block.1.layer.0.layer_norm.weight is missing",
        ),
        ("text_encoder/config.json", {"d_model": ...}, "lacks d_model"),
    ],
)
def test_a_config_that_does_not_fit(model, name, changes, message):
    edit(model, name, **changes)
    assert message in refusal(model)


@pytest.mark.parametrize("name", SHAPES)
def test_a_weight_that_is_missing_or_misshapen_is_named(model, name):
    key = next(iter(SHAPES[name]))
    edit_weights(model, name, **{key: (7, 7)})
    assert f"{key} has shape [7, 7]" in refusal(model)
    edit_weights(model, name, **{key: None})
    assert f"{key} is missing" in refusal(model)


@pytest.mark.parametrize("name", SHAPES)
def test_every_tensor_is_missed(name):
    shapes = SHAPES[name]
    for key in shapes:
        others = {each: shape for each, shape in shapes.items() if each != key}
        with pytest.raises(CannotRunHere, match=rf"^file: weight {key} is missing; expected \["):
            check_tensors(name.split("/")[0], "file", others, shapes)


def test_of_many_missing_tensors_the_first_are_named(model):
    attention = "encoder.block.0.layer.0.SelfAttention."
    gone = [key for key in SHAPES[TEXT] if key.startswith(attention)]
    assert len(gone) == 5
    edit_weights(model, TEXT, **dict.fromkeys([*gone, "encoder.final_layer_norm.weight"]))
    message = refusal(model)
    assert message.startswith(
        f"{TEXT}: weight {gone[0]} is missing; expected [6, 8] (and {gone[1]}"
    )
    assert f"{gone[4]} and 1 more)" in message


@pytest.mark.parametrize("name", SHAPES)
def test_a_tensor_that_belongs_to_no_such_model_is_named(model, name):
    edit_weights(model, name, **{"blocks.0.lora_A": (3,), "zzz": (2,)})
    assert f"{name}: its weights have more than config.json implies: blocks.0.l" in refusal(model)


def test_a_tensor_that_diffusers_leaves_aside_is_no_matter(model):
    edit_weights(model, TRANSFORMER, **{"blocks.0.attn2.norm_added_q.weight": (12,)})
    inspect_model(model)


def test_a_shard_without_one_of_its_tensors_is_named(model):
    shard(model)
    edit_weights(model, "transformer/b.safetensors", **{"proj_out.bias": None})
    assert "transformer/*.safetensors: weight proj_out.bias is missing" in refusal(model)


def test_the_text_encoders_shared_weight_has_two_names(model):
    edit_weights(model, TEXT, **{"shared.weight": None, "encoder.embed_tokens.weight": (30, 8)})
    inspect_model(model)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("keep", [0, 7, 100, 400, -1, -4])
def test_a_file_that_was_not_copied_whole_is_named(model, name, keep):
    path = model / name
    path.write_bytes(path.read_bytes()[:keep])
    message = refusal(model)
    assert str(path) in message and "copy it again" in message


def test_a_file_with_more_than_its_header_says_is_damaged(model):
    with (model / VAE).open("ab") as file:
        file.write(b"x")
    assert "is damaged" in refusal(model)


@pytest.mark.parametrize(
    "header",
    [
        b"nonsense",
        b"[]",
        b'{"a": 3}',
        b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": null, "data_offsets": [0, 4]}}',
    ],
)
def test_a_header_that_lies_is_damage(model, header):
    (model / VAE).write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    assert "is damaged" in refusal(model)


def shard(model: Path) -> Path:
    """Splits the transformer's weights over two files."""
    tensors = list(load_file(model / TRANSFORMER).items())
    halves = {"a.safetensors": tensors[:5], "b.safetensors": tensors[5:]}
    for name, part in halves.items():
        save_file(dict(part), model / "transformer" / name)
    weight_map = {key: name for name, part in halves.items() for key, _ in part}
    index = model / f"{TRANSFORMER}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (model / TRANSFORMER).unlink()
    return index


def test_sharded_weights(model):
    before = inspect_model(model)
    index = shard(model)
    info = inspect_model(model)
    assert info.parameters_bytes == before.parameters_bytes
    assert {"transformer/a.safetensors", "transformer/b.safetensors"} < set(info.weights)
    (model / "transformer/b.safetensors").unlink()
    assert "transformer/ lacks b.safetensors" in refusal(model)
    index.write_text(json.dumps({"weight_map": {"x": "../../etc/passwd"}}))
    assert "outside its folder" in refusal(model)


def test_single_and_sharded_weights_together_are_refused(model):
    single = (model / TRANSFORMER).read_bytes()
    shard(model)
    (model / TRANSFORMER).write_bytes(single)
    assert "both exist; remove one" in refusal(model)


def test_pickled_weights_are_refused_with_the_reason(model):
    (model / VAE).rename(model / "vae/diffusion_pytorch_model.bin")
    assert "pickled weights" in refusal(model)


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
def test_names_that_can_be_nothing(name):
    with pytest.raises(BadJob, match="valid: 'demo', the folder of a model, or a Hugging Face id"):
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
    assert asked[0] == ("org/name-1.3B", "v1", ["model_index.json"])
    assert asked[1] == ("org/name-1.3B", "v1", DOWNLOAD_PATTERNS)
    assert all(each.endswith((".json", ".safetensors", ".txt", ".model")) for each in asked[1][2])
    edit(model, "model_index.json", _class_name="LTXPipeline")
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


@pytest.mark.parametrize(
    "config",
    [
        {"dim_mult": [1, 2], "temperal_downsample": [True], "num_res_blocks": 1},
        {"dim_mult": [1, 1, 1, 1], "temperal_downsample": [False, True, True]},
    ],
)
def test_the_decode_context_is_the_measured_one(config):
    diffusers = pytest.importorskip("diffusers")
    import torch

    from workers.decoding import measured_context

    torch.set_num_threads(1)
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        scale_factor_temporal=2 ** sum(config["temperal_downsample"]),
        scale_factor_spatial=2 ** len(config["temperal_downsample"]),
        **config,
    ).eval()
    assert wan_decode_context(vae.config) == measured_context(vae)


def test_a_job_keeps_a_name_that_stays_true(model, monkeypatch, tmp_path):
    commit = "0123456789abcdef" * 2 + "01234567"
    snapshot = tmp_path / "models--org--name" / "snapshots" / commit
    shutil.copytree(model, snapshot)
    assert pinned_name("demo", resolve_model("demo")) == "demo"
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
