"""Which schedulers are supported, and with which settings. Plain data, checked before a render.

A shot's latents are split over workers, so a scheduler must act on each place by itself, and what
noise it adds must be handed to it; whatever is not so is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.errors import BadJob
from jobs.families.family import Diffusion

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """A supported scheduler: diffusers' class, and what of its config matters here.

    ``fixed`` holds where a job names the scheduler; of the folder's own scheduler it fills gaps.
    ``unsaid`` holds where a job names it for a folder of another scheduler that does not say.
    ``allowed`` says of a setting which values can be split over workers, and which those are.
    """

    class_name: str
    adds_noise: bool = False  # at every step
    adds_sigma: bool = False  # latents are x_0 + sigma * e, which the model sees scaled
    shift_key: str | None = None  # what it calls the flow shift
    fixed: Mapping[str, Any] = field(default_factory=dict)
    unsaid: Mapping[str, Any] = field(default_factory=dict)
    allowed: Mapping[str, Allowed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Allowed:
    """The values of a setting that are supported; ``says`` names them."""

    says: str
    test: Callable[[Any], bool]


_OFF = Allowed("false", lambda value: not value)
_ON = Allowed("true", bool)
_NONE = Allowed("null", lambda value: value is None)
_FLOW = Allowed("flow_prediction", lambda value: value == "flow_prediction")
_NOISE = Allowed("epsilon or v_prediction", lambda value: value in ("epsilon", "v_prediction"))

_FLOW_SCHEDULERS: dict[str, SchedulerSettings] = {
    "unipc": SchedulerSettings(
        class_name="UniPCMultistepScheduler",
        shift_key="flow_shift",
        fixed={"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
        allowed={
            # The third order sums over history by a matrix product, whose rounding depends on
            # how many places it is given.
            "solver_order": Allowed("1 or 2", lambda value: value in (1, 2)),
            "solver_p": _NONE,
            "thresholding": _OFF,
            "use_dynamic_shifting": _OFF,
            "use_flow_sigmas": _ON,
            "prediction_type": _FLOW,
        },
    ),
    "euler": SchedulerSettings(
        class_name="FlowMatchEulerDiscreteScheduler",
        shift_key="shift",
        allowed={"stochastic_sampling": _OFF, "use_dynamic_shifting": _OFF},
    ),
    "dpm++": SchedulerSettings(
        class_name="DPMSolverMultistepScheduler",
        shift_key="flow_shift",
        fixed={
            "use_flow_sigmas": True,
            "prediction_type": "flow_prediction",
            "algorithm_type": "dpmsolver++",
            "solver_type": "midpoint",
            "solver_order": 2,
        },
        allowed={
            "algorithm_type": Allowed(
                "dpmsolver++ or dpmsolver", lambda value: not str(value).startswith("sde")
            ),
            "thresholding": _OFF,
            "use_dynamic_shifting": _OFF,
            "use_flow_sigmas": _ON,
            "prediction_type": _FLOW,
        },
    ),
}


def _stochastic(settings: SchedulerSettings) -> SchedulerSettings:
    """The SDE solver of the same class."""
    only = Allowed("sde-dpmsolver++", lambda value: value == "sde-dpmsolver++")
    return replace(
        settings,
        adds_noise=True,
        fixed={**settings.fixed, "algorithm_type": "sde-dpmsolver++"},
        allowed={**settings.allowed, "algorithm_type": only},
    )


_DPM, _UNIPC = _FLOW_SCHEDULERS["dpm++"], _FLOW_SCHEDULERS["unipc"]
_FLOW_SCHEDULERS["sde-dpm++"] = _stochastic(_DPM)
_VARIANCE_SCHEDULERS: dict[str, SchedulerSettings] = {
    # Its noise (eta) is a step's argument, which is never given: each step is deterministic.
    "ddim": SchedulerSettings(
        class_name="DDIMScheduler",
        unsaid={"clip_sample": False},  # it would clip latents as if they were pixels
        allowed={"thresholding": _OFF, "rescale_betas_zero_snr": _OFF, "prediction_type": _NOISE},
    ),
    "dpm++": replace(
        _DPM,
        shift_key=None,
        fixed={
            "algorithm_type": "dpmsolver++",
            "solver_type": "midpoint",
            "solver_order": 2,
            "use_flow_sigmas": False,
        },
        allowed={
            **_DPM.allowed,
            "use_flow_sigmas": _OFF,
            "rescale_betas_zero_snr": _OFF,
            "prediction_type": _NOISE,
        },
    ),
    "unipc": replace(
        _UNIPC,
        shift_key=None,
        fixed={"use_flow_sigmas": False},
        allowed={
            **_UNIPC.allowed,
            "use_flow_sigmas": _OFF,
            "rescale_betas_zero_snr": _OFF,
            "prediction_type": _NOISE,
        },
    ),
    # Its noise (churn) is a step's argument, which is never given: each step is deterministic.
    "euler": SchedulerSettings(
        class_name="EulerDiscreteScheduler",
        adds_sigma=True,
        allowed={"rescale_betas_zero_snr": _OFF, "prediction_type": _NOISE},
    ),
}
_VARIANCE_SCHEDULERS["sde-dpm++"] = _stochastic(_VARIANCE_SCHEDULERS["dpm++"])

_EDM_SCHEDULERS: dict[str, SchedulerSettings] = {
    # Its noise (churn) is a step's argument, which is never given: each step is deterministic.
    "euler": SchedulerSettings(
        class_name="EulerDiscreteScheduler",
        adds_sigma=True,
        unsaid={  # Stable Video Diffusion's
            "prediction_type": "v_prediction",
            "timestep_type": "continuous",
            "use_karras_sigmas": True,
            "sigma_min": 0.002,
            "sigma_max": 700.0,
        },
    ),
}

_SNR_SHIFTED_SCHEDULERS: dict[str, SchedulerSettings] = {
    name: SchedulerSettings(
        class_name=class_name, adds_noise=adds_noise, allowed={"prediction_type": _NOISE}
    )
    for name, class_name, adds_noise in (
        ("cogvideox-ddim", "CogVideoXDDIMScheduler", False),
        ("cogvideox-dpm", "CogVideoXDPMScheduler", True),
    )
}

_FLOW_BY_SIZE_SCHEDULERS: dict[str, SchedulerSettings] = {
    "euler": SchedulerSettings(
        class_name="FlowMatchEulerDiscreteScheduler",
        allowed={
            "stochastic_sampling": _OFF,
            "use_dynamic_shifting": Allowed(
                "true; of LTX-Video from 0.9.5 on it is false: for that, let _class_name in "
                "model_index.json be LTXConditionPipeline",
                bool,
            ),
        },
    ),
}

_FLOW_QUADRATIC_SCHEDULERS: dict[str, SchedulerSettings] = {
    "euler": SchedulerSettings(
        class_name="FlowMatchEulerDiscreteScheduler",
        allowed={
            "stochastic_sampling": _OFF,
            "use_dynamic_shifting": _OFF,
            # What changes noise levels leaves the times that the pipeline names as they were.
            "shift": Allowed("1", lambda value: value == 1),
            "shift_terminal": _NONE,
            "use_karras_sigmas": _OFF,
            "use_exponential_sigmas": _OFF,
            "use_beta_sigmas": _OFF,
            "invert_sigmas": _OFF,
        },
    ),
}

#: The supported schedulers of each kind of diffusion.
SCHEDULERS: dict[Diffusion, dict[str, SchedulerSettings]] = {
    "flow": _FLOW_SCHEDULERS,
    "variance": _VARIANCE_SCHEDULERS,
    "edm": _EDM_SCHEDULERS,
    "snr_shifted": _SNR_SHIFTED_SCHEDULERS,
    "flow_by_size": _FLOW_BY_SIZE_SCHEDULERS,
    "flow_quadratic": _FLOW_QUADRATIC_SCHEDULERS,
}

#: Those whose schedule can be divided among the stages of a pyramid, but for schedulers that add
#: sigma: a jump is between latents that keep their variance, or a flow's.
WITH_PYRAMID: tuple[Diffusion, ...] = ("flow", "variance")

#: All names that a job may use.
VALID = ("auto", *dict.fromkeys(name for table in SCHEDULERS.values() for name in table))

#: Settings that shape a schedule as a whole, and their values that do not.
_WHOLE_SCHEDULE: dict[str, tuple[Any, ...]] = {
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "shift_terminal": (None,),
    "invert_sigmas": (False, None),
    "final_sigmas_type": ("zero",),
}


def choose_scheduler(name: str, config: Config, diffusion: Diffusion) -> str:
    """The scheduler that a job's choice means for a folder's scheduler config. Raises BadJob."""
    own, known = folder_scheduler(config, diffusion), SCHEDULERS[diffusion]
    if name == "auto" and own is None:
        raise BadJob(
            f"the model's scheduler is {config.get('_class_name')}, which cannot be split over "
            f"workers; name one in the job: {', '.join(known)}"
        )
    chosen = own if name == "auto" else name
    if chosen not in VALID:
        raise BadJob(f"unknown scheduler '{chosen}'; valid: {', '.join(('auto', *known))}")
    if chosen not in known:
        raise BadJob(
            f"scheduler {chosen} is not for this model's kind of diffusion; valid: "
            f"{', '.join(('auto', *known))}"
        )
    _check_settings(chosen, dict(config) | overrides(chosen, config, diffusion), diffusion)
    return chosen


def check_pyramid(name: str, config: Config, diffusion: Diffusion) -> None:
    """Refuse settings that shape a whole schedule where a stage has only a part of one. Raises
    BadJob."""
    if diffusion not in WITH_PYRAMID:
        raise BadJob(f"scheduler {name} has no pyramid: it is not built yet; use pyramid: off")
    if SCHEDULERS[diffusion][name].adds_sigma:
        others = [n for n, each in SCHEDULERS[diffusion].items() if not each.adds_sigma]
        raise BadJob(
            f"scheduler {name} has no pyramid: it is not built yet; use pyramid: off, or another "
            f"scheduler, in the job or the model's folder: {', '.join(others)}"
        )
    settings = dict(config) | overrides(name, config, diffusion)
    for setting, plain in _WHOLE_SCHEDULE.items():
        if setting in settings and settings[setting] not in plain:
            raise BadJob(
                f"scheduler {name} with {setting}={settings[setting]!r} cannot be divided among "
                f"the stages of a pyramid; use pyramid: off, or a model folder with "
                f"{setting}={json.dumps(plain[0])}"
            )


def most_stage_steps(config: Config, diffusion: Diffusion, stages: int) -> int | None:
    """Steps that each stage of a pyramid has trained times for, where it goes through those: a
    stage has its share of them, if not a few more."""
    if diffusion != "variance":
        return None
    return int(config.get("num_train_timesteps", 1000)) // stages - 1


def folder_scheduler(config: Config, diffusion: Diffusion) -> str | None:
    """The name of the folder's own scheduler; None if it is not supported."""
    return next((name for name, each in SCHEDULERS[diffusion].items() if _is(each, config)), None)


def _is(settings: SchedulerSettings, config: Config) -> bool:
    """One class of diffusers is two schedulers: what adds noise calls its algorithm sde-... Others
    keep such a setting where they were made of that class, and do not read it."""
    if settings.class_name != config.get("_class_name"):
        return False
    algorithm = config.get("algorithm_type", "")
    two = "algorithm_type" in settings.allowed and algorithm
    return not two or str(algorithm).startswith("sde") == settings.adds_noise


def overrides(name: str, config: Config, diffusion: Diffusion) -> dict[str, Any]:
    """What is set beside the folder's config: its own settings stand for its own scheduler."""
    settings = SCHEDULERS[diffusion][name]
    if name != folder_scheduler(config, diffusion):
        return {key: config.get(key, value) for key, value in settings.unsaid.items()} | dict(
            settings.fixed
        )
    return {key: value for key, value in settings.fixed.items() if key not in config}


def folder_shift(config: Config, diffusion: Diffusion) -> float | None:
    """The folder's flow shift, whatever its own scheduler calls it."""
    own = folder_scheduler(config, diffusion)
    key = None if own is None else SCHEDULERS[diffusion][own].shift_key
    return None if key is None else config.get(key)


def _check_settings(name: str, config: Config, diffusion: Diffusion) -> None:
    known = SCHEDULERS[diffusion]
    for setting, allowed in known[name].allowed.items():
        if setting in config and not allowed.test(config[setting]):
            others = ", ".join(each for each in known if each != name)
            another = f", or name another scheduler in the job: {others}" if others else ""
            raise BadJob(
                f"scheduler {name} with {setting}={config[setting]!r} is not supported for this "
                f"model's kind of diffusion ({diffusion}), split over workers; "
                f"valid: {allowed.says}{another}"
            )
