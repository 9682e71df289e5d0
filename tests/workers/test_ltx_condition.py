"""LTX-Video from 0.9.5 on, given text alone: with one window and nothing accelerated, our chain is
its pipeline, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LTXConditionPipeline

from jobs.errors import BadJob
from jobs.spec_file import parse_spec
from jobs.units import ShotRender, Window
from orchestrator.prepare import prepare
from tests.marks import few
from tests.workers.test_animatediff import spoiled
from tests.workers.test_conformance import WINDOWS, assert_overlaps_agree, assert_same_bits
from tests.workers.test_ltx import finished, job
from tests.workers.test_ltx import run_pipeline as run_ltx
from tests.workers.tiny import CHANNELS, encode, piece_task, render_windows, tiny_worker
from tests.workers.tiny_ltx import ltx_shot, write_tiny_ltx_condition
from workers.bundles import to_tensor
from workers.families.ltx import LTXConditionFamily
from workers.noise import initial_noise
from workers.worker import Worker

PIXELS = 4  # per latent place, in space and in time


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ltx_condition(tmp_path_factory.mktemp("tiny") / "ltx")


def worker_of(folder: Path, **changes: object) -> Worker:
    return tiny_worker(folder, family="ltx-condition", **changes)


def run_pipeline(folder: Path, shot: ShotRender, dtype=torch.float32, **options: object):
    noise = initial_noise(shot, range(shot.latent_frames), CHANNELS)

    class Handed(LTXConditionPipeline):
        """The pipeline overwrites latents that it is given."""

        def prepare_latents(self, *args, **kwargs):
            drawn, *others = super().prepare_latents(*args, **kwargs)
            handed = self._pack_latents(noise)
            assert (handed.shape, handed.dtype) == (drawn.shape, drawn.dtype)
            return handed, *others

    return run_ltx(folder, shot, dtype, Handed, **options)


def nine_frames(**changes: object) -> ShotRender:
    """Nine latent frames, as the pipeline counts them."""
    return ltx_shot(**{"pixel_frames": 1 + 8 * PIXELS, "stage_steps": (5,)} | changes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("guidance", few([3.0, 1.0], 3.0))
@pytest.mark.parametrize("fps", few([25, 8], 8))
def test_one_window_is_the_pipeline(folder: Path, guidance: float, dtype: str, fps: int) -> None:
    shot = nine_frames(guidance=(guidance,), fps=fps)
    ours = finished(render_windows(worker_of(folder, dtype=dtype), shot, [Window(0, 0, 9)]), shot)
    theirs = run_pipeline(folder, shot, getattr(torch, dtype))
    assert ours.dtype == theirs.dtype == torch.float32
    assert torch.equal(ours, theirs)
    assert theirs.std() > 0.1, "a comparison of nothing"


def test_decoded_frames_are_the_pipelines(folder: Path) -> None:
    shot = nine_frames(stage_steps=(2,))
    latents = finished(render_windows(worker_of(folder), shot, [Window(0, 0, 9)]), shot)
    ours = LTXConditionFamily(str(folder), "float32", "cpu").decode(piece_task(shot, 0, 9), latents)
    theirs = run_pipeline(folder, shot, output_type="pil")[0]
    assert np.array_equal(ours, np.stack([np.asarray(frame) for frame in theirs]))
    assert len(ours) == shot.pixel_frames


@torch.no_grad()
def test_embeddings_are_the_pipelines(folder: Path) -> None:
    shot = nine_frames(prompt="a ball", negative_prompt="grey", text_tokens=12)
    bundle = encode(worker_of(folder), shot)
    pipeline = LTXConditionPipeline.from_pretrained(folder)
    told = pipeline.encode_prompt(shot.prompt, shot.negative_prompt, max_sequence_length=12)
    for name, theirs in zip(("cond", "cond.mask", "uncond", "uncond.mask"), told, strict=True):
        assert torch.equal(to_tensor(bundle, name), theirs.float()), name


def test_windows_agree_and_order_changes_no_bit(folder: Path) -> None:
    shot, worker = nine_frames(), worker_of(folder)
    forwards = render_windows(worker, shot, WINDOWS)
    assert_same_bits(forwards, render_windows(worker, shot, WINDOWS, backwards=True))
    for step in range(shot.steps + 1):
        assert_overlaps_agree({w: to_tensor(forwards[w.index, step], "latents") for w in WINDOWS})


def test_a_job_is_planned_from_its_configs(folder: Path) -> None:
    plan = prepare(parse_spec(job(folder))).plan
    assert plan.geometry.family == "ltx-condition"
    shot = plan.shots[0].render
    assert (shot.latent_frames, shot.text_tokens, shot.guidance) == (15, 256, (3.0,))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"flow_shift": 3.0}, "flow_shift: ltx-condition models have no flow shift"),
        ({"scheduler": "unipc"}, "scheduler: .*valid: auto, euler"),
        ({"pyramid": 2}, "scheduler: .*has no pyramid.*use pyramid: off"),
    ],
)
def test_what_it_has_no_use_for_is_refused(folder: Path, changes: dict, says: str) -> None:
    with pytest.raises(BadJob, match=says):
        prepare(parse_spec(job(folder, **changes)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shift": 3.0}, "shift=3.0 is not supported .*valid: 1"),
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting=True"),
        ({"shift_terminal": 0.1}, "shift_terminal=0.1"),
        ({"invert_sigmas": True}, "invert_sigmas=True"),
    ],
)
def test_schedulers_that_are_not_built_are_refused(
    folder: Path, tmp_path: Path, changes: dict, says: str
) -> None:
    copy = spoiled(folder, tmp_path, "scheduler/scheduler_config.json", **changes)
    with pytest.raises(BadJob, match=says):
        prepare(parse_spec(job(copy)))
