"""Fast attention in renders, for every family that takes it: on tiny folders, through workers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from accel.video_transformers import VIDEO_TRANSFORMERS
from jobs.accelerations import Accelerations, Adaptive, FastAttention
from jobs.arrays import Bundle, decode_bundle, encode_bundle
from jobs.attention_plan import AttentionPlan, Strategy
from jobs.families import FAMILIES
from jobs.model_folder import inspect_model
from jobs.spec import resolve
from jobs.spec_file import parse_spec
from jobs.units import ShotRender, Window
from orchestrator.tile_memory import kept_bytes
from tests.marks import few
from tests.workers.test_conformance import assert_same_bits, finished
from tests.workers.test_pyramid import ended, run_all, shot_of
from tests.workers.tiny import encode, render_windows, run_step, step_task, tiny_worker
from tests.workers.tiny_families import KINDS, tiny_family
from workers.calibration import CalibrationSample, find_plans, token_grid
from workers.families import FAMILIES as WORKERS_FAMILIES
from workers.families import open_family
from workers.worker import Worker

F, FB, W, WB, S = (
    "full", "full+share_branches", "window", "window+share_branches", "share_steps",
)  # fmt: skip
WINDOW = (3, 3, 3)
DELTA = 1.0  # random weights make much of little
WINDOWS = [Window(0, 0, 5), Window(1, 3, 8)]

TAKES_IT = [kind for kind, (name, *_) in KINDS.items() if "fast_attention" in
            FAMILIES[name].accelerations]  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    name: str
    folder: Path
    shot: ShotRender  # of two windows

    def worker(self, *rows: tuple[Strategy, ...], window=WINDOW, dtype="float32") -> Worker:
        """With a plan of these rows; without any, plain."""
        plans = FastAttention(stages=(AttentionPlan(rows, window),)) if rows else None
        asked = Accelerations(fast_attention=plans)
        return tiny_worker(self.folder, family=self.name, accelerations=asked, dtype=dtype)


@pytest.fixture(scope="module", params=few(TAKES_IT, "wan", "cogvideox-5b", "hunyuan-video"))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    found = tiny_family(request.param, tmp_path_factory.mktemp("tiny"))
    shot = dataclasses.replace(found.shot, latent_frames=8, stage_steps=(4,))
    return Tiny(found.name, found.folder, shot)


def test_these_families_take_it() -> None:
    names = {KINDS[kind][0] for kind in TAKES_IT}
    assert names == {"wan", "wan-ti2v", "ltx", "ltx-condition", "cogvideox", "hunyuan-video"}


@pytest.mark.parametrize("name", sorted({KINDS[kind][0] for kind in TAKES_IT}))
def test_planning_knows_whose_text_attends_with_the_video(name: str) -> None:
    denoiser = WORKERS_FAMILIES[name].denoiser_kind.__name__
    assert FAMILIES[name].joint_text == (VIDEO_TRANSFORMERS[denoiser].text != "none")


@pytest.mark.parametrize("dtype", few(["float32", "bfloat16"], "float32"))
def test_full_everywhere_is_the_render_without_it(tiny: Tiny, dtype: str) -> None:
    full = tiny.worker(*[(F, F)] * 4, dtype=dtype)
    plain = render_windows(tiny.worker(dtype=dtype), tiny.shot, WINDOWS)
    assert_same_bits(render_windows(full, tiny.shot, WINDOWS), plain)


def test_windows_over_everything_are_dense_but_for_rounding(tiny: Tiny) -> None:
    family = open_family(tiny.name, str(tiny.folder), "float32", "cpu")
    frames, rows, columns = token_grid(family, CalibrationSample(family, tiny.shot, 5))
    plain = finished(render_windows(tiny.worker(), tiny.shot, WINDOWS), tiny.shot)
    for window, close in (((9, 2 * rows - 1, 2 * columns - 1), True), ((1, 1, 1), False)):
        worker = tiny.worker((F, F), (W, W), (W, W), (W, W), window=window)
        ours = finished(render_windows(worker, tiny.shot, WINDOWS), tiny.shot)
        assert frames == 5
        assert torch.allclose(ours, plain, rtol=1e-4, atol=1e-5) is close, (ours - plain).abs()


def render_apart(workers: list[Worker], shot: ShotRender) -> dict[tuple[int, int], Bundle]:
    """Every step of a tile by another worker than the one before it, from stored bytes."""
    embeddings = encode(workers[0], shot)
    done: dict[tuple[int, int], Bundle] = {}
    for step in range(shot.steps + 1):
        for window in reversed(WINDOWS):
            task = step_task(shot, WINDOWS, window.index, step)
            worker = workers[(step + window.index) % len(workers)]
            output = run_step(worker, task, embeddings, done)
            done[window.index, step] = decode_bundle(encode_bundle(output))
    return done


def test_a_plan_that_was_found_renders_and_survives_a_checkpoint(
    tiny: Tiny, tmp_path: Path
) -> None:
    family = open_family(tiny.name, str(tiny.folder), "bfloat16", "cpu")
    (found,) = find_plans(
        family, "m", [tiny.shot], delta=DELTA, folder=tmp_path, window_latent_frames=5
    )
    plan = found.plan
    assert {strategy for row in plan.rows[1:] for strategy in row} != {F}
    assert max(found.losses) < DELTA
    make = [tiny.worker(*plan.rows, window=plan.window, dtype="bfloat16") for _ in range(3)]
    alone = render_windows(make[0], tiny.shot, WINDOWS)
    assert_same_bits(alone, render_apart(make[1:], tiny.shot))
    plain = render_windows(tiny.worker(dtype="bfloat16"), tiny.shot, WINDOWS)
    assert not torch.equal(finished(alone, tiny.shot), finished(plain, tiny.shot))


MIXED = ((F, FB), (W, S), (WB, W), (S, W))


def test_every_strategy_survives_a_checkpoint(tiny: Tiny) -> None:
    workers = [tiny.worker(*MIXED) for _ in range(3)]
    alone = render_windows(workers[0], tiny.shot, WINDOWS)
    assert_same_bits(alone, render_apart(workers[1:], tiny.shot))
    assert any(name.startswith("accel.fast_attention.") for name in alone[0, 0].arrays)
    assert not any(name.startswith("accel.") for name in alone[0, 3].arrays)


def test_skipped_steps_survive_a_checkpoint_too(tiny: Tiny) -> None:
    """Steps 3 and 5 are skipped, in front of steps that read what they would have made."""
    rows = ((F, F), (W, S), (WB, F), (F, FB), (W, S), (FB, W), (S, W), (F, F))
    plans = FastAttention(stages=(AttentionPlan(rows, WINDOW),))
    adaptive = Adaptive(threshold=50.0, most_skips=1)
    asked = Accelerations(fast_attention=plans, adaptive=adaptive)
    workers = [tiny_worker(tiny.folder, family=tiny.name, accelerations=asked) for _ in range(3)]
    shot = dataclasses.replace(tiny.shot, stage_steps=(8,))
    alone = render_windows(workers[0], shot, WINDOWS)
    assert_same_bits(alone, render_apart(workers[1:], shot))
    rows_of_skips = [int(alone[0, step].arrays["accel.adaptive.skips"][0]) for step in range(8)]
    assert [step for step, row in enumerate(rows_of_skips) if row] == [3, 5]


@pytest.mark.parametrize("guided", [True, False])
def test_the_planned_memory_of_what_is_kept_is_what_is_kept(tiny: Tiny, guided: bool) -> None:
    """Estimated from above: text is not among residuals, nor, in some models, among outputs."""
    guidance = tiny.shot.guidance if guided else (1.0,)
    shot = dataclasses.replace(tiny.shot, guidance=guidance)
    worker = tiny.worker(*MIXED)
    done = render_windows(worker, shot, WINDOWS[:1])
    most = max(
        sum(array.nbytes for name, array in done[0, step].arrays.items() if "accel." in name)
        for step in range(4)
    )
    model = inspect_model(tiny.folder)
    space = model.geometry.spatial_scale
    asked = {
        "version": 1, "prompt": "a", "pixel_frames": shot.pixel_frames, "steps": 4,
        "size": [shot.latent_width * space, shot.latent_height * space],
        "guidance": guidance[0], "window_latent_frames": 5, "overlap_latent_frames": 1,
    }  # fmt: skip
    job = dataclasses.replace(
        resolve(parse_spec(asked), model.geometry, model.defaults),
        accelerations=Accelerations(
            fast_attention=FastAttention(stages=(AttentionPlan(MIXED, WINDOW),))
        ),
        text_tokens=shot.text_tokens,
    )
    planned = kept_bytes(job, model, "float32")
    assert 0.5 * planned <= most <= planned


def test_every_stage_of_a_pyramid_goes_by_its_own_plan(tmp_path: Path) -> None:
    tiny = tiny_family("wan", tmp_path)
    shot = shot_of("unipc")  # 3 and 2 steps
    stages = [
        [Window(0, 0, 3), Window(1, 1, 4)],
        [Window(0, 0, 4), Window(1, 2, 6), Window(2, 5, 7)],
    ]
    full = AttentionPlan(((F, F),) * 3, WINDOW), AttentionPlan(((F, F),) * 2, WINDOW)
    fast = AttentionPlan(((F, F), (W, S), (S, WB)), WINDOW), AttentionPlan(((F, F), (S, W)), WINDOW)
    done = {}
    for name, plans in {
        "plain": None, "full": full, "first": (fast[0], full[1]), "last": (full[0], fast[1]),
    }.items():  # fmt: skip
        asked = Accelerations(fast_attention=FastAttention(stages=plans) if plans else None)
        worker = tiny_worker(tiny.folder, accelerations=asked)
        done[name] = run_all(worker, shot, stages)
        again = run_all(tiny_worker(tiny.folder, accelerations=asked), shot, stages, backwards=True)
        for unit, bundle in done[name].items():
            for array in bundle.arrays:
                assert bundle.arrays[array].tobytes() == again[unit].arrays[array].tobytes(), unit
    ends = {name: [ended(each, stage) for stage in (0, 1)] for name, each in done.items()}
    assert all(map(torch.equal, ends["full"], ends["plain"]))
    assert list(map(torch.equal, ends["first"], ends["plain"])) == [False, False]
    assert list(map(torch.equal, ends["last"], ends["plain"])) == [True, False]
