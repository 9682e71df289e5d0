"""Calibration: the attention plan of a model, found on a few prompts through what renders.

A sample is one window of a shot, from its noise to its last step.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from accel import rehash
from accel.attention_models import video_transformer
from accel.attention_search import Found, Progress, Search, SearchFile, search
from accel.handle import Branch, TileStep
from accel.rehash import key_steps
from accel.windowed import window_of
from jobs.accelerations import Rehash
from jobs.attention_plan import AttentionPlan, Extent, PlanKey, save
from jobs.errors import BadJob
from jobs.pyramid import parents, stage_frames, stage_strides
from jobs.units import ShotRender, Unit
from workers.families.family import ModelFamily, stepper_of
from workers.families.folder import guided
from workers.schedulers import build
from workers.stepping import StageSteps

__all__ = ["CalibrationSample", "find_plan", "key_steps", "plan_key", "step_similarity"]


class CalibrationSample:
    """The first window of each of a shot's stages, on its way through all their steps."""

    def __init__(
        self, family: ModelFamily, shot: ShotRender, window_latent_frames: int | None = None
    ) -> None:
        """A window has so many frames of its stage, or as many as the stage has; None: all."""
        self._family, self._shot = family, shot
        self._embeddings = family.encode(shot)
        self._device = next(iter(self._embeddings.values())).device
        self._frames = window_frames(family, shot, window_latent_frames)
        self._enter(0)
        self.latents = self._at.start((0, self._frames[0]))

    def predict(self, branch: Callable[[Branch], AbstractContextManager[None]]) -> torch.Tensor:
        """The prediction [1, C, T, H, W] at the sample's step."""
        return self._at.predict(self._step, self.latents, self._embeddings, branch)

    def advance(self, prediction: torch.Tensor) -> None:
        """Let the scheduler take the step, and go on to the next stage after a stage's last."""
        frames = (0, self._frames[self._at.stage])
        self.latents, self._history = self._at.settle(
            self._step, frames, prediction, self.latents, self._history
        )
        self._step += 1
        stage = self._at.stage + 1
        if self._step == self._shot.stage_steps[stage - 1] and stage < len(self._frames):
            self._enter(stage)
            frames = (0, self._frames[stage])
            _, above = parents(*frames, first_alone=self._family.first_alone)
            self.latents = self._at.jump(frames, self.latents[:, :, :above], 0)

    def _enter(self, stage: int) -> None:
        family, shot = self._family, self._shot
        places = self._frames[stage] * shot.latent_height * shot.latent_width
        self._at = StageSteps(
            family=family,
            shot=shot,
            stage=stage,
            stepper=stepper_of(family, shot, stage, places, self._device),
            device=self._device,
        )
        self._step, self._history = 0, dict[str, torch.Tensor]()


def window_frames(family: ModelFamily, shot: ShotRender, most: int | None) -> list[int]:
    """Of each of a shot's stages: the frames of its windows, which have ``most`` of them where the
    stage has so many."""
    strides = stage_strides(len(shot.stage_steps))
    every = [
        stage_frames(shot.latent_frames, stride, first_alone=family.first_alone)
        for stride in strides
    ]
    return [min(frames, most or frames) for frames in every]


def token_grid(family: ModelFamily, sample: CalibrationSample) -> Extent:
    """Frames, rows and columns of the tokens that the model makes of a sample, from a real pass:
    families hand their latents over in ways of their own. Raises CannotRunHere."""
    kind, found = video_transformer(family.denoiser), list[Extent]()

    def look(model: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        found.append(kind.grid_of(model, args, given))

    hook = family.denoiser.register_forward_pre_hook(look, with_kwargs=True)
    try:
        sample.predict(lambda branch: nullcontext())
    finally:
        hook.remove()
    return found[0]


def plan_key(family: ModelFamily, model: str, shot: ShotRender) -> PlanKey:
    """What a plan for this shot's windows is found by; ``model`` is the model's identity."""
    scheduler, _ = build(shot.scheduler, family.scheduler_config, shot.flow_shift, family.diffusion)
    return PlanKey(
        model=model,
        latent_size=(shot.latent_frames, shot.latent_height, shot.latent_width),
        steps=shot.steps,
        scheduler=scheduler,
        flow_shift=shot.flow_shift,
        guided=guided(shot),
    )


def step_similarity(family: ModelFamily, shots: Sequence[ShotRender]) -> NDArray[np.floating[Any]]:
    """How alike the features are that Step Rehash would reuse, [steps, steps]: the mean over
    ``shots``, each of one window, and their guidance branches. Raises BadJob, CannotRunHere."""
    steps = shots[0].steps
    handle = rehash.apply(family.denoiser, Rehash(key_steps=(tuple(range(steps)),)))
    try:
        found = [each for shot in shots for each in _features(family, shot, handle)]
    finally:
        handle.remove()
    return np.mean([rehash.similarity(each) for each in found], axis=0)


def _features(
    family: ModelFamily, shot: ShotRender, handle: rehash.RehashHandle
) -> list[list[torch.Tensor]]:
    """Of each branch, step by step."""
    sample, branches = CalibrationSample(family, shot), defaultdict[str, list[torch.Tensor]](list)
    for step in range(shot.steps):
        # One step more than there are: the last one's features are kept, too.
        tile = TileStep(unit=Unit("step", 0, step=step), steps=shot.steps + 1)
        prediction = sample.predict(partial(handle.run, tile))
        for name, feature in tile.kept.items():
            branches[name].append(feature)
        sample.advance(prediction)
    return list(branches.values())


def find_plan(
    family: ModelFamily,
    model: str,
    shots: Sequence[ShotRender],
    *,
    delta: float,
    folder: Path,
    share: float = 1 / 8,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[AttentionPlan, Found]:
    """Search a plan on ``shots``, each of one window, and save it in ``folder``.

    ``share``: of the tokens that a window holds. Every finished step is on file there: the same
    call goes on after an interruption. Raises BadJob for shots that no single plan is for.
    """
    if any(len(shot.stage_steps) != 1 for shot in shots):
        raise BadJob("a calibration shot has one stage; give the steps of a flat render")
    keys = {plan_key(family, model, shot) for shot in shots}
    if len(keys) != 1:
        raise BadJob(f"calibration shots are to have one size, schedule and guidance, not {keys}")
    (key,) = keys
    samples = [CalibrationSample(family, shot) for shot in shots]
    window = window_of(token_grid(family, samples[0]), share)
    settings = Search(steps=key.steps, window=window, delta=delta, guided=key.guided)
    prompts = [[s.prompt, s.negative_prompt, s.seed, *s.guidance] for s in shots]
    how = {"key": asdict(key), "settings": asdict(settings), "prompts": prompts}
    digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()
    file = SearchFile(folder / f"search-{digest[:24]}.json", how)
    plan, found = search(
        family.denoiser, samples, settings,
        found=file.read(), finished=file.write, progress=progress,
    )  # fmt: skip
    save(folder, key, plan, {"delta": delta, "prompts": prompts, "losses": found.losses})
    return plan, found
