"""The folders that ship: ordinary diffusers folders, small, and whole."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline, WanPipeline

from jobs.model_folder import DEMOS, resolve_model
from training.demo_model import (
    LARGEST_FOLDER_BYTES,
    animatediff_defaults,
    assemble,
    render_defaults,
)
from training.draws import NoiseRecipe
from training.trainer import Recipe

WAN = ("demo", "demo-pyramid")
ANIMATEDIFF = ("demo-animatediff", "demo-animatediff-pyramid")


def stages_of(name: str) -> int:
    """Of the pyramid that a demo model was trained for."""
    return 3 if name.endswith("pyramid") else 1


def loaded(name: str) -> Any:
    kind = WanPipeline if name in WAN else AnimateDiffPipeline
    pipeline = kind.from_pretrained(resolve_model(name))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=WAN)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipeline(name: str) -> WanPipeline:
    return loaded(name)


@pytest.mark.parametrize("name", DEMOS)
def test_it_is_small_and_holds_safetensors_only(name: str) -> None:
    files = [path for path in resolve_model(name).rglob("*") if path.is_file()]
    sizes_bytes = [path.stat().st_size for path in files]
    assert sum(sizes_bytes) <= LARGEST_FOLDER_BYTES
    suffixes = {path.suffix for path in files}
    assert suffixes <= {".json", ".safetensors", ".md", ".png"}


def test_all_that_ship_are_tested() -> None:
    assert {*DEMOS} == {*WAN, *ANIMATEDIFF}


@pytest.mark.parametrize("name", DEMOS)
def test_an_ordinary_pipeline_runs_it(name: str) -> None:
    own = {"max_sequence_length": 64, "num_frames": 17} if name in WAN else {"num_frames": 16}
    frames = np.asarray(
        loaded(name)(
            prompt="a red circle bounces on a blue striped background",
            height=96,
            width=96,
            num_inference_steps=2,
            guidance_scale=5.0,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
            **own,
        ).frames
    )
    assert frames.shape == (1, own["num_frames"], 96, 96, 3)
    assert np.isfinite(frames).all()


@pytest.mark.parametrize("name", ANIMATEDIFF)
def test_an_animatediff_sidecar_agrees_with_its_training(name: str) -> None:
    sidecar = json.loads((resolve_model(name) / "longtake.json").read_text())
    assert sidecar == animatediff_defaults(NoiseRecipe(stages=stages_of(name)))


def test_its_latents_are_normalised(pipeline: WanPipeline) -> None:
    config = pipeline.vae.config
    assert len(config.latents_mean) == len(config.latents_std) == config.z_dim == 8
    assert all(std > 0 for std in config.latents_std)
    assert any(mean != 0 for mean in config.latents_mean)


def test_its_sidecar_agrees_with_its_parts(pipeline: WanPipeline, name: str) -> None:
    sidecar = json.loads((resolve_model(name) / "longtake.json").read_text())
    assert sidecar == render_defaults(Recipe(), NoiseRecipe(stages=stages_of(name)))
    assert pipeline.scheduler.config.flow_shift == sidecar["flow_shift"]
    assert pipeline.scheduler.config.prediction_type == "flow_prediction"


def test_assembling_fresh_parts_makes_a_folder_that_loads(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    (out / "README.md").write_text("kept")
    assemble(tmp_path / "runs", out, Recipe())
    loaded = WanPipeline.from_pretrained(out)
    assert loaded.transformer.config.patch_size in ([1, 4, 4], (1, 4, 4))
    assert (out / "README.md").read_text() == "kept"
    assert {p.name for p in out.iterdir()} >= {"model_index.json", "longtake.json", "vae"}
