"""Which schedulers are supported, and with which settings. Plain data, checked before a render.

A shot's latents are split over workers, so a scheduler must be deterministic and act on each
place by itself; whatever is not so is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import BadJob

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """A supported scheduler: diffusers' class, and what of its config matters here.

    ``fixed`` holds where a job names the scheduler; of the folder's own scheduler it fills gaps.
    ``allowed`` says of a setting which values can be split over workers, and which those are.
    """

    class_name: str
    shift_key: str  # what it calls the flow shift
    fixed: Mapping[str, Any] = field(default_factory=dict)
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

SCHEDULERS: dict[str, SchedulerSettings] = {
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

VALID = ("auto", *SCHEDULERS)

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


def choose_scheduler(name: str, config: Config) -> str:
    """The scheduler that a job's choice means for a folder's scheduler config. Raises BadJob."""
    own = folder_scheduler(config)
    if name == "auto" and own is None:
        raise BadJob(
            f"the model's scheduler is {config.get('_class_name')}, which cannot be split over "
            f"workers; name one in the job: {', '.join(SCHEDULERS)}"
        )
    chosen = own if name == "auto" else name
    if chosen not in SCHEDULERS:
        raise BadJob(f"unknown scheduler '{chosen}'; valid: {', '.join(VALID)}")
    _check_settings(chosen, dict(config) | overrides(chosen, config))
    return chosen


def check_pyramid(name: str, config: Config) -> None:
    """Refuse settings that shape a whole schedule where a stage has only a part of one. Raises
    BadJob."""
    settings = dict(config) | overrides(name, config)
    for setting, plain in _WHOLE_SCHEDULE.items():
        if setting in settings and settings[setting] not in plain:
            raise BadJob(
                f"scheduler {name} with {setting}={settings[setting]!r} cannot be divided among "
                f"the stages of a pyramid; use pyramid: off, or a model folder with "
                f"{setting}={json.dumps(plain[0])}"
            )


def folder_scheduler(config: Config) -> str | None:
    """The name of the folder's own scheduler; None if it is not supported."""
    found = config.get("_class_name")
    return next((name for name, each in SCHEDULERS.items() if each.class_name == found), None)


def overrides(name: str, config: Config) -> dict[str, Any]:
    """What is set beside the folder's config: its own settings stand for its own scheduler."""
    fixed = SCHEDULERS[name].fixed
    if name != folder_scheduler(config):
        return dict(fixed)
    return {key: value for key, value in fixed.items() if key not in config}


def folder_shift(config: Config) -> float | None:
    """The folder's flow shift, whatever its own scheduler calls it."""
    own = folder_scheduler(config)
    return None if own is None else config.get(SCHEDULERS[own].shift_key)


def _check_settings(name: str, config: Config) -> None:
    for setting, allowed in SCHEDULERS[name].allowed.items():
        if setting in config and not allowed.test(config[setting]):
            others = ", ".join(each for each in SCHEDULERS if each != name)
            raise BadJob(
                f"scheduler {name} with {setting}={config[setting]!r} is not supported: only "
                "deterministic flow schedulers that can be split over workers are; valid: "
                f"{allowed.says}, or name another scheduler in the job: {others}"
            )
