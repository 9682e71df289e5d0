"""A budget in bytes is kept by all that a render does with a tile: it is denoised, with what plans
of attention keep, and decoded."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.attention_plan import AttentionPlan, save
from jobs.errors import BadJob
from jobs.families import FAMILIES
from jobs.families.family import rendering_bytes
from jobs.model_folder import ModelInfo, inspect_model, resolve_model
from jobs.spec import ResolvedSpec, resolve
from jobs.spec_file import parse_spec
from orchestrator.calibrated import job_keys
from orchestrator.fitting import with_fitted_accelerations
from orchestrator.plan import Plan
from orchestrator.prepare import budget_warnings, prepare
from orchestrator.tile_memory import (
    _kinds_of_steps,
    decode_bytes,
    decoder_dtype_of,
    denoise_bytes,
    dtype_of,
    tile_bytes,
)
from tests.workers.tiny_animatediff import write_tiny_animatediff
from tests.workers.tiny_svd import write_image, write_tiny_svd

#: stabilityai/stable-video-diffusion-img2vid, as far as planning asks.
PUBLISHED = {
    "unet": {
        "_class_name": "UNetSpatioTemporalConditionModel",
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * 3 + ["DownBlockSpatioTemporal"],
        "layers_per_block": 2,
        "in_channels": 8,
        "out_channels": 4,
        "num_frames": 14,
        "cross_attention_dim": 1024,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 768,
    },
    "vae": {
        "_class_name": "AutoencoderKLTemporalDecoder",
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
    },
    "image_encoder": {"projection_dim": 1024, "image_size": 224},
}
PARAMETERS = {"unet": 1_525_000_000, "vae": 98_000_000, "image_encoder": 632_000_000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_svd(tmp_path_factory.mktemp("tiny") / "svd")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_image(tmp_path_factory.mktemp("images") / "start.png").path


@pytest.fixture(scope="module")
def published(folder: Path) -> ModelInfo:
    tiny = inspect_model(folder)
    return replace(
        tiny,
        configs=tiny.configs | PUBLISHED,
        geometry=tiny.family.geometry(PUBLISHED, tiny.defaults),
        parameters=PARAMETERS,
        parameters_bytes={name: 2 * count for name, count in PARAMETERS.items()},
    )


def fitted(model: ModelInfo, image: str, **slicing: float) -> ResolvedSpec:
    """A job of the published size with a budget or slices."""
    return fitted_svd(model, image, slicing=slicing)


def fitted_svd(
    model: ModelInfo,
    image: str,
    decoder_dtype: str = "float32",
    numerics: str = "any",
    **accelerations: object,
) -> ResolvedSpec:
    asked = {"image": image, "pixel_frames": 14, "accelerations": accelerations}
    spec = parse_spec({"version": 1, "decoder_dtype": decoder_dtype, "numerics": numerics, **asked})
    return with_fitted_accelerations(
        spec, resolve(spec, model.geometry, model.defaults), model, "euler"
    )


def test_decoding_counts_against_a_budget(published: ModelInfo, image: str) -> None:
    sliced = fitted(published, image, slices=2)
    decode, denoise = decode_bytes(sliced, published), denoise_bytes(sliced, published, "bfloat16")
    assert decode > 5 * denoise, "or this test shows nothing"
    budget_gb = 20.0
    job = fitted(published, image, budget_gb=budget_gb)
    slices = job.accelerations.slicing.slices
    weights = 2 * PARAMETERS["unet"] + 4 * PARAMETERS["vae"]
    assert slices > 2
    assert weights + tile_bytes(job, published, "bfloat16") <= budget_gb * 1e9
    fewer = fitted(published, image, slices=slices - 1)
    assert weights + tile_bytes(fewer, published, "bfloat16") > budget_gb * 1e9


def test_a_budget_that_decoding_breaks_in_any_slices_is_refused(
    published: ModelInfo, image: str
) -> None:
    said = r"slicing\.budget_gb: slicing cannot bring the model under 8 GB: .*decoding takes"
    with pytest.raises(BadJob, match=said) as refused:
        fitted(published, image, budget_gb=8)
    assert "or more, or a size smaller than 1024x576" in str(refused.value)
    (would_fit,) = re.findall(r"give budget_gb: ([\d.]+)", str(refused.value))
    assert fitted(published, image, budget_gb=float(would_fit)).accelerations.slicing.slices > 2
    with pytest.raises(BadJob):
        fitted(published, image, budget_gb=float(would_fit) - 0.1)


def test_a_decoder_in_half_precision_takes_half(published: ModelInfo, image: str) -> None:
    full = fitted(published, image, slices=8)
    half = fitted_svd(published, image, "bfloat16", slicing={"slices": 8})
    assert decode_bytes(half, published) == pytest.approx(decode_bytes(full, published) / 2)
    asked = {"slicing": {"budget_gb": 12}}
    with pytest.raises(
        BadJob, match="or more, decoder_dtype: float16 or bfloat16, or a size smaller"
    ):
        fitted_svd(published, image, **asked)
    assert fitted_svd(published, image, "float16", **asked)


def test_a_decoder_follows_the_denoisers_dtype_but_for_wan(
    published: ModelInfo, image: str
) -> None:
    job = fitted_svd(published, image, "auto", slicing={"slices": 8})
    assert decoder_dtype_of(job, published) == dtype_of(job, published) == "bfloat16"
    full, half = (
        fitted_svd(published, image, each, slicing={"slices": 8})
        for each in ("float32", "bfloat16")
    )
    assert decode_bytes(job, published) == decode_bytes(half, published)
    assert decode_bytes(job, published) < decode_bytes(full, published)
    assert decoder_dtype_of(replace(job, dtype="float32"), published) == "float32"
    assert decoder_dtype_of(job, replace(published, family=FAMILIES["wan"])) == "float32"


def test_encoders_alone_can_break_a_budget(published: ModelInfo, image: str) -> None:
    wide = replace(published, parameters=PARAMETERS | {"image_encoder": 10**10})
    with pytest.raises(
        BadJob, match=r"encoding takes 23\.\d+ GB.*; give budget_gb: 23\.\d or more$"
    ):
        fitted_svd(wide, image, numerics="pinned", slicing={"budget_gb": 18})
    assert fitted_svd(wide, image, numerics="pinned", slicing={"budget_gb": 24})


def test_encoders_that_may_go_to_the_processor_only_warn(published: ModelInfo, image: str) -> None:
    wide = replace(published, parameters=PARAMETERS | {"image_encoder": 10**10})
    for budget_gb, warnings in ((18, 1), (24, 0)):
        job = fitted(wide, image, budget_gb=budget_gb)
        said = list(budget_warnings(job, wide, "bfloat16"))
        assert len(said) == warnings
        assert all("encoding takes 23" in each for each in said)


def planned(folder: Path, **slicing: float) -> Plan:
    spec = {"version": 1, "model": str(folder), "prompt": "a", "pixel_frames": 9, "steps": 2}
    return prepare(
        parse_spec(spec | {"size": [64, 64], "accelerations": {"slicing": slicing}})
    ).plan


def test_what_slices_do_not_cut_is_said(tmp_path: Path) -> None:
    """AnimateDiff's decoder takes a frame at once, with slices or without."""
    folder = write_tiny_animatediff(tmp_path / "animatediff")
    sliced, thin = planned(folder, slices=99), planned(folder, slices=999)
    assert sliced.tile_bytes == thin.tile_bytes, "decoding needs the most, or this shows nothing"
    needed = sliced.model_bytes + sliced.tile_bytes
    found = planned(folder, budget_gb=needed / 1e9).accelerations.slicing.slices
    assert planned(folder, slices=found).tile_bytes == sliced.tile_bytes
    assert planned(folder, slices=found - 1).tile_bytes > sliced.tile_bytes, "the fewest that fit"
    with pytest.raises(BadJob, match=r"decoding takes .*, which slices make no smaller"):
        planned(folder, budget_gb=0.9 * needed / 1e9)


def test_too_little_for_rehash_is_told_before_anything_is_loaded(
    published: ModelInfo, image: str
) -> None:
    demo = inspect_model(resolve_model("demo"))
    said = "accelerations.rehash: this model's 2 blocks are too few .*needs 3 or more; leave it out"
    with pytest.raises(BadJob, match=said):
        fitted_wan(_with(demo, "transformer", num_layers=2), rehash={"every": 2})
    fitted_wan(_with(demo, "transformer", num_layers=3), rehash={"every": 2})
    plain = _with(published, "unet", up_block_types=["UpBlockSpatioTemporal"] * 4)
    both = {"slicing": {"slices": 2}, "rehash": {"every": 2}}
    said = "accelerations.rehash: .* UpBlockSpatioTemporal, has no attention.*leave one of the two"
    with pytest.raises(BadJob, match=said):
        fitted_svd(plain, image, **both)
    fitted_svd(plain, image, rehash={"every": 2})


def _with(model: ModelInfo, part: str, **changes: object) -> ModelInfo:
    return replace(model, configs=model.configs | {part: model.configs[part] | changes})


#: Wan-AI/Wan2.1-T2V-14B's transformer, as far as planning asks, with patches of the demo's.
WIDE = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824}
WIDE_PARAMETERS = 14_000_000_000
PLAN = AttentionPlan((("full",) * 4, ("window",) * 4, ("share_steps",) * 4), (3, 3, 3))


@pytest.fixture(scope="module")
def wide() -> ModelInfo:
    demo = inspect_model(resolve_model("demo"))
    transformer = demo.configs["transformer"] | WIDE
    return replace(
        demo,
        configs=demo.configs | {"transformer": transformer},
        parameters=demo.parameters | {"transformer": WIDE_PARAMETERS},
        parameters_bytes=demo.parameters_bytes | {"transformer": 2 * WIDE_PARAMETERS},
    )


def fitted_wan(model: ModelInfo, **accelerations: dict[str, object]) -> ResolvedSpec:
    asked = {"pixel_frames": 17, "steps": 3, "size": [480, 320], "accelerations": accelerations}
    spec = parse_spec({"version": 1, "prompt": "a"} | asked)
    job = resolve(spec, model.geometry, model.defaults)
    return with_fitted_accelerations(spec, job, model, "unipc")


@pytest.fixture
def plans(wide: ModelInfo, tmp_path: Path) -> dict[str, object]:
    """The settings with which a job finds its plan."""
    for key in job_keys(fitted_wan(wide), wide, "unipc"):
        save(tmp_path, key, PLAN, {})
    return {"plans": str(tmp_path)}


def test_what_plans_of_attention_keep_counts_against_a_budget(
    wide: ModelInfo, plans: dict[str, object]
) -> None:
    def needed(slices: int) -> int:
        job = fitted_wan(wide, slicing={"slices": slices}, fast_attention=plans)
        assert job.accelerations.fast_attention.stages == (PLAN,)
        assert denoise_bytes(job, wide, "bfloat16") > decode_bytes(job, wide), "or it shows nothing"
        return weights + tile_bytes(job, wide, "bfloat16")

    weights = rendering_bytes(wide.family, wide.parameters, "bfloat16", "float32")
    budget_gb = (needed(2) + needed(99)) / 2e9
    budget = {"budget_gb": budget_gb}
    job = fitted_wan(wide, slicing=budget, fast_attention=plans)
    slices = job.accelerations.slicing.slices
    assert slices > fitted_wan(wide, slicing=budget).accelerations.slicing.slices
    assert weights + tile_bytes(job, wide, "bfloat16") <= budget_gb * 1e9 < needed(slices - 1)


def test_a_search_for_slices_looks_at_each_step_of_a_plan_once(
    wide: ModelInfo, plans: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, plain = Counter[int](), AttentionPlan.held_in

    def counted(plan: AttentionPlan, step: int, *given: object) -> float:
        seen[step] += 1
        return plain(plan, step, *given)

    monkeypatch.setattr(AttentionPlan, "held_in", counted)
    _kinds_of_steps.cache_clear()
    with pytest.raises(BadJob, match="slicing cannot bring the model under 1 GB"):
        fitted_wan(wide, slicing={"budget_gb": 1}, fast_attention=plans)
    assert seen == dict.fromkeys(range(PLAN.steps), 1)


def test_a_preset_without_settings_for_noise_is_refused() -> None:
    """What is skipped then loses too much: measured on AnimateDiff."""

    def asked(**changes: object) -> Plan:
        spec = {"model": "demo-animatediff", "prompt": "a", "seconds": 1, "scheduler": "sde-dpm++"}
        return prepare(parse_spec(spec | changes)).plan

    said = (
        r"preset: balanced has no settings for animatediff with scheduler sde-dpm\+\+.*\(ddim, dpm"
    )
    with pytest.raises(BadJob, match=said):
        asked(preset="balanced")
    assert asked(preset="exact").accelerations.adaptive is None
    own = {"accelerations": {"adaptive": {"threshold": 0.1}}}
    assert asked(preset="balanced", **own).accelerations.adaptive.threshold == 0.1
    assert asked(preset="balanced", scheduler="ddim").accelerations.adaptive.form == "spectral"
