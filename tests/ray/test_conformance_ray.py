"""With one window and nothing accelerated, ``longtake render`` on Ray is WanPipeline, bit for bit.

Through everything that a person's render passes: the job file, the plan, Ray, the store, and the
files that it leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.ray.clusters import cluster_of_nodes
from tests.ray.harness import job_ids, load_plan, longtake
from tests.workers.test_animatediff import run_pipeline as run_animatediff
from tests.workers.test_conformance import (
    load_pipeline,
    run_pipeline,
    scheduler_as_a_user_would,
)
from tests.workers.test_loras import write_lora
from tests.workers.tiny import FLOW_SHIFT
from tests.workers.tiny_animatediff import write_tiny_animatediff
from workers.films import iter_frames

JOB = """\
model: {model}
size: [32, 32]
fps: 8
steps: 6
scheduler: {scheduler}
dtype: {dtype}
decoder_dtype: {decoder_dtype}
window_latent_frames: 9
text_tokens: 24
guidance: 5.0
seed: 7
prompt: a red ball rolls
negative: blurred
pixel_frames: 9
output: {{codec: ffv1}}
"""


@pytest.fixture(scope="module")
def ray() -> Iterator[dict[str, Any]]:
    with cluster_of_nodes(2) as (cluster, token):
        yield {"address": cluster.address, "env": token}


def render(
    model: Path,
    scheduler: str,
    dtypes: tuple[str, str],
    folder: Path,
    ray: dict[str, Any],
    *flags: object,
) -> tuple[torch.Tensor, np.ndarray, Any]:
    """The latents and frames of a render, and the plan that it followed. ``dtypes``: of the
    denoiser and of the decoder."""
    job = folder / "film.yaml"
    dtype, decoder_dtype = dtypes
    told = JOB.format(model=model, scheduler=scheduler, dtype=dtype, decoder_dtype=decoder_dtype)
    job.write_text(told if scheduler != "ddim" else told.replace("text_tokens: 24\n", ""))
    store, latents = folder / "store", folder / "latents.safetensors"
    latents.write_bytes(b"an adapter")
    ran = longtake(
        "render", job, "--store", store, "--out", folder / "film.mkv", "--workers", 1,
        "--save-latents", latents, "--address", ray["address"], *flags, **ray["env"],
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert len(job_ids(store)) == 1
    assert (folder / "latents.1.safetensors").read_bytes() == b"an adapter"
    saved = load_file(latents)
    assert list(saved) == ["shot_000"]
    return saved["shot_000"], np.stack(list(iter_frames(folder / "film.mkv"))), load_plan(store)


QUICK = [("unipc", "float32", "bfloat16")]
LONG = [
    ("euler", "bfloat16", "float32"), ("dpm++", "float32", "float32"),
    ("unipc", "bfloat16", "bfloat16"), ("euler", "float32", "float16"),
    ("dpm++", "bfloat16", "float32"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("scheduler", "dtype", "decoder_dtype"),
    [*QUICK, *(pytest.param(*each, marks=pytest.mark.long) for each in LONG)],
)
def test_a_render_on_ray_is_the_pipeline(
    model: Path,
    scheduler: str,
    dtype: str,
    decoder_dtype: str,
    ray: dict[str, Any],
    tmp_path: Path,
) -> None:
    ours, frames, plan = render(model, scheduler, (dtype, decoder_dtype), tmp_path, ray)
    shot = plan.shots[0].render
    assert (len(plan.shots[0].stages), len(plan.shots[0].stages[0].windows)) == (1, 1)
    assert (shot.guidance, shot.steps, plan.preset) == ((5.0,), 6, "exact")

    torch.set_num_threads(plan.threads)
    pipeline = load_pipeline(model, getattr(torch, dtype))
    pipeline.vae.to(getattr(torch, decoder_dtype))
    pipeline.scheduler = scheduler_as_a_user_would(scheduler, pipeline.scheduler.config, FLOW_SHIFT)
    theirs = run_pipeline(pipeline, shot)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)
    assert theirs.float().std() > 0.1, "a comparison of nothing"
    check_frames(frames, pipeline, shot)


@pytest.mark.long
def test_a_render_of_animatediff_with_an_adapter_is_the_pipeline(
    ray: dict[str, Any], tmp_path: Path
) -> None:
    model = write_tiny_animatediff(tmp_path / "model")
    lora = write_lora("animatediff", model, tmp_path / "lora")
    ours, frames, plan = render(
        model, "ddim", ("float32", "float32"), tmp_path, ray, "--lora", f"{lora.parent}=0.7"
    )
    assert (plan.loras[0].path, plan.loras[0].scale) == (str(lora), 0.7)
    torch.set_num_threads(plan.threads)

    def run(**options: Any) -> Any:
        return run_animatediff(
            model, plan.shots[0].render, adapters=[(lora.parent, 0.7)], **options
        )

    assert torch.equal(ours, run())
    images = run(output_type="pil", decode_chunk_size=1)[0]
    assert np.array_equal(frames, np.stack([np.asarray(image) for image in images]))
    assert frames.std() > 5, "a comparison of nothing"


def check_frames(frames: np.ndarray, pipeline: Any, shot: Any) -> None:
    """A lossless film holds the very frames that the pipeline decodes, as 8 bits."""
    pipeline.scheduler = pipeline.scheduler.from_config(pipeline.scheduler.config)
    images = run_pipeline(pipeline, shot, output_type="pil")[0]
    expected = np.stack([np.asarray(image) for image in images])
    assert expected.dtype == frames.dtype == np.uint8
    assert frames.shape == expected.shape == (9, 32, 32, 3)
    assert np.array_equal(frames, expected)
    assert expected.std() > 5, "a comparison of nothing"
