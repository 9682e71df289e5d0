"""What planning says a tile holds, against what the accelerations themselves say they keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.accelerations import Accelerations, Adaptive, FastAttention, Rehash, Slicing
from jobs.attention_plan import AttentionPlan
from jobs.families.decoding_memory import Piece, decoding_bytes
from jobs.families.features import feature_bytes
from jobs.families.slicing_groups import NOTHING_WHOLE, Whole
from jobs.model_folder import ModelInfo, inspect_model, resolve_model
from jobs.spec import ResolvedSpec, resolve
from jobs.spec_file import parse_spec
from orchestrator.tile_memory import (
    decode_bytes,
    denoise_bytes,
    denoised_frames,
    kept_bytes,
    largest_tile,
    searched_bytes,
    step_bytes,
    tile_bytes,
)
from tests.workers.tiny_cogvideox import write_tiny_cogvideox
from tests.workers.tiny_ltx import write_tiny_ltx

F, W, S = "full", "window", "share_steps"
PLAN = AttentionPlan(((F,) * 4, (S,) * 4), (1, 1, 1))
FAST = Accelerations(fast_attention=FastAttention(stages=(PLAN,)))


@pytest.fixture(scope="module")
def demo() -> ModelInfo:
    return inspect_model(resolve_model("demo"))


def job_of(
    model: ModelInfo, asked: Accelerations, *guidance: float, steps: int = 2
) -> ResolvedSpec:
    """With a shot for each guidance."""
    shots = [{"prompt": "a kite", "seconds": 1, "guidance": each} for each in guidance]
    spec = parse_spec({"version": 1, "steps": steps, "shots": shots})
    return replace(resolve(spec, model.geometry, model.defaults), accelerations=asked)


def kept(job: ResolvedSpec, model: ModelInfo, text_tokens: int = 0) -> float:
    """In features of one layer and branch, of the video and so many tokens of text."""
    config, tile = model.configs[model.family.denoiser], largest_tile(job, model.geometry)
    return kept_bytes(job, model, "float32") / feature_bytes(config, tile, "float32", text_tokens)


@pytest.mark.parametrize(("guidance", "layers"), [((5.0,), 8), ((1.0,), 4), ((1.0, 5.0), 8)])
def test_a_plan_keeps_outputs_of_the_branches_that_run(
    demo: ModelInfo, guidance: tuple[float, ...], layers: int
) -> None:
    assert kept(job_of(demo, FAST, *guidance), demo) == layers


@pytest.mark.parametrize(("guidance", "layers"), [((5.0,), 8), ((1.0,), 4)])
def test_a_plan_keeps_outputs_of_text_that_attends_with_the_video(
    tmp_path: Path, guidance: tuple[float, ...], layers: int
) -> None:
    model = inspect_model(write_tiny_cogvideox(tmp_path / "model"))
    job = job_of(model, FAST, *guidance)
    assert job.text_tokens and kept(job, model, job.text_tokens) == layers


@pytest.mark.parametrize(("guidance", "branches"), [(5.0, 2), (1.0, 1)])
def test_a_search_holds_outputs_and_residuals(
    demo: ModelInfo, guidance: float, branches: int
) -> None:
    job = job_of(demo, Accelerations(), guidance)
    config, tile = demo.configs["transformer"], largest_tile(job, demo.geometry)
    feature, layers = feature_bytes(config, tile, "float32"), config["num_layers"]
    assert searched_bytes(job, demo, "float32") == 2 * layers * branches * feature


#: A plan's steps, the steps that adaptive may leave out, what lies with a tile at most, in features
#: of a layer and branch, and what attention takes of the whole. Of two branches and four layers.
HELD = {
    "full": ((F, F, F), set(), 0, NOTHING_WHOLE),
    "shared": ((F, S, S), set(), 8, Whole(5)),
    "windows": ((F, F, W), set(), 8, Whole(7.6, windowed=True)),
    "windows, a full step may be skipped": ((F, F, W), {1}, 16, Whole(7.6, windowed=True)),
}


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("slices", [None, 2, 99])
def test_a_step_holds_what_its_plan_says(demo: ModelInfo, name: str, slices: int | None) -> None:
    rows, skipped, features, whole = HELD[name]
    plan = AttentionPlan(tuple((each,) * 4 for each in rows), (3, 3, 3))
    asked = Accelerations(
        fast_attention=FastAttention(stages=(plan,)),
        adaptive=Adaptive(form="spectral", first=1, last=1) if skipped else None,
        slicing=Slicing(slices=slices) if slices else None,
    )
    job = job_of(demo, asked, 5.0, steps=3)
    assert asked.may_skip(job.stage_steps) == (skipped,)
    tile = largest_tile(job, demo.geometry)
    alone = replace(job, accelerations=asked.model_copy(update={"fast_attention": None}))
    step = denoise_bytes(alone, demo, "float32")
    if slices:
        step = step_bytes(job, demo, "float32", slices, whole)
    feature = feature_bytes(demo.configs["transformer"], tile, "float32")
    assert denoise_bytes(job, demo, "float32") == step + features * feature


@pytest.mark.parametrize(("guidance", "features"), [((5.0,), 2), ((1.0,), 1)])
def test_rehash_keeps_a_feature_of_each_branch_that_runs(
    demo: ModelInfo, guidance: tuple[float, ...], features: int
) -> None:
    asked = Accelerations(rehash=Rehash(every=2))
    assert kept(job_of(demo, asked, *guidance), demo) == features


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_rehash_keeps_nothing_of_text_that_attends_with_the_video(
    tmp_path: Path, guidance: float
) -> None:
    model = inspect_model(write_tiny_cogvideox(tmp_path / "model"))
    job = job_of(model, Accelerations(rehash=Rehash(every=2)), guidance)
    assert job.text_tokens and kept(job, model) == (2 if guidance > 1 else 1)


@pytest.mark.parametrize("slices", [None, 4])
def test_a_step_is_of_the_branches_that_run_at_once(tmp_path: Path, slices: int | None) -> None:
    """Without guidance there is one, of a family too that runs both together."""
    model = inspect_model(write_tiny_cogvideox(tmp_path / "model"))
    alone, both, any_of_them = (
        step_bytes(job_of(model, Accelerations(), *guidance), model, "float32", slices)
        for guidance in ((1.0,), (5.0,), (1.0, 5.0))
    )
    assert 1.8 * alone < both == any_of_them <= 2 * alone + 8


def test_a_whole_first_stage_is_the_longest_tile(demo: ModelInfo) -> None:
    told = {"version": 1, "model": "demo", "prompt": "a kite", "seconds": 20, "pyramid": 3}

    def planned(first_stage: str) -> tuple[int, int]:
        spec = parse_spec(told | {"pyramid_first_stage": first_stage})
        job = resolve(spec, demo.geometry, demo.defaults)
        return denoised_frames(job, demo.geometry), tile_bytes(job, demo, "float32")

    (windows, less), (whole, more) = planned("windows"), planned("whole")
    assert (windows, whole) == (9, 31), "of 121 latent frames the first and every fourth"
    assert more > less


def test_nothing_asked_keeps_nothing(demo: ModelInfo) -> None:
    assert kept(job_of(demo, Accelerations(), 5.0), demo) == 0


def test_a_sliced_tile_holds_the_text_tokens_that_its_job_asks_for(demo: ModelInfo) -> None:
    job, config = job_of(demo, Accelerations(), 5.0), demo.configs["transformer"]
    few, many = (
        step_bytes(replace(job, text_tokens=tokens), demo, "float32", 4) for tokens in (100, 300)
    )
    features = config["num_attention_heads"] * config["attention_head_dim"]
    assert many - few == 200 * 3 * features * 4, "the text, its keys and its values"


def test_the_piece_counts_that_is_decoded_with_most_around_it(tmp_path: Path) -> None:
    """In mid-shot LTX-Video looks at frames to both sides; a shot's last piece is longer."""
    model = inspect_model(write_tiny_ltx(tmp_path / "model"))

    def decoding(pixel_frames: int, window: int, overlap: int) -> int:
        given = {"window_latent_frames": window, "overlap_latent_frames": overlap}
        spec = parse_spec({"version": 1, "prompt": "x", "pixel_frames": pixel_frames} | given)
        return decode_bytes(resolve(spec, model.geometry, model.defaults), model)

    def of(frames: int, before: int, after: int) -> int:
        scale = model.geometry.spatial_scale
        height, width = model.defaults.size[1] // scale, model.defaults.size[0] // scale
        piece = Piece(frames, height, width, before=before, after=after)
        return decoding_bytes(model.configs["vae"], piece, "float32")

    r = model.geometry.temporal_scale
    assert decoding(1 + 99 * r, 5, 1) == of(4, 48, 48) > of(5, 95, 0)
    assert decoding(1 + 63 * r, 64, 1) == max(of(32, 0, 32), of(32, 32, 0)) < of(64, 0, 0)
