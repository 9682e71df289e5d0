"""The folders that ship: ordinary diffusers folders, small, and whole."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from jobs.model_folder import DEMOS, resolve_model
from training.demo_model import LARGEST_FOLDER_BYTES, assemble, render_defaults
from training.draws import NoiseRecipe
from training.trainer import Recipe

#: Of each demo model, the stages of the pyramid that it was trained for.
STAGES = {"demo": 1, "demo-pyramid": 3}


@pytest.fixture(scope="module", params=DEMOS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name: str) -> Path:
    return resolve_model(name)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> WanPipeline:
    loaded = WanPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_it_is_small_and_holds_safetensors_only(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes_bytes = [path.stat().st_size for path in files]
    assert sum(sizes_bytes) <= LARGEST_FOLDER_BYTES
    assert max(sizes_bytes) < 25_000_000
    suffixes = {path.suffix for path in files}
    assert suffixes <= {".json", ".safetensors", ".md", ".png"}


def test_an_ordinary_pipeline_runs_it(pipeline: WanPipeline) -> None:
    frames = pipeline(
        prompt="a red circle bounces on a blue striped background",
        height=96,
        width=96,
        num_frames=17,
        num_inference_steps=2,
        guidance_scale=5.0,
        max_sequence_length=64,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames
    assert frames.shape == (1, 17, 96, 96, 3)
    assert np.isfinite(frames).all()


def test_its_latents_are_normalised(pipeline: WanPipeline) -> None:
    config = pipeline.vae.config
    assert len(config.latents_mean) == len(config.latents_std) == config.z_dim == 8
    assert all(std > 0 for std in config.latents_std)
    assert any(mean != 0 for mean in config.latents_mean)


def test_its_sidecar_agrees_with_its_parts(pipeline: WanPipeline, folder: Path, name: str) -> None:
    sidecar = json.loads((folder / "longtake.json").read_text())
    assert sidecar == render_defaults(Recipe(), NoiseRecipe(stages=STAGES[name]))
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
