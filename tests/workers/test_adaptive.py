"""Skipped model calls in a worker: the tile's own decision, whoever computes its steps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from jobs.accelerations import Accelerations, Adaptive
from jobs.arrays import Bundle, decode_bundle, encode_bundle
from jobs.families import FAMILIES
from jobs.units import Window
from tests.marks import few
from tests.workers.tiny import encode, render_windows, run_step, step_task, tiny_shot, tiny_worker
from tests.workers.tiny_families import tiny_family
from workers.bundles import to_tensor
from workers.schedulers import build
from workers.worker import Worker

WINDOWS = [Window(0, 0, 5), Window(1, 3, 8)]
SHOT = tiny_shot(latent_frames=8, pixel_frames=15, stage_steps=(10,), scheduler="unipc")
#: Between what the two windows of SHOT ask for, so that one of them skips at times.
BETWEEN = 0.705


def worker(folder: Path, family: str = "wan", **settings: object) -> Worker:
    adaptive = Accelerations(adaptive=Adaptive(**settings)) if settings else Accelerations()
    return tiny_worker(folder, family=family, accelerations=adaptive)


def calls(some: Worker) -> list[int]:
    """Counts the model's passes from now on."""
    count = [0]

    def add(*_: object) -> None:
        count[0] += 1

    some._family.denoiser.register_forward_hook(add)
    return count


def latents(done: dict[tuple[int, int], Bundle], window: int = 0) -> torch.Tensor:
    return to_tensor(done[window, SHOT.steps], "latents")


def test_a_skipped_step_calls_no_model_and_takes_the_last_prediction(tiny_wan: Path) -> None:
    some = worker(tiny_wan, threshold=50.0, most_skips=2)
    count = calls(some)
    done = render_windows(some, SHOT, WINDOWS[:1])
    assert count[0] == 2 * 6, "guided: two passes for each of steps 0 1 2, 5, 8, 9"
    predictions = [to_tensor(done[0, step], "prediction") for step in range(SHOT.steps)]
    same = [torch.equal(a, b) for a, b in pairwise(predictions)]
    assert same == [False, False, True, True, False, True, True, False, False]
    steps = [to_tensor(done[0, step], "latents") for step in range(SHOT.steps + 1)]
    assert not any(torch.equal(a, b) for a, b in pairwise(steps))


@pytest.mark.parametrize(
    ("kind", "scheduler"),
    few([("wan", "unipc"), ("wan", "euler"), ("wan", "dpm++"), ("animatediff", "ddim"),
         ("animatediff", "dpm++"), ("animatediff", "unipc"), ("animatediff", "euler"),
         ("svd", "euler")], ("wan", "unipc"), ("animatediff", "ddim"), ("svd", "euler")),
)  # fmt: skip
def test_any_scheduler_steps_on_with_what_stands_in(
    kind: str, scheduler: str, tmp_path: Path
) -> None:
    """Its own history counts the prediction that stood in as any other."""
    tiny = tiny_family(kind, tmp_path)
    some = worker(tiny.folder, family=tiny.name, threshold=50.0, most_skips=2)
    shot = replace(tiny.shot, scheduler=scheduler, stage_steps=(10,))
    done = render_windows(some, shot, [Window(0, 0, shot.latent_frames)])
    diffusion = FAMILIES[tiny.name].diffusion
    _, schedule = build(scheduler, some._family.scheduler_config, shot.flow_shift, diffusion)
    schedule.set_timesteps(shot.steps)
    x = to_tensor(done[0, 0], "latents")
    for step, t in enumerate(schedule.timesteps):
        if hasattr(schedule, "is_scale_input_called"):
            schedule.scale_model_input(x, t)  # it wants to be asked
        x = schedule.step(to_tensor(done[0, step], "prediction"), t, x).prev_sample
        assert torch.equal(x, to_tensor(done[0, step + 1], "latents")), step
    assert [step for step in range(shot.steps) if is_same(done, step)] == [3, 4, 6, 7]


def is_same(done: dict[tuple[int, int], Bundle], step: int) -> bool:
    """Whether a step's prediction is that of the step before."""
    both = [to_tensor(done[0, each], "prediction") for each in (max(step - 1, 0), step)]
    return step > 0 and torch.equal(*both)


def test_a_threshold_that_nothing_passes_changes_no_bit(tiny_wan: Path) -> None:
    off, on = worker(tiny_wan), worker(tiny_wan, threshold=1e-12)
    plain, careful = (render_windows(some, SHOT, WINDOWS) for some in (off, on))
    for window in (0, 1):
        assert torch.equal(latents(plain, window), latents(careful, window))
    assert not any(name.startswith("accel.") for name in plain[0, 5].arrays)


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        (SHOT.scheduler, {"threshold": BETWEEN, "most_skips": 3}),
        (SHOT.scheduler, {"form": "spectral", "threshold": 0.6, "first": 1, "forecast": True}),
        ("sde-dpm++", {"threshold": BETWEEN, "most_skips": 3}),
    ],
)
def test_a_tile_goes_on_at_any_worker_with_the_same_bits(
    scheduler: str, settings: dict[str, object], tiny_wan: Path
) -> None:
    """Every unit computed by another worker than the one before it, from stored bytes."""
    shot = replace(SHOT, scheduler=scheduler)
    whole = render_windows(worker(tiny_wan, **settings), shot, WINDOWS)
    pair = [worker(tiny_wan, **settings) for _ in range(2)]
    embeddings, done = encode(pair[0], shot), {}
    for step in range(shot.steps + 1):
        for window in reversed(WINDOWS):
            task = step_task(shot, WINDOWS, window.index, step)
            output = run_step(pair[(step + window.index) % 2], task, embeddings, done)
            done[window.index, step] = decode_bundle(encode_bundle(output))
    for window in (0, 1):
        assert torch.equal(latents(whole, window), latents(done, window))


def test_every_tile_decides_for_itself_and_says_so(tiny_wan: Path) -> None:
    some = worker(tiny_wan, threshold=BETWEEN, most_skips=9)
    embeddings, done = encode(some, SHOT), {}
    skipped: dict[int, list[int]] = {0: [], 1: []}
    for step in range(SHOT.steps + 1):
        for window in WINDOWS:
            task = step_task(SHOT, WINDOWS, window.index, step)
            before = [done[w.index, step - 1] for w in task.covering] if step else []
            inputs = [embeddings, *before] if step < SHOT.steps else before
            report, done[window.index, step] = some.run(task, inputs)
            if report.engaged.get("adaptive.skipped"):
                skipped[window.index].append(step)
    assert 3 in skipped[1] and 3 not in skipped[0] and 6 in skipped[0]
    assert all(3 <= step < 9 for steps in skipped.values() for step in steps)


def test_a_forecast_is_on_the_line_through_what_was_computed(tiny_wan: Path) -> None:
    some = worker(tiny_wan, threshold=50.0, most_skips=2, forecast=True)
    done = render_windows(some, SHOT, WINDOWS[:1])
    predicted = [to_tensor(done[0, step], "prediction") for step in range(SHOT.steps)]
    line = predicted[2] + 2 * (predicted[2] - predicted[1])
    assert torch.allclose(predicted[4], line) and not torch.equal(predicted[4], predicted[2])
    assert torch.allclose(predicted[6], predicted[5] + (predicted[5] - predicted[2]) / 3)


def test_the_spectral_form_knows_the_steps_noise(tiny_wan: Path) -> None:
    """Of random weights the clean part changes more, in its own measure, as the noise leaves."""
    some = worker(tiny_wan, form="spectral", threshold=0.6, first=1)
    count = calls(some)
    render_windows(some, SHOT, WINDOWS[:1])
    assert 2 * 2 < count[0] < 2 * SHOT.steps
