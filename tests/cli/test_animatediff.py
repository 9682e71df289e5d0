"""``longtake animatediff``: one folder of the two that AnimateDiff is published as."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import MotionAdapter

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
    for given, code, says in (
        ((adapter, base), 6, "model_index.json is missing; a motion adapter alone is no model"),
        ((base, base), 6, "config.json is missing; copy it"),
        ((base, base.parent / "short"), 6, "is not for"),
        ((base, pickled), 6, "only pickled weights"),
        ((base / "no", adapter), 2, "base: '"),
        ((base, "../no"), 2, "adapter: '../no' is no folder here; valid: its folder, or a Hugging"),
    ):
        ran = longtake("animatediff", *given, made)
        assert says in refusal(ran, code)
        assert not made.exists() and not [*made.parent.glob(".made*")]
