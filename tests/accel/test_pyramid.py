"""The pyramid's mathematics: windows, jumps and pairs, against theory."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from accel.pyramid import (
    Coarse,
    FlowPath,
    Level,
    NoisePath,
    Stage,
    VariancePath,
    jump,
    jump_between,
    lay_stages,
    stage_pair,
    up,
)
from jobs.pyramid import parents, stage_frames

DDIM = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
PATHS: dict[str, NoisePath] = {
    "flow": FlowPath(),
    "variance": VariancePath(DDIM.alphas_cumprod.double().numpy()),
}
LATENT_FRAMES = 10


def clip(seed: int, frames: int = LATENT_FRAMES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, frames, 4, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("stages", "windows"),
    [
        (1, [(0, 1)]),
        (2, [(0, 0.5), (0.4142, 1)]),
        (3, [(0, 0.3333), (0.2612, 0.6667), (0.5858, 1)]),
        (4, [(0, 0.25), (0.1907, 0.5), (0.4142, 0.75), (0.6796, 1)]),
    ],
)
def test_windows_of_flow_matching(stages: int, windows: list[tuple[float, float]]) -> None:
    told = [(stage.start.signal, stage.end.signal) for stage in lay_stages(FlowPath(), stages)]
    assert np.array(told) == pytest.approx(np.array(windows), abs=5e-5)


def test_jumps_of_flow_matching() -> None:
    first, second, third = lay_stages(FlowPath(), 3)
    told = [jump_between(first.end, second.start), jump_between(second.end, third.start)]
    expected = [(0.7836, 0.5224), (0.8787, 0.2929)]
    assert [(j.scale, j.noise) for j in told] == [pytest.approx(e, abs=5e-5) for e in expected]


def test_jump_of_a_variance_preserving_schedule() -> None:
    """Scale sqrt((1 + a) / 2) and noise sqrt((1 - a) / 2), a being the start's alpha."""
    alpha = 0.4
    end_alpha = 2 * alpha / (1 + alpha)
    start, end = (Level(0, math.sqrt(a), math.sqrt(1 - a)) for a in (alpha, end_alpha))
    told = jump_between(end, start)
    assert told.scale == pytest.approx(math.sqrt((1 + alpha) / 2))
    assert told.noise == pytest.approx(math.sqrt((1 - alpha) / 2))


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_stages_follow_each_other(name: str, stages: int) -> None:
    laid = lay_stages(PATHS[name], stages)
    assert laid[0].start.time == PATHS[name].last and laid[-1].end.time == 0
    for before, after in pairwise(laid):
        assert before.stride == 2 * after.stride
        assert before.end.time < after.start.time < before.start.time, "a little back in time"
        assert after.start.ratio == pytest.approx(math.sqrt(2) * before.end.ratio, rel=0.01)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("first_alone", [True, False])
def test_mean_and_covariance_after_a_jump(name: str, first_alone: bool) -> None:
    """Of many noisy clips that are upsampled: the mean is start.signal times the repeated frames,
    and all frames have independent noise of start.noise."""
    before, after = lay_stages(PATHS[name], 3)[1:]
    samples, frames, coarse = 40_000, 7, stage_frames(7, 2, first_alone=first_alone)
    generator = torch.Generator().manual_seed(0)
    clean = torch.arange(coarse, dtype=torch.float64)[None].expand(samples, -1)
    noise, fresh = (
        torch.randn(samples, coarse, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    ended = before.end.signal * clean + before.end.noise * noise
    rule = {"first_alone": first_alone, "dim": 1}
    started = jump(jump_between(before.end, after.start), ended, fresh, 0, frames, 0, **rule)
    mean = after.start.signal * up(clean[:1], 0, frames, 0, **rule)[0]
    error = 4 * after.start.noise / math.sqrt(samples)
    assert started.mean(dim=0) == pytest.approx(mean, abs=error)
    covariance = torch.cov(started.T) / after.start.noise**2
    assert covariance.numpy() == pytest.approx(np.eye(frames), abs=0.03)


def test_a_jump_over_a_part_of_a_film_is_that_part() -> None:
    """Whoever computes frames 3 to 8, from the frames that stand for them, gets the same bits."""
    before, after = lay_stages(FlowPath(), 2)
    between = jump_between(before.end, after.start)
    assert between.noise > 0.3
    coarse, fresh = clip(0, 6), clip(1, 6)
    whole = jump(between, coarse, fresh, 0, 11, 0, first_alone=True)
    low, high = parents(3, 8, first_alone=True)
    some = slice(low, high)
    part = jump(between, coarse[:, :, some], fresh[:, :, some], 3, 8, low, first_alone=True)
    assert torch.equal(part, whole[:, :, 3:8])


def shown(x: torch.Tensor, stride: int, coarse: str, *, first_alone: bool) -> torch.Tensor:
    """Frames of a lower rate: one for every so many, the first latent frame alone where it is."""
    alone = int(first_alone)
    if coarse == "first":
        return x[:, :, [*range(alone), *range(alone, x.shape[2], stride)]]
    groups = [x[:, :, :1]] * alone + [*x[:, :, alone:].split(stride, dim=2)]
    return torch.cat([group.mean(dim=2, keepdim=True) for group in groups], dim=2)


def ends(
    stage: Stage, x: torch.Tensor, noise: torch.Tensor, *, first_alone: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a stage starts and ends, as the paper defines it."""
    fine, coarse = (
        shown(x, stride, stage.coarse, first_alone=first_alone)
        for stride in (stage.stride, 2 * stage.stride)
    )
    repeated = fine if stage.is_first else up(coarse, 0, fine.shape[2], 0, first_alone=first_alone)
    return (
        stage.start.signal * repeated + stage.start.noise * noise,
        stage.end.signal * fine + stage.end.noise * noise,
    )


@pytest.mark.parametrize("first_alone", [True, False])
@pytest.mark.parametrize("coarse", ["mean", "first"])
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_both_ends_of_a_stage_lie_on_its_own_diffusion(
    name: str, number: int, coarse: Coarse, first_alone: bool
) -> None:
    stage = lay_stages(PATHS[name], 3, coarse)[number]
    x = clip(0)
    noise = clip(1, stage_frames(LATENT_FRAMES, stage.stride, first_alone=first_alone))
    clean, pair_noise = stage_pair(stage, x, noise, first_alone=first_alone)
    both = ends(stage, x, noise, first_alone=first_alone)
    for level, there in zip((stage.start, stage.end), both, strict=True):
        mixed = level.signal * clean + level.noise * pair_noise
        assert torch.allclose(mixed, there, rtol=0, atol=1e-12)


def test_one_stage_is_no_pyramid() -> None:
    for path in PATHS.values():
        (stage,) = lay_stages(path, 1)
        clean, noise = stage_pair(stage, clip(0), clip(1), first_alone=True)
        assert torch.equal(clean, clip(0)) and torch.equal(noise, clip(1))
        assert (stage.start.time, stage.end.time) == (path.last, 0)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_eulers_scheduler_leads_from_a_stages_start_to_its_end(number: int) -> None:
    stage = lay_stages(FlowPath(), 3)[number]
    x = clip(0)
    noise = clip(1, stage_frames(LATENT_FRAMES, stage.stride, first_alone=True))
    clean, pair_noise = stage_pair(stage, x, noise, first_alone=True)
    start, end = ends(stage, x, noise)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[stage.start.noise, 0.5 * (stage.start.noise + stage.end.noise)])
    scheduler.sigmas[-1] = stage.end.noise
    at = start
    for timestep in scheduler.timesteps:
        at = scheduler.step(pair_noise - clean, timestep, at, return_dict=False)[0]
    assert torch.allclose(at, end, rtol=0, atol=1e-6), "the scheduler's times are float32"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_ddim_stays_on_a_stages_diffusion(number: int) -> None:
    stage = lay_stages(PATHS["variance"], 3)[number]
    x = clip(0)
    noise = clip(1, stage_frames(LATENT_FRAMES, stage.stride, first_alone=True))
    clean, pair_noise = stage_pair(stage, x, noise, first_alone=True)
    scheduler = DDIMScheduler.from_config(DDIM.config, clip_sample=False)
    scheduler.set_timesteps(20)  # steps of 50
    at, time = ends(stage, x, noise)[0], int(stage.start.time)
    while time - 50 > stage.end.time:
        at = scheduler.step(pair_noise, time, at, return_dict=False)[0]
        time -= 50
    there = PATHS["variance"].at(time)
    expected = there.signal * clean + there.noise * pair_noise
    assert time < stage.start.time - 100
    assert torch.allclose(at, expected, rtol=0, atol=1e-5), "the scheduler's alphas are float32"
