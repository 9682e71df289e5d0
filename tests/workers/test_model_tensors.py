"""The tensors that a model folder is checked for are those that the models really have."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from jobs.families.tensors import EMBED, SHARED
from jobs.families.wan_tensors import expected_tensors
from tests.workers import tiny

WAN_14B = {
    "patch_size": [1, 2, 2], "num_attention_heads": 40, "attention_head_dim": 128,
    "in_channels": 16, "out_channels": 16, "text_dim": 4096, "ffn_dim": 13824, "num_layers": 3,
}  # fmt: skip


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def expected(transformer=None, vae=None, text_encoder=None):
    return expected_tensors(
        {
            "transformer": transformer or tiny.tiny_transformer().config,
            "vae": vae or tiny.tiny_vae().config,
            "text_encoder": text_encoder or tiny.tiny_text_encoder().config.to_dict(),
        }
    )


@pytest.mark.parametrize("changes", [{}, {"cross_attn_norm": False, "freq_dim": 64}])
def test_the_transformer(changes) -> None:
    config = WAN_14B | changes
    with torch.device("meta"):
        model = WanTransformer3DModel.from_config(config)
    assert expected(transformer=config)["transformer"] == shapes(model)
    assert expected()["transformer"] == shapes(tiny.tiny_transformer())


@pytest.mark.parametrize(
    "config",
    [
        {},
        tiny.SMALL_VAE,
        tiny.WAN_VAE | {"decoder_base_dim": 8},
        tiny.PATCHED_VAE,
        tiny.RESIDUAL_VAE,
        tiny.WAN_VAE | {"is_residual": True, "base_dim": 8},
    ],
)
def test_the_vae(config) -> None:
    with torch.device("meta"):
        model = AutoencoderKLWan(**config)
    assert expected(vae=model.config)["vae"] == shapes(model)


@pytest.mark.parametrize("projection", ["gated-gelu", "relu"])
def test_the_text_encoder(projection) -> None:
    config = UMT5Config(d_model=16, num_layers=2, vocab_size=64, feed_forward_proj=projection)
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    assert expected(text_encoder=config.to_dict())["text_encoder"] == shapes(model)
    assert expected(text_encoder=config.to_diff_dict())["text_encoder"] == shapes(model)
    assert shapes(model)[SHARED] == shapes(model)[EMBED]
