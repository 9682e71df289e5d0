"""What a stage is trained on, against what a render meets there."""

import math

import numpy as np
import pytest
import torch

from accel.pyramid import FlowPath, down, jump, jump_between, lay_stages
from training.stages import aligned, clip_frames, draw_times, noisy, stage_window

STAGES = lay_stages(FlowPath(), 3)


def draw(seed: int, frames: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, frames, 3, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("starts", [True, False])
def test_a_window_has_the_latent_frames_that_it_needs(number: int, starts: bool) -> None:
    for frames in (4, 5, 9):
        needed = clip_frames(STAGES[number], frames, starts=starts)
        for second in (True, False):
            clean, noise = stage_window(
                STAGES[number], draw(0, needed), draw(1, frames), starts=starts, second=second
            )
            assert clean.shape == noise.shape == draw(1, frames).shape
            assert not clean.isnan().any()


def test_known_needs() -> None:
    assert [clip_frames(s, 9, starts=True) for s in STAGES] == [33, 17, 9]
    assert [clip_frames(s, 9, starts=False) for s in STAGES] == [36, 20, 10]


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(("starts", "second"), [(True, False), (False, False), (False, True)])
def test_a_stage_begins_where_the_one_before_has_led(
    number: int, starts: bool, second: bool
) -> None:
    """The training's start of a stage has the mean that a render's jump gives from the true end of
    the stage before."""
    before, stage = STAGES[number - 1], STAGES[number]
    frames = 5
    x = draw(0, clip_frames(stage, frames, starts=starts))
    clean, noise = stage_window(
        stage, x, torch.zeros_like(draw(1, frames)), starts=starts, second=second
    )
    trained = stage.start.signal * clean + stage.start.noise * noise
    coarse = before.end.signal * down(x, before.stride, first_alone=starts)
    first = int(second)
    met = jump(
        jump_between(before.end, stage.start), coarse, torch.zeros_like(coarse),
        first, first + frames, 0, first_alone=starts,
    )  # fmt: skip
    assert torch.allclose(trained, met, rtol=0, atol=1e-12)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_stage_ends_with_its_own_frames(number: int) -> None:
    stage, noise = STAGES[number], draw(1, 5)
    x = draw(0, clip_frames(stage, 5, starts=True))
    clean, own = stage_window(stage, x, noise, starts=True, second=False)
    there = stage.end.signal * clean + stage.end.noise * own
    frames = down(x, stage.stride, first_alone=True)[:, :, :5]
    expected = stage.end.signal * frames + stage.end.noise * noise
    assert torch.allclose(there, expected, rtol=0, atol=1e-12)


def test_alignment_deals_out_the_same_noises_nearer() -> None:
    x, noise = draw(0, 3, batch=16), draw(1, 3, batch=16)
    dealt = aligned(x, noise)
    distance = [(each - x).square().sum().item() for each in (noise, dealt)]
    assert distance[1] < distance[0]
    assert torch.equal(dealt.sort(dim=0).values, noise.sort(dim=0).values), "none is lost"
    assert torch.equal(aligned(noise, noise.flip(0)), noise)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_times_keep_to_their_stage(shift: float) -> None:
    rng = np.random.default_rng(0)
    for stage in STAGES:
        times = draw_times(FlowPath(), rng, 2000, stage, shift)
        assert times.min() >= stage.end.time and times.max() <= stage.start.time
        span = stage.start.time - stage.end.time
        assert times.min() < stage.end.time + 0.02 * span
        assert times.max() > stage.start.time - 0.02 * span
        # Half of a render's steps of the stage lie below the middle of its unshifted times.
        low, high = (t / (shift - (shift - 1) * t) for t in (stage.end.time, stage.start.time))
        middle = shift * (low + high) / 2 / (1 + (shift - 1) * (low + high) / 2)
        assert np.median(times) == pytest.approx(middle, abs=0.03 * span)


def test_noise_is_mixed_in_at_each_clips_time() -> None:
    x, noise = draw(0, 3, batch=2), draw(1, 3, batch=2)
    mixed = noisy(FlowPath(), np.array([0.25, 1.0]), x, noise)
    assert torch.allclose(mixed[0], 0.75 * x[0] + 0.25 * noise[0])
    assert torch.equal(mixed[1], noise[1])
    assert math.isclose(FlowPath().at(0.25).signal, 0.75)
