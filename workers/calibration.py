"""Calibration: a model's plans of attention, found on a few prompts through what renders.

A sample is one window of a shot, from its noise to its last step. Profiles of rehash, which are
found on the same samples, are in ``workers.profiling``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from accel.attention_cost import attention_share
from accel.attention_search import Progress, Search, SearchFile, search
from accel.handle import Branch
from accel.slicing import apply as apply_slicing
from accel.video_transformers import video_transformer
from accel.windowed import Geometry, window_of
from jobs.accelerations import Slicing
from jobs.attention_plan import AttentionPlan, Extent, save
from jobs.calibration import CalibrationKey, calibration_keys
from jobs.errors import BadJob
from jobs.pyramid import parents, window_frames
from jobs.units import ShotRender, Unit
from workers.blame import check_finite
from workers.families.family import ModelFamily, stepper_of
from workers.schedulers import build
from workers.stepping import StageSteps


class CalibrationSample:
    """The first window of each of a shot's stages, on its way through all their steps."""

    def __init__(
        self, family: ModelFamily, shot: ShotRender, window_latent_frames: int | None = None
    ) -> None:
        """A window has so many frames of its stage, or as many as the stage has; None: all."""
        self._family, self._shot = family, shot
        self._device = family.device
        told = family.encode(shot)
        self._embeddings = {name: tensor.to(self._device) for name, tensor in told.items()}
        self._frames = _frames(family, shot, window_latent_frames)
        self._enter(0)
        self.latents = self._at.start((0, self._frames[0]))

    def predict(self, branch: Callable[[Branch], AbstractContextManager[None]]) -> torch.Tensor:
        """The prediction [1, C, T, H, W] at the sample's step."""
        return self._at.predict(self._step, self.latents, self._embeddings, branch)

    def advance(self, prediction: torch.Tensor) -> None:
        """Let the scheduler take the step, and go on to the next stage after a stage's last. Raises
        UnitError for a prediction that is no number: nothing can be found by it."""
        unit = Unit("step", 0, stage=self._at.stage, step=self._step)
        check_finite(prediction, "the model's prediction", unit, self._family.dtype)
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

    def go_on(self, stage: int, latents: torch.Tensor) -> None:
        """Stand at the first step of a stage, with what the stages before have made: latents
        [1, C, T, H, W], as ``advance`` left them after the last step there."""
        self._enter(stage)
        self.latents = latents.to(self._device)

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


def _frames(family: ModelFamily, shot: ShotRender, window: int | None) -> tuple[int, ...]:
    """Of the windows of each of a shot's stages."""
    stages, alone = len(shot.stage_steps), family.first_alone
    return window_frames(shot.latent_frames, stages, window, first_alone=alone)


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


def shot_keys(
    family: ModelFamily, model: str, shot: ShotRender, window_latent_frames: int | None = None
) -> tuple[CalibrationKey, ...]:
    """What is found for each of this shot's stages has these; ``model`` is the model's identity."""
    scheduler, _ = build(shot.scheduler, family.scheduler_config, shot.flow_shift, family.diffusion)
    return calibration_keys(
        family.geometry,
        latent_size=(shot.latent_frames, shot.latent_height, shot.latent_width),
        window_latent_frames=window_latent_frames,
        stage_steps=shot.stage_steps,
        guidance=shot.guidance,
        model=model,
        scheduler=scheduler,
        flow_shift=shot.flow_shift,
        dtype=family.dtype,
    )


def common_keys(
    family: ModelFamily, model: str, shots: Sequence[ShotRender], window: int | None
) -> tuple[CalibrationKey, ...]:
    """Of all these shots. Raises BadJob for shots that have no calibration in common."""
    keys = {shot_keys(family, model, shot, window) for shot in shots}
    if len(keys) != 1:
        raise BadJob(f"calibration shots are to have one size, schedule and guidance, not {keys}")
    return keys.pop()


def prompts_of(shots: Sequence[ShotRender]) -> list[list[Any]]:
    """What a file of a calibration says of the shots that it was made on."""
    return [[shot.prompt, shot.negative_prompt, shot.seed, *shot.guidance] for shot in shots]


@contextmanager
def sliced(family: ModelFamily, slicing: Slicing | None) -> Iterator[None]:
    """Its denoiser in slices meanwhile: the same numbers in less memory."""
    if slicing is None:
        yield
        return
    handle = apply_slicing(family.denoiser, slicing)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True, slots=True)
class FoundPlan:
    """A stage's plan of attention."""

    plan: AttentionPlan
    losses: list[float]  # of each step
    tokens: int  # that attend to each other
    share_left: float  # of what attention multiplies in full, by the plan


def find_plans(
    family: ModelFamily,
    model: str,
    shots: Sequence[ShotRender],
    *,
    delta: float,
    folder: Path,
    window_latent_frames: int | None = None,
    share: float = 1 / 8,
    slicing: Slicing | None = None,
    progress: Callable[[int, Progress], None] = lambda stage, progress: None,
) -> list[FoundPlan]:
    """Search a plan for each stage of ``shots``, on the first window of each, and save it in
    ``folder``. A stage goes on from what the one before it made by its plan.

    ``window_latent_frames``: how long windows are; None: as long as the stage. ``share``: of the
    tokens that a window of attention holds. ``slicing`` changes nothing that is found. Every
    finished step is on file there: the same call goes on after an interruption. Raises BadJob for
    shots that no single plan is for, UnitError for a model whose predictions are no numbers.
    """
    keys = common_keys(family, model, shots, window_latent_frames)
    samples = [CalibrationSample(family, shot, window_latent_frames) for shot in shots]
    prompts = prompts_of(shots)
    every: list[FoundPlan] = []
    with sliced(family, slicing):
        for key in keys:
            grid = token_grid(family, samples[0])
            window = window_of(grid, share)
            settings = Search(steps=key.steps, window=window, delta=delta, guided=key.guided)
            before = [each.plan.rows for each in every]
            how = {"key": asdict(key), "settings": asdict(settings), "prompts": prompts,
                   "before": before}  # fmt: skip
            digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()
            file = SearchFile(folder / f"search-{digest[:24]}.json", how)
            plan, found = search(
                family.denoiser, samples, settings,
                found=file.read(), finished=file.write, progress=partial(progress, key.stage),
            )  # fmt: skip
            save(folder, key, plan, {"delta": delta, "prompts": prompts, "losses": found.losses})
            text = shots[0].text_tokens if video_transformer(family.denoiser).text != "none" else 0
            attended = Geometry(grid, window, text)
            left = attention_share(plan, attended, guided=key.guided)
            every.append(FoundPlan(plan, found.losses, attended.tokens, left))
    return every
