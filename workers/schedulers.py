"""Diffusers' schedulers, stepped over any range of latent frames without hidden state.

A diffusers scheduler keeps the tensors of its last steps inside itself. Here that state is taken
out after every step and put back before the next, so a step is a pure function of
(step index, prediction, latents, history). Every tensor of the state is per place ([1, C, T, H,
W]), so slicing it by latent frames is exact; a scheduler or a setting for which that is not so is
refused by name: ``jobs.model_scheduler`` has the tables. One that adds noise is handed what
``workers.noise`` draws for these latent frames.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule

from accel.pyramid import (
    FlowPath,
    Level,
    NoisePath,
    Stage,
    VariancePath,
    jump,
    jump_between,
    lay_stages,
    shifted,
    unshifted,
)
from jobs.errors import BadJob
from jobs.families.family import Diffusion
from jobs.model_scheduler import (
    SCHEDULERS,
    WITH_PYRAMID,
    choose_scheduler,
    folder_shift,
    overrides,
)
from workers.cogvideox_dpm import KeyedCogVideoXDPMScheduler
from workers.sde_dpm import KeyedDPMSolverMultistepScheduler

History = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerKind:
    """A supported scheduler's class and a table of its state."""

    cls: type
    tensor_lists: tuple[str, ...] = ()  # lists of per-place tensors, None where not yet known
    tensors: tuple[str, ...] = ()  # per-place tensors
    counters: tuple[str, ...] = ()  # integers, the same for every place


#: By the name of diffusers' class. State that is not listed: ``_step_index`` is the step's
#: argument; UniPC's ``timestep_list`` is read only by a ``solver_p``, which is refused.
KINDS: dict[str, SchedulerKind] = {
    kind.cls.__name__: kind
    for kind in (
        SchedulerKind(
            cls=UniPCMultistepScheduler,
            tensor_lists=("model_outputs",),
            tensors=("last_sample",),
            counters=("lower_order_nums", "this_order"),
        ),
        SchedulerKind(cls=FlowMatchEulerDiscreteScheduler),
        SchedulerKind(cls=DDIMScheduler),
        SchedulerKind(cls=CogVideoXDDIMScheduler),
        SchedulerKind(cls=EulerDiscreteScheduler),
    )
} | {
    "CogVideoXDPMScheduler": SchedulerKind(
        cls=KeyedCogVideoXDPMScheduler, tensors=("old_pred_original_sample",)
    ),
    "DPMSolverMultistepScheduler": SchedulerKind(
        cls=KeyedDPMSolverMultistepScheduler,
        tensor_lists=("model_outputs",),
        counters=("lower_order_nums",),
    ),
}


def read_scheduler_config(folder: str | Path) -> dict[str, Any]:
    """The scheduler config of a diffusers folder."""
    path = Path(folder) / "scheduler" / "scheduler_config.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise BadJob(f"the model folder has no scheduler: {path} is missing") from None


def build(
    name: str,
    config: Mapping[str, Any],
    flow_shift: float | None = None,
    diffusion: Diffusion = "flow",
) -> tuple[str, Any]:
    """The kind's name and a diffusers scheduler, from a model folder's ``config``.

    What a job does not say is as the model folder says, its shift included: that is carried over
    where the folder's scheduler calls it otherwise than the named one.
    """
    name = choose_scheduler(name, config, diffusion)
    changes = overrides(name, config, diffusion)
    settings = SCHEDULERS[diffusion][name]
    shift = flow_shift if flow_shift is not None else folder_shift(config, diffusion)
    if shift is not None and settings.shift_key is not None:
        changes[settings.shift_key] = shift
    return name, KINDS[settings.class_name].cls.from_config(dict(config), **changes)


class RangeStepper:
    """The schedule of one stage of a shot; steps any range of its frames."""

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        stage_steps: Sequence[int],
        stage: int = 0,
        flow_shift: float | None = None,
        device: torch.device | str = "cpu",
        diffusion: Diffusion = "flow",
        places: int = 0,
        even_sigmas: bool = False,
    ) -> None:
        """``stage_steps`` are the steps of all stages, of which this is number ``stage``;
        ``places`` is T * H * W of a window, which some schedules depend on.

        ``even_sigmas``: the noise levels, before the shift, go evenly from 1 to 0. A scheduler that
        cannot be told so has its own, which are near.
        """
        self._diffusion = diffusion
        self.name, self._scheduler = build(name, config, flow_shift, diffusion)
        settings = SCHEDULERS[diffusion][self.name]
        self._kind, self._settings = KINDS[settings.class_name], settings
        steps = stage_steps[stage]
        told = inspect.signature(self._scheduler.set_timesteps).parameters
        levels = {"sigmas": np.linspace(1.0, 0.0, steps + 1)[:-1]} if even_sigmas else {}
        if not levels.keys() <= told.keys():
            levels = {}
        if diffusion == "flow_by_size":
            set_by_size(self._scheduler, steps, places, device)
        elif diffusion == "flow_quadratic":
            set_quadratic(self._scheduler, steps, device)
        else:
            self._scheduler.set_timesteps(steps, device=device, **levels)
        if hasattr(self._scheduler, "is_scale_input_called"):
            self._scheduler.is_scale_input_called = True  # by whichever worker predicted
        divisible = diffusion in WITH_PYRAMID and not settings.adds_sigma
        assert len(stage_steps) == 1 or divisible, "check_pyramid refuses it"
        path: NoisePath = FlowPath()
        if diffusion == "variance":
            path = VariancePath(self._scheduler.alphas_cumprod.double().numpy())
        stages = lay_stages(path, len(stage_steps))
        self.stride = stages[stage].stride  # latent frames of the shot for a frame of the stage
        if len(stages) > 1 and diffusion == "variance":
            passed = stage_levels(path, stages[stage], steps)
            _keep_to_levels(self._scheduler, passed, ends_clean=stage == len(stages) - 1)
        elif len(stages) > 1:
            shift = float(self._scheduler.config[SCHEDULERS[diffusion][self.name].shift_key])
            _keep_to(self._scheduler, stages[stage], shift)
        self._jump = jump_between(stages[stage - 1].end, stages[stage].start) if stage else None
        self._blank = {key: _copy(getattr(self._scheduler, key)) for key in self._attributes()}
        self.timesteps: torch.Tensor = self._scheduler.timesteps  # [steps], dtype as diffusers has
        if len(self.timesteps) != steps:
            raise BadJob(f"scheduler {self.name} makes {len(self.timesteps)} steps of {steps}")
        # What the scheduler calls its steps: a DDIM that was given levels counts them.
        counts_levels = len(stages) > 1 and isinstance(self._scheduler, DDIMScheduler)
        self._names = range(steps)[::-1] if counts_levels else self.timesteps

    @property
    def adds_noise(self) -> bool:
        return self._settings.adds_noise

    def noise_scale(self, step_index: int) -> float:
        """What a scheduler that ``adds_noise`` multiplies a step's noise by."""
        return self._scheduler.noise_scale(step_index)

    def renewed(
        self,
        step_index: int,
        prediction: torch.Tensor,
        before: torch.Tensor,
        latents: torch.Tensor,
    ) -> torch.Tensor:
        """What stands in for the prediction of step ``step_index`` where the model is skipped:
        that of the step before, made of the latents ``before``.

        Where noise was added since, an epsilon or v of before says of noise that the latents no
        longer hold: what it says of the clean film, x_0, is kept then. Else it is the same one.
        """
        if not self.adds_noise:
            return prediction
        return self._scheduler.renewed(prediction, before, latents, step_index)

    def sigma(self, step_index: int) -> float:
        """The noise of a flow; of others that have sigmas, noise over signal."""
        return float(self._scheduler.sigmas[step_index])

    def mix(self, step_index: int) -> tuple[float, float]:
        """Signal and noise of the latents at a step's beginning: x = signal * clean + noise * e."""
        if self._diffusion.startswith("flow"):
            return 1 - self.sigma(step_index), self.sigma(step_index)
        if self._settings.adds_sigma:
            return 1.0, self.sigma(step_index)
        if hasattr(self._scheduler, "sigmas"):  # noise over signal
            ratio = self.sigma(step_index)
            return 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)
        alpha = float(self._scheduler.alphas_cumprod[int(self._names[step_index])])
        return math.sqrt(alpha), math.sqrt(1 - alpha)

    def start(self, noise: torch.Tensor) -> torch.Tensor:
        """The latents of step 0, from standard normal noise."""
        return noise * getattr(self._scheduler, "init_noise_sigma", 1.0)

    def scale_input(self, latents: torch.Tensor, step_index: int) -> torch.Tensor:
        """What the model sees of latents that are x_0 + sigma * e (Karras et al. 2022, eq. 7:
        c_in); of others they themselves."""
        if not self._settings.adds_sigma:
            return latents
        self._restore(step_index, {})
        return self._scheduler.scale_model_input(latents, self.timesteps[step_index])

    def step_range(
        self,
        step_index: int,
        prediction: torch.Tensor,
        latents: torch.Tensor,
        history: Mapping[str, torch.Tensor],
        noise: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, History]:
        """Latents [1, C, T, H, W] of step ``step_index + 1``, and the history to go on from.

        ``history`` is what the step before returned for the same range; empty for step 0. A
        scheduler that ``adds_noise`` needs ``noise`` of the latents' shape.
        """
        self._restore(step_index, history)
        name, extra = self._names[step_index], {"noise": noise} if self.adds_noise else {}
        latents = self._scheduler.step(prediction, name, latents, return_dict=False, **extra)[0]
        kept = self._extract()
        self._restore(0, {})  # hold no tensors between calls
        return latents, kept

    def jump(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        frames: tuple[int, int],
        first: int,
        *,
        first_alone: bool,
    ) -> torch.Tensor:
        """What frames ``[start, stop)`` of the stage start from: the finished latents of the stage
        before, whose first frame is number ``first``, at twice the frame rate."""
        assert self._jump is not None, "the first stage starts from noise"
        return jump(self._jump, latents, noise, *frames, first, first_alone=first_alone)

    def _attributes(self) -> tuple[str, ...]:
        kind = self._kind
        names = (*kind.tensor_lists, *kind.tensors, *kind.counters)
        return tuple(name for name in names if hasattr(self._scheduler, name))

    def _restore(self, step_index: int, history: Mapping[str, torch.Tensor]) -> None:
        scheduler = self._scheduler
        scheduler._step_index = step_index
        for name, value in self._blank.items():
            setattr(scheduler, name, _copy(value))
        for name, tensor in history.items():
            attribute, _, position = name.partition(".")
            if attribute in self._kind.counters:
                setattr(scheduler, attribute, int(tensor))
            elif position:
                getattr(scheduler, attribute)[int(position)] = tensor
            else:
                setattr(scheduler, attribute, tensor)

    def _extract(self) -> History:
        scheduler, history = self._scheduler, {}
        for name in self._kind.tensor_lists:
            for position, tensor in enumerate(getattr(scheduler, name)):
                if tensor is not None:
                    history[f"{name}.{position}"] = tensor
        for name in self._kind.tensors:
            history[name] = getattr(scheduler, name)
        for name in self._kind.counters:
            history[name] = torch.tensor([getattr(scheduler, name)])
        return history


def set_by_size(
    scheduler: FlowMatchEulerDiscreteScheduler, steps: int, places: int, device: Any
) -> None:
    """As LTXPipeline sets its schedule: even times from 1 to 1 / steps, shifted by e^mu, where mu
    grows evenly with the latent places of a window. (That noise must grow with resolution: Esser
    et al. 2024, arXiv 2403.03206, section 5.3.2.)"""
    assert places > 0, "the schedule depends on it"
    config = scheduler.config
    low, high = config.base_image_seq_len, config.max_image_seq_len
    slope = (config.max_shift - config.base_shift) / (high - low)
    mu = places * slope + (config.base_shift - slope * low)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu, device=device)


def set_quadratic(scheduler: FlowMatchEulerDiscreteScheduler, steps: int, device: Any) -> None:
    """As LTXConditionPipeline sets its schedule. Its own step divides the time by 1000 once more,
    on the device, where a GPU may round a noise level otherwise than a CPU does."""
    times = (linear_quadratic_schedule(steps) * 1000).numpy()
    sigmas = times / scheduler.config.num_train_timesteps
    scheduler.set_timesteps(steps, device=device, sigmas=sigmas, timesteps=times)


def _keep_to(scheduler: Any, stage: Stage, shift: float) -> None:
    """Let a scheduler with as many steps as the stage has go from the stage's start to its end, its
    steps spread as over a whole schedule: evenly in the times before the flow shift."""
    # Pure noise is where the scheduler itself begins, which for some is just below 1.
    first = float(scheduler.sigmas[0]) if stage.is_first else stage.start.noise
    ends = (unshifted(sigma, shift) for sigma in (first, stage.end.noise))
    even = np.linspace(*ends, len(scheduler.timesteps) + 1)
    sigmas = torch.from_numpy(shifted(even, shift)).to(scheduler.sigmas)
    times = sigmas[:-1] * scheduler.config.num_train_timesteps
    scheduler.sigmas, scheduler.timesteps = sigmas, times.to(scheduler.timesteps)


def stage_levels(path: NoisePath, stage: Stage, steps: int) -> list[Level]:
    """The trained times that a stage's steps go through, from its start to its end, spread
    evenly."""
    return [path.at(t) for t in np.linspace(stage.start.time, stage.end.time, steps + 1)]


def _keep_to_levels(scheduler: Any, levels: Sequence[Level], *, ends_clean: bool) -> None:
    """Let a variance-preserving scheduler go through these levels and no others; ``ends_clean``:
    to an end as clean as it has without a pyramid, where trained times end with a little noise."""
    times = torch.tensor([round(level.time) for level in levels[:-1]])
    if len(times.unique()) < len(times):
        raise BadJob(f"{len(times)} steps are more than the trained times of a pyramid's stage")
    scheduler.timesteps = times.to(scheduler.timesteps)
    if not isinstance(scheduler, DDIMScheduler):
        sigmas = torch.tensor([level.ratio for level in levels]).to(scheduler.sigmas)
        if ends_clean:
            sigmas[-1] = scheduler.sigmas[-1]
        scheduler.sigmas = sigmas
        return
    # It looks a step's end up by counting back from its start: so these become all there is.
    alphas = torch.tensor([level.signal**2 for level in levels], dtype=torch.float64).flip(0)
    alphas = alphas.to(scheduler.alphas_cumprod)
    if not ends_clean:
        scheduler.final_alpha_cumprod = alphas[0]
    scheduler.alphas_cumprod = alphas[1:]
    scheduler.num_inference_steps = len(times)
    scheduler.register_to_config(num_train_timesteps=len(times))


def _copy(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value
