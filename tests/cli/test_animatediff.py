"""``longtake animatediff``: one folder of the two that AnimateDiff is published as."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
from diffusers import AutoencoderKL, MotionAdapter

from tests.cli.conftest import refusal
from tests.ray.harness import Ran
from tests.workers.tiny_animatediff import write_as_published

Parts = tuple[Path, Path]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """As Hugging Face has them: the base names a safety checker, which is never fetched."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    write_as_published(base, adapter)
    index = base / "model_index.json"
    checker = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    index.write_text(json.dumps(json.loads(index.read_text()) | checker))
    return base, adapter


def test_what_it_makes_is_a_model(longtake: Callable[..., Ran], parts: Parts) -> None:
    made = parts[0].parent / "models" / "made"
    ran = longtake("animatediff", *parts, made)
    assert ran.code == 0, ran.err
    assert f"made {made}" in ran.err and not ran.out
    planned = longtake(
        "plan", "--model", made, "--prompt", "a", "--seconds", "2", "--size", "32x32"
    )
    assert planned.code == 0, planned.err
    again = longtake("animatediff", *parts, made)
    assert refusal(again, 2) == f"{made} exists; give the name of a folder that does not"


def test_what_it_cannot_make_is_told_and_leaves_nothing(
    longtake: Callable[..., Ran], parts: Parts
) -> None:
    (base, adapter), made = parts, parts[0].parent / "made"
    short = MotionAdapter(
        block_out_channels=(8,), motion_num_attention_heads=2, motion_norm_num_groups=4
    )
    short.save_pretrained(base.parent / "short")
    pickled = adapter.with_name("pickled")
    pickled.mkdir()
    (pickled / "config.json").write_text((adapter / "config.json").read_text())
    (pickled / "diffusion_pytorch_model.bin").write_bytes(b"x")
    second, bare, wide = (base.with_name(name) for name in ("second", "bare", "wide"))
    for copy in (second, bare, wide):
        shutil.copytree(base, copy)
    AutoencoderKL(latent_channels=8, norm_num_groups=4, block_out_channels=(8,)).save_pretrained(
        wide / "vae"
    )
    config = second / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_linear_projection": True}))
    shutil.rmtree(bare / "tokenizer")
    for given, code, says in (
        ((adapter, base), 6, "has no model_index.json; it must be Stable Diffusion 1.x"),
        ((base, base), 6, "has no config.json; it must be a motion adapter"),
        ((base, base.parent / "short"), 6, "make no model: "),
        ((wide, adapter), 6, "unet and vae do not fit"),
        ((second, adapter), 6, "is a Stable Diffusion 2.x; it must be"),
        ((bare, adapter), 6, "tokenizer/tokenizer_config.json is missing"),
        ((base, pickled), 6, "only pickled weights"),
        ((base / "no", adapter), 2, "base: '"),
        ((base, "../no"), 2, "adapter: '../no' is no folder here; valid: its folder, or a Hugging"),
    ):
        ran = longtake("animatediff", *given, made)
        assert says in refusal(ran, code)
        assert not made.exists() and not [*made.parent.glob(".made*")]
    (base.parent / "file").write_text("")
    ran = longtake("animatediff", base, adapter, base.parent / "file" / "made")
    assert "cannot be written" in refusal(ran, 2)


def test_ids_are_fetched_without_what_nobody_reads(
    longtake: Callable[..., Ran], parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Safety checker, other precisions, pickles."""
    asked: dict[str, list[str]] = {}

    def download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        if repository == "org/none":
            raise OSError("404")
        asked[repository] = allow_patterns
        return str(parts[0] if repository == "org/base" else parts[1])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    made = parts[0].parent / "made"
    ran = longtake("animatediff", "org/base", "org/adapter@v2", made)
    assert ran.code == 0, ran.err
    files = {
        "unet/diffusion_pytorch_model.safetensors": True,
        "text_encoder/model-00001-of-00002.safetensors": True,
        "unet/diffusion_pytorch_model.fp16.safetensors": False,
        "unet/diffusion_pytorch_model.non_ema.safetensors": False,
        "unet/diffusion_pytorch_model.bin": False,
        "safety_checker/model.safetensors": False,
    }
    for file, wanted in files.items():
        assert any(fnmatch(file, each) for each in asked["org/base"]) == wanted, file
    said = refusal(longtake("animatediff", "org/none", "org/adapter", made.with_name("no")), 6)
    assert "base 'org/none' is no folder here" in said and "404" in said and "demo" not in said
