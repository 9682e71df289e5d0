"""Calibration: the attention plan of a model, found on a few prompts through what renders.

A sample is one window of a shot, from its noise to its last step.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
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
from jobs.attention_plan import AttentionPlan, PlanKey, save
from jobs.errors import BadJob
from jobs.units import ShotRender, Unit
from workers.families.family import ModelFamily, stepper_of
from workers.noise import initial_noise
from workers.schedulers import build

__all__ = ["CalibrationSample", "find_plan", "key_steps", "plan_key", "step_similarity"]


class CalibrationSample:
    """A shot of one window, on its way through its steps."""

    def __init__(self, family: ModelFamily, shot: ShotRender) -> None:
        if len(shot.stage_steps) != 1:
            raise BadJob("a calibration shot has one stage; give the steps of a flat render")
        self._family, self._shot = family, shot
        self._embeddings = family.encode(shot)
        device = next(iter(self._embeddings.values())).device
        places = shot.latent_frames * shot.latent_height * shot.latent_width
        self._stepper = stepper_of(family, shot, 0, places, device)
        noise = initial_noise(shot, range(shot.latent_frames), family.latent_channels)
        self.latents = noise.to(device)
        self._history: dict[str, torch.Tensor] = {}
        self._step = 0

    def predict(self, branch: Callable[[Branch], AbstractContextManager[None]]) -> torch.Tensor:
        """The prediction [1, C, T, H, W] at the sample's step."""
        return self._family.predict(
            self._shot, self.latents, self._stepper, self._step, self._embeddings, branch
        )

    def advance(self, prediction: torch.Tensor) -> None:
        """Let the scheduler take the step."""
        self.latents, self._history = self._stepper.step_range(
            self._step, prediction, self.latents, self._history
        )
        self._step += 1


def plan_key(family: ModelFamily, model: str, shot: ShotRender) -> PlanKey:
    """What a plan for this shot's windows is found by; ``model`` is the model's identity."""
    scheduler, _ = build(shot.scheduler, family.scheduler_config, shot.flow_shift, family.diffusion)
    return PlanKey(
        model=model,
        latent_size=(shot.latent_frames, shot.latent_height, shot.latent_width),
        steps=shot.steps,
        scheduler=scheduler,
        flow_shift=shot.flow_shift,
        guided=family.geometry.has_two_branches(shot.guidance),
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
    keys = {plan_key(family, model, shot) for shot in shots}
    if len(keys) != 1:
        raise BadJob(f"calibration shots are to have one size, schedule and guidance, not {keys}")
    (key,) = keys
    samples = [CalibrationSample(family, shot) for shot in shots]
    transformer = video_transformer(family.denoiser)
    grid = transformer.grid(family.denoiser, {"hidden_states": samples[0].latents})
    settings = Search(
        steps=key.steps, window=window_of(grid, share), delta=delta, guided=key.guided
    )
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
