"""What a shot's stage does at each of its steps, over any range of its frames.

Renders and calibrations both go through this, so that what is calibrated is what renders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from jobs.pyramid import firsts
from jobs.units import ShotRender
from workers.families.family import BranchContext, ModelFamily
from workers.noise import initial_noise, jump_noise, repeated_noise, step_noise
from workers.schedulers import History, RangeStepper


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSteps:
    """A stage of a shot. Latents are [1, C, T, H, W] of the stage's frames ``[start, stop)``, in
    the dtype that the family's pipeline keeps them in."""

    family: ModelFamily
    shot: ShotRender
    stage: int
    stepper: RangeStepper
    device: torch.device | str

    def start(self, frames: tuple[int, int]) -> torch.Tensor:
        """The latents that the first stage starts from: noise."""
        drawn = initial_noise(self.shot, self._places(*frames, 1), self.family.latent_channels)
        if self.shot.repeated_noise is not None:
            repeated = repeated_noise(self.shot, frames, self.family.latent_channels)
            share = self.shot.repeated_noise.share
            drawn = math.sqrt(share) * repeated + math.sqrt(1 - share) * drawn
        return self.family.kept(self.stepper.start(drawn.to(self.device)))

    def jump(self, frames: tuple[int, int], latents: torch.Tensor, first: int) -> torch.Tensor:
        """The latents that a later stage starts from: the finished ``latents`` of the stage before,
        whose first frame is number ``first``, at twice the frame rate."""
        above = self._places(first, first + latents.shape[2], 2)
        noise = jump_noise(self.shot, self.stage, above, self.family.latent_channels)
        started = self.stepper.jump(
            latents, noise.to(self.device), frames, first, first_alone=self.family.first_alone
        )
        return self.family.kept(started)

    def settle(
        self,
        step: int,
        frames: tuple[int, int],
        prediction: torch.Tensor,
        latents: torch.Tensor,
        history: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, History]:
        """Let the scheduler take ``step``: the latents after it, and the history to go on from."""
        noise = self.step_noise(step, frames) if self.stepper.adds_noise else None
        latents, history = self.stepper.step_range(step, prediction, latents, history, noise)
        return self.family.kept(latents), dict(history)

    def predict(
        self,
        step: int,
        latents: torch.Tensor,
        embeddings: Mapping[str, torch.Tensor],
        branch: BranchContext,
    ) -> torch.Tensor:
        """The model's prediction [1, C, T, H, W], guidance included, each pass in ``branch``."""
        return self.family.predict(self.shot, latents, self.stepper, step, embeddings, branch)

    def step_noise(self, step: int, frames: tuple[int, int]) -> torch.Tensor:
        """The noise of a scheduler that adds some at ``step``: no other step of the shot has it."""
        of_shot = sum(self.shot.stage_steps[: self.stage]) + step
        drawn = step_noise(
            self.shot, of_shot, self._places(*frames, 1), self.family.latent_channels
        )
        return drawn.to(self.device)

    def _places(self, start: int, stop: int, doubled: int) -> list[int]:
        """The first latent frame of the shot that each frame stands for; those of the stage before
        are ``doubled``."""
        stride = doubled * self.stepper.stride
        return firsts(start, stop, stride, first_alone=self.family.first_alone)
