"""A small model folder for tests to write and spoil, without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models

from jobs.errors import CannotRunHere
from jobs.families.wan_tensors import expected_tensors
from jobs.model_folder import inspect_model

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


def write_model(folder: Path) -> Path:
    """A whole folder with random weights."""
    for name, config in CONFIGS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(config))
    for name, shapes in SHAPES.items():
        rng = np.random.default_rng(0)
        tensors = {key: rng.random(shape, np.float32) for key, shape in shapes.items()}
        save_file(tensors, folder / name)
    return folder
