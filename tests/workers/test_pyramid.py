"""A pyramid on a worker: against a plain loop over diffusers' own parts, and over windows."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from accel.positions import stage_positions
from jobs.arrays import Bundle
from jobs.pyramid import parents as parents_of
from jobs.units import ShotRender, StepTask, Unit, Window
from orchestrator.plan import StagePlan
from tests.marks import few
from tests.workers.tiny import CHANNELS, FLOW_SHIFT, encode, tiny_shot, tiny_worker
from workers.bundles import to_tensor
from workers.noise import frame_noise
from workers.schedulers import read_scheduler_config
from workers.worker import Worker

FRAMES = 7  # of the shot; 4 of the stage before, the first alone, then pairs; 3 of the one before
STEPS = (3, 2)
#: What a folder whose own scheduler is UniPC does not say of DPM++.
DPM = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "use_flow_sigmas": True}


def shot_of(scheduler: str, steps: tuple[int, ...] = STEPS, **changes: object) -> ShotRender:
    return tiny_shot(
        scheduler=scheduler, stage_steps=steps, latent_frames=FRAMES, pixel_frames=13, **changes
    )


def noise_levels(stages: int) -> list[tuple[float, float]]:
    """Where each stage begins and ends, of flow matching. Ends are evenly apart; from one, the next
    stage goes back to sqrt(2) times its noise / signal. See tests/accel for the theory."""
    lows = [1 - number / stages for number in range(1, stages + 1)]
    ratios = [math.sqrt(2) * low / (1 - low) for low in lows[:-1]]
    return list(zip([1.0, *(ratio / (1 + ratio) for ratio in ratios)], lows, strict=True))


def sigmas_of(steps: int, high: float, low: float) -> list[float]:
    """Evenly spread over a stage in the times before the shift."""
    plain = [s / (FLOW_SHIFT - (FLOW_SHIFT - 1) * s) for s in (high, low)]
    even = [plain[0] + (plain[1] - plain[0]) * n / steps for n in range(steps + 1)]
    return [FLOW_SHIFT * u / (1 + (FLOW_SHIFT - 1) * u) for u in even]


def noise_of(
    shot: ShotRender, frames: int, purpose: str, step: int, stride: int = 1
) -> torch.Tensor:
    """Keyed by the first latent frame that a frame stands for: 0, 1, 1 + stride."""
    shape = (CHANNELS, shot.latent_height, shot.latent_width)
    keys = [0 if n == 0 else 1 + (n - 1) * stride for n in range(frames)]
    drawn = [torch.from_numpy(frame_noise(shot.seed, n, purpose, step, shape)) for n in keys]
    return torch.stack(drawn, dim=1)[None]


def scheduler_of(name: str, config: dict, steps: int, high: float, low: float):
    kind, said = {
        "euler": (FlowMatchEulerDiscreteScheduler, {"shift": FLOW_SHIFT}),
        "unipc": (UniPCMultistepScheduler, {"flow_shift": FLOW_SHIFT}),
        "dpm++": (DPMSolverMultistepScheduler, {"flow_shift": FLOW_SHIFT} | DPM),
    }[name]
    scheduler = kind.from_config(config, **said)
    scheduler.set_timesteps(steps)
    # Pure noise is where a scheduler begins by itself, which may be a little below 1.
    sigmas = torch.tensor(sigmas_of(steps, min(high, float(scheduler.sigmas[0])), low))
    scheduler.sigmas = sigmas
    scheduler.timesteps = (sigmas[:-1] * 1000).to(scheduler.timesteps.dtype)
    return scheduler


@torch.no_grad()
def plain_loop(worker: Worker, folder: Path, name: str, shot: ShotRender) -> list[torch.Tensor]:
    """What each stage ends with: one window over the whole shot, no range, no state taken out."""
    embeddings = encode(worker, shot)
    cond, uncond = to_tensor(embeddings, "cond"), to_tensor(embeddings, "uncond")
    model, config = worker._family.denoiser, read_scheduler_config(folder)
    levels, ends = noise_levels(len(shot.stage_steps)), []
    for stage, (high, low) in enumerate(levels):
        stride = 2 ** (len(levels) - 1 - stage)
        count = 1 + math.ceil((FRAMES - 1) / stride)
        if stage == 0:
            latents = noise_of(shot, count, "initial", 0, stride)
        else:
            latents = jumped(shot, stage, latents, 2 * stride, levels[stage - 1][1], high)
            latents = latents[:, :, :count]
        scheduler = scheduler_of(name, config, shot.stage_steps[stage], high, low)
        for time in scheduler.timesteps:
            with stage_positions(model, stride if shot.stage_positions else 1):
                a, b = (model(latents, time[None], e, return_dict=False)[0] for e in (cond, uncond))
            flow = b + shot.guidance[0] * (a - b)
            latents = scheduler.step(flow, time, latents, return_dict=False)[0]
        ends.append(latents)
    return ends


def jumped(
    shot: ShotRender, stage: int, latents: torch.Tensor, stride: int, end: float, start: float
) -> torch.Tensor:
    """The first frame alone, all others twice, with opposite noise; at ``start`` in place of
    ``end`` in noise, of which the fresh one is half the variance."""
    fresh = start / math.sqrt(2) * noise_of(shot, latents.shape[2], "jump", stage, stride)
    plus, minus = ((1 - start) / (1 - end) * latents + sign * fresh for sign in (1, -1))
    return torch.stack([plus, minus], dim=3).flatten(2, 3)[:, :, [0, *range(2, 2 * plus.shape[2])]]


def run_all(
    worker: Worker,
    shot: ShotRender,
    stages: list[list[Window]],
    *,
    backwards: bool = False,
    first_alone: bool = True,
) -> dict[Unit, Bundle]:
    """All steps of a pyramid, each told what the planner would tell it."""
    embeddings, done = encode(worker, shot), {}
    order = reversed if backwards else list
    for stage, windows in enumerate(stages):
        steps = shot.stage_steps[stage]
        for step, window in itertools.product(range(steps + 1), order(windows)):
            covering = tuple(w for w in windows if w.overlaps(window))
            before = [Unit("step", 0, stage, w.index, 0, step - 1) for w in covering]
            parents: tuple[Window, ...] = ()
            owned: tuple[tuple[int, int], ...] = ()
            if step == 0:
                before = []
                if stage > 0:
                    last = shot.stage_steps[stage - 1]
                    coarser = StagePlan(stride=2, steps=last, windows=tuple(stages[stage - 1]))
                    above = parents_of(window.start, window.stop, first_alone=first_alone)
                    parents, owned = coarser.owners(*above), coarser.shares(*above)
                    before = [Unit("step", 0, stage - 1, w.index, 0, last) for w in parents]
            task = StepTask(
                unit=Unit("step", 0, stage, window.index, 0, step), attempt=1, shot=shot,
                window=window, covering=covering, parents=parents, owned=owned,
            )  # fmt: skip
            inputs = [embeddings] if step < steps else []
            done[task.unit] = worker.run(task, inputs + [done[unit] for unit in before])[1]
    return done


def ended(done: dict[Unit, Bundle], stage: int, window: int = 0) -> torch.Tensor:
    last = max(unit.step for unit in done if unit.stage == stage)
    return to_tensor(done[Unit("step", 0, stage, window, 0, last)], "latents")


@pytest.mark.parametrize(
    ("steps", "positions"),
    few(
        [(STEPS, False), (STEPS, True), ((3, 2, 3), False), ((3, 2, 3), True)],
        (STEPS, False),
        ((3, 2, 3), True),
    ),
)
@pytest.mark.parametrize("name", ["euler", "unipc", "dpm++"])
def test_one_window_a_stage_is_the_plain_loop(
    tiny_wan: Path, name: str, steps: tuple[int, ...], positions: bool
) -> None:
    shot, worker = shot_of(name, steps, stage_positions=positions), tiny_worker(tiny_wan)
    windows = [[Window(0, 0, frames)] for frames in (3, 4, 7)]
    done = run_all(worker, shot, windows[-len(steps) :])
    for stage, there in enumerate(plain_loop(worker, tiny_wan, name, shot)):
        ours = ended(done, stage)
        assert ours.shape == there.shape and ours.std() > 0.1
        assert torch.allclose(ours, there, rtol=0, atol=2e-5), (ours - there).abs().max()


WINDOWS, WHOLE = [Window(0, 0, 3), Window(1, 1, 4)], [Window(0, 0, 4)]


@pytest.mark.parametrize(
    ("name", "first"),
    [(name, WINDOWS) for name in ("euler", "unipc", "dpm++", "sde-dpm++")] + [("euler", WHOLE)],
)
def test_windows_of_both_stages_agree_in_any_order(
    tiny_wan: Path, name: str, first: list[Window]
) -> None:
    shot, worker = shot_of(name), tiny_worker(tiny_wan)
    stages = [first, [Window(0, 0, 4), Window(1, 2, 6), Window(2, 5, 7)]]
    done = run_all(worker, shot, stages)
    again = run_all(tiny_worker(tiny_wan), shot, stages, backwards=True)
    for unit, bundle in done.items():
        for array in bundle.arrays:
            assert bundle.arrays[array].tobytes() == again[unit].arrays[array].tobytes(), unit
    for stage, windows in enumerate(stages):
        for one, other in itertools.combinations(windows, 2):
            if not one.overlaps(other):
                continue
            low, high = max(one.start, other.start), min(one.stop, other.stop)
            parts = (
                ended(done, stage, w.index)[:, :, low - w.start : high - w.start]
                for w in (one, other)
            )
            assert torch.equal(*parts)


def test_one_stage_of_all_steps_draws_the_same_noise_as_ever(tiny_wan: Path) -> None:
    """A film without a pyramid has the bits that it had before there were any."""
    shot, worker = tiny_shot(), tiny_worker(tiny_wan)
    task = StepTask(
        unit=Unit("step", 0), attempt=1, shot=shot, window=Window(0, 2, 5),
        covering=(Window(0, 2, 5),),
    )  # fmt: skip
    first = worker.run(task, [encode(worker, shot)])[1]
    assert torch.equal(to_tensor(first, "latents"), noise_of(shot, 5, "initial", 0)[:, :, 2:])
