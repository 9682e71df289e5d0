"""A model folder's weights: missing, misshapen, sharded, damaged or pickled ones are named."""

from __future__ import annotations

import json

import pytest

from jobs.errors import CannotRunHere
from jobs.families.tensors import check_tensors
from jobs.model_folder import inspect_model
from tests.jobs.model_folders import (
    SHAPES,
    TEXT,
    TRANSFORMER,
    VAE,
    edit_weights,
    refusal,
    shard,
)


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
