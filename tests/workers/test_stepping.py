"""What a stage of a shot does at its steps, by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs.units import RepeatedNoise, ShotRender
from tests.workers.tiny import CHANNELS, tiny_shot
from workers.families import open_family
from workers.families.family import stepper_of
from workers.noise import frame_noise
from workers.stepping import StageSteps

STEPS = (3, 2)


def stage_of(folder: Path, shot: ShotRender, stage: int) -> StageSteps:
    family = open_family("wan", str(folder), "float32", "cpu")
    stepper = stepper_of(family, shot, stage, 64, "cpu")
    return StageSteps(family=family, shot=shot, stage=stage, stepper=stepper, device="cpu")


def test_a_steps_noise_is_of_that_step_of_the_shot_and_of_the_frames_that_it_stands_for(
    tiny_wan: Path,
) -> None:
    shot = tiny_shot(stage_steps=STEPS, latent_frames=7, pixel_frames=13)
    first, second = (stage_of(tiny_wan, shot, stage) for stage in range(2))

    def drawn(step: int, latent_frames: list[int]) -> torch.Tensor:
        shape = (CHANNELS, shot.latent_height, shot.latent_width)
        noise = [frame_noise(shot.seed, frame, "step", step, shape) for frame in latent_frames]
        return torch.stack([torch.from_numpy(each) for each in noise], dim=1)[None]

    # Of the first stage every frame stands for two, but for the causal autoencoder's first one.
    assert torch.equal(first.step_noise(1, (0, 4)), drawn(1, [0, 1, 3, 5]))
    assert torch.equal(second.step_noise(1, (2, 5)), drawn(STEPS[0] + 1, [2, 3, 4]))
    assert torch.equal(second.step_noise(0, (0, 1)), drawn(STEPS[0], [0]))
    assert not torch.equal(second.step_noise(1, (0, 1)), first.step_noise(1, (0, 1)))


@pytest.mark.parametrize("steps", [(3,), STEPS])
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_part_of_the_noise_comes_again_after_so_many_frames_of_the_first_stage(
    tiny_wan: Path, steps: tuple[int, ...], share: float
) -> None:
    shot = tiny_shot(stage_steps=steps, latent_frames=33, latent_height=64, latent_width=64)
    repeated = RepeatedNoise(period=4, share=share)
    stage = stage_of(tiny_wan, replace(shot, repeated_noise=repeated), 0)
    first, again, other = (stage.start(part).flatten() for part in ((0, 4), (8, 12), (9, 13)))
    assert torch.equal(stage.start((6, 11))[:, :, 2:], stage.start((8, 12))[:, :, :3]), "of places"
    correlated = torch.corrcoef(torch.stack([first, again, other]))
    assert correlated[0, 1] == pytest.approx(share, abs=0.02)
    assert correlated[0, 2] == pytest.approx(0, abs=0.02), "it comes again in its own place"
    assert first.std() == pytest.approx(1, abs=0.02)


def test_no_share_that_comes_again_is_as_ever(tiny_wan: Path) -> None:
    shot = tiny_shot(latent_frames=17, pixel_frames=33)
    none = replace(shot, repeated_noise=RepeatedNoise(period=4, share=0.0))
    plain, none = (stage_of(tiny_wan, each, 0).start((3, 9)) for each in (shot, none))
    assert torch.equal(plain, none)
