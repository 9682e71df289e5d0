"""Model folders: what is wrong with one is named before any weight loads."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.families.wan_geometry import wan_decode_context
from jobs.model_folder import DEMOS, inspect_model, resolve_model
from tests.jobs.model_folders import (
    CONFIGS,
    SHAPES,
    edit,
    refusal,
    words,
)


def test_a_whole_folder_is_described(model):
    info = inspect_model(model)
    geometry = info.geometry
    assert (info.family.name, geometry.latent_channels, geometry.text_dim) == ("wan", 4, 8)
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
    assert "_class_name" not in CONFIGS["vae/config.json"], "or this shows nothing"
    assert info.configs["vae"]["_class_name"] == "AutoencoderKLWan"


@pytest.mark.parametrize("name", DEMOS)
def test_the_demo_models_are_whole(name):
    info = inspect_model(resolve_model(name))
    assert info.family.name == ("animatediff" if "animatediff" in name else "wan")
    assert info.defaults.size[0] % info.geometry.size_multiple == 0
    assert len(info.defaults.pyramid_steps) == (3 if name.endswith("pyramid") else 0)


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
    edit(model, "longtake.json", pyramid_steps=[2, 1], stage_positions=True)
    info = inspect_model(model)
    defaults = info.defaults
    assert (defaults.size, defaults.fps, defaults.guidance) == ((96, 64), 12, (3.0,))
    assert (defaults.flow_shift, defaults.steps) == (2.5, 9)
    assert (info.geometry.window_latent_frames, info.geometry.overlap_latent_frames) == (9, 3)
    assert info.geometry.text_tokens == 64
    assert (defaults.pyramid_steps, defaults.stage_positions) == ((2, 1), True)


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
        ({"pyramid_steps": []}, "pyramid_steps cannot be []"),
        ({"pyramid_steps": [1, 0]}, "pyramid_steps cannot be [1, 0]"),
        ({"stage_positions": 1}, "stage_positions cannot be 1"),
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
            {"_class_name": "MochiPipeline"},
            "'MochiPipeline' is not built; built: Wan",
        ),
        ("model_index.json", {"_class_name": ["a"]}, "is not built; built: Wan"),
        ("model_index.json", {"boundary_ratio": 0.9}, "two experts (transformer_2) are not built"),
        ("model_index.json", {"transformer_2": ["diffusers", "W"]}, "two experts"),
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
        (
            "transformer/config.json",
            {"_class_name": "WanVACETransformer3DModel"},
            "transformer/config.json: _class_name is 'WanVACETransformer3DModel'; it must be WanT",
        ),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "it must be AutoencoderKLWan for"),
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
