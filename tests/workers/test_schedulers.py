"""Stepping a range is diffusers' own step, and slices by frames exactly."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule

from accel.pyramid import FlowPath, VariancePath, lay_stages
from jobs.errors import BadJob
from jobs.model_scheduler import SCHEDULERS, VALID, check_pyramid, most_stage_steps
from jobs.spec import SchedulerName
from tests.workers.tiny_svd import SCHEDULER as SVD_SCHEDULER
from workers.schedulers import KINDS, RangeStepper, build, read_scheduler_config

CONFIG = json.loads(
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ).to_json_string()
)
DDIM_CONFIG = json.loads(
    DDIMScheduler(
        beta_schedule="linear", clip_sample=False, steps_offset=1, timestep_spacing="linspace"
    ).to_json_string()
)
EDM_CONFIG = json.loads(EulerDiscreteScheduler(**SVD_SCHEDULER).to_json_string())
#: CogVideoX-2b's, whose scheduler starts from nothing but noise.
COGVIDEOX_CONFIG = json.loads(
    CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    ).to_json_string()
)
#: LTX-Video's, whose shift grows with what the model sees.
LTX_CONFIG = json.loads(
    FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        shift_terminal=0.1,
    ).to_json_string()
)
CONFIGS = {
    "flow": CONFIG,
    "variance": DDIM_CONFIG,
    "snr_shifted": COGVIDEOX_CONFIG,
    "edm": EDM_CONFIG,
    "flow_by_size": LTX_CONFIG,
    "flow_quadratic": json.loads(FlowMatchEulerDiscreteScheduler().to_json_string()),
}
PLACES = 165  # latent places of the tests' latents
SLICES = [(0, 1), (1, 4), (4, 11)]  # odd sizes: vector loops have a rest
#: Of all kinds of diffusion.
SUPPORTED = [(diffusion, name) for diffusion, table in SCHEDULERS.items() for name in table]
each_scheduler = pytest.mark.parametrize(("diffusion", "name"), SUPPORTED)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def predictions_of(steps: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 4, 11, 3, 5, generator=generator).to(dtype) for _ in range(steps)]


def start() -> torch.Tensor:
    return torch.randn(1, 4, 11, 3, 5, generator=torch.Generator().manual_seed(9))


def noise_of(stepper: RangeStepper, step: int, a: int = 0, b: int = 11) -> torch.Tensor | None:
    """What a scheduler that adds noise is handed for some frames."""
    if not stepper.adds_noise:
        return None
    return torch.randn(1, 4, 11, 3, 5, generator=torch.Generator().manual_seed(step))[:, :, a:b]


def sliced(history: dict[str, torch.Tensor], a: int, b: int) -> dict[str, torch.Tensor]:
    return {name: t[:, :, a:b] if t.ndim == 5 else t for name, t in history.items()}


DPM_THIRD_ORDER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "solver_order": 3,
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
}


@each_dtype
@pytest.mark.parametrize(
    ("diffusion", "name", "config"),
    [*((diffusion, name, CONFIGS[diffusion]) for diffusion, name in SUPPORTED),
     ("flow", "unipc", CONFIG | {"solver_order": 1}), ("flow", "auto", DPM_THIRD_ORDER)],
    ids=[*("-".join(pair) for pair in SUPPORTED), "unipc-1", "dpm++3"],
)  # fmt: skip
def test_slices_and_diffusers_agree_at_every_step(diffusion, name, config, dtype) -> None:
    steps = 8
    stepper = RangeStepper(name, config, (steps,), diffusion=diffusion, places=PLACES)
    plain = build(name, config, None, diffusion)[1]
    if isinstance(plain, DPMSolverMultistepScheduler):
        plain = DPMSolverMultistepScheduler.from_config(dict(plain.config))
    if diffusion == "flow_by_size":
        mu = calculate_shift(PLACES, 1024, 4096, 0.95, 2.05)
        plain.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    elif diffusion == "flow_quadratic":
        plain.set_timesteps(timesteps=linear_quadratic_schedule(steps) * 1000)
    else:
        plain.set_timesteps(steps)
    if hasattr(plain, "set_begin_index"):
        plain.set_begin_index(0)
    whole, history, theirs = start(), {}, start()
    for i, prediction in enumerate(predictions_of(steps, dtype)):
        parts = [
            stepper.step_range(
                i,
                prediction[:, :, a:b],
                whole[:, :, a:b],
                sliced(history, a, b),
                noise_of(stepper, i, a, b),
            )
            for a, b in reversed(SLICES)
        ][::-1]
        noise = noise_of(stepper, i)
        whole, history = stepper.step_range(i, prediction, whole, history, noise)
        if noise is None or name == "sde-dpm++":
            given = {} if noise is None else {"variance_noise": noise}
            theirs = plain.step(prediction, plain.timesteps[i], theirs, return_dict=False, **given)[
                0
            ]
        else:  # diffusers cannot be handed it; another test has its pipeline with the same noise
            theirs = whole
        assert whole.dtype == theirs.dtype
        assert torch.equal(whole, theirs), f"step {i} is not diffusers'"
        assert torch.equal(torch.cat([latents for latents, _ in parts], dim=2), whole), i
        for key in history:
            if history[key].ndim == 5:
                assert torch.equal(torch.cat([h[key] for _, h in parts], dim=2), history[key])
    assert torch.isfinite(whole).all()


@each_scheduler
def test_nothing_hides_between_calls(diffusion: str, name: str) -> None:
    """A step gives the same after the stepper was used for something else in between."""
    stepper = RangeStepper(name, CONFIGS[diffusion], (6,), diffusion=diffusion, places=PLACES)
    runs = []
    for disturb in (False, True):
        latents, history = start(), {}
        for i, prediction in enumerate(predictions_of(6, torch.float32)):
            if disturb:
                noise = noise_of(stepper, 5 - i)
                stepper.step_range(5 - i, prediction.flip(0) * 3, latents.neg(), {}, noise)
            noise = noise_of(stepper, i)
            latents, history = stepper.step_range(i, prediction, latents, history, noise)
        runs.append(latents)
    assert torch.equal(*runs)


@each_scheduler
def test_history_matters(diffusion: str, name: str) -> None:
    """Unless a scheduler has none; so that the tests above compare something."""
    stepper = RangeStepper(name, CONFIGS[diffusion], (6,), diffusion=diffusion, places=PLACES)
    first, second = predictions_of(2, torch.float32)
    noises = [noise_of(stepper, step) for step in range(3)]
    latents, history = stepper.step_range(0, first, start(), {}, noises[0])
    # Once more: after a start from nothing but noise, what was before has no part in a step.
    latents, history = stepper.step_range(1, first, latents, history, noises[1])
    with_history = stepper.step_range(2, second, latents, history, noises[2])[0]
    without = stepper.step_range(2, second, latents, {}, noises[2])[0]
    assert torch.equal(with_history, without) == (name in ("euler", "ddim", "cogvideox-ddim"))


def test_a_shifted_schedule_has_no_pyramid() -> None:
    with pytest.raises(BadJob, match=r"cogvideox-ddim has no pyramid.*use pyramid: off"):
        check_pyramid("cogvideox-ddim", COGVIDEOX_CONFIG, "snr_shifted")
    with pytest.raises(BadJob, match=r"ddim is not for this.*auto, cogvideox-ddim, cogvideox-dpm"):
        build("ddim", COGVIDEOX_CONFIG, diffusion="snr_shifted")


@pytest.mark.parametrize("name", SCHEDULERS["flow"])
def test_flow_shift_is_set(name: str) -> None:
    plain, shifted = (build(name, CONFIG, shift)[1] for shift in (None, 7.0))
    key = SCHEDULERS["flow"][name].shift_key
    assert plain.config[key] == 3.0, "the folder's shift, whatever its scheduler calls it"
    assert shifted.config[key] == 7.0


def test_auto_is_the_folders_own() -> None:
    assert build("auto", CONFIG, None)[0] == "unipc"
    euler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0}
    assert build("auto", euler, None)[0] == "euler"
    unipc = build("unipc", euler, None)[1]
    assert (unipc.config.flow_shift, unipc.config.prediction_type) == (5.0, "flow_prediction")


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("heun", {}, "unknown scheduler 'heun'; valid: auto, unipc, euler, dpm"),
        ("auto", {"_class_name": DDIMScheduler.__name__}, "DDIMScheduler.*unipc, euler, dpm"),
        ("unipc", {"solver_order": 3}, "solver_order=3"),
        ("auto", {"thresholding": True}, "thresholding=True"),
        ("auto", {"use_flow_sigmas": False}, "use_flow_sigmas=False"),
        ("auto", {"prediction_type": "epsilon"}, "prediction_type='epsilon'"),
        (
            "auto",
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver"},
            "algorithm_type='sde-dpmsolver'.*valid: sde-dpmsolver",
        ),
        (
            "auto",
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True},
            "stochastic_sampling=True",
        ),
    ],
)
def test_what_cannot_be_sliced_is_refused_by_name(name: str, changes: dict, says: str) -> None:
    with pytest.raises(BadJob, match=says):
        build(name, CONFIG | changes, None)


@each_scheduler
def test_the_tables_are_those_of_diffusers(diffusion: str, name: str) -> None:
    """A setting that diffusers' class has, and that some scheduler is refused for, is looked at."""
    table = SCHEDULERS[diffusion]
    settings = table[name]
    kind = KINDS[settings.class_name]
    assert settings.class_name in {each.__name__ for each in kind.cls.__mro__}
    known = set(inspect.signature(kind.cls.__init__).parameters)
    refused = {setting for each in table.values() for setting in each.allowed}
    if name.endswith("dpm++"):
        refused -= {"solver_order"}  # its third order does not sum by a matrix product
    assert set(settings.allowed) == refused & known
    assert settings.shift_key in known if diffusion == "flow" else settings.shift_key is None
    assert {*settings.fixed, *settings.unsaid} <= known


@each_scheduler
def test_a_setting_that_another_scheduler_reads_is_no_matter(diffusion: str, name: str) -> None:
    table = SCHEDULERS[diffusion]
    others = {setting for each in table.values() for setting in each.allowed}
    foreign = dict.fromkeys(others - set(table[name].allowed) - {"solver_order"}, True)
    assert build(name, CONFIGS[diffusion] | foreign, None, diffusion)[0] == name


def test_a_scheduler_of_the_other_kind_is_refused() -> None:
    with pytest.raises(BadJob, match=r"ddim is not for this model.*valid: auto, unipc, euler"):
        build("ddim", CONFIG)
    says = r"cogvideox-dpm is not for this model.*valid: auto, ddim, dpm"
    with pytest.raises(BadJob, match=says):
        build("cogvideox-dpm", DDIM_CONFIG, diffusion="variance")


@pytest.mark.parametrize(
    "name",
    [n for n, s in SCHEDULERS["variance"].items() if not (s.adds_noise or s.adds_sigma)],
)
@pytest.mark.parametrize("stage", range(3))
@pytest.mark.parametrize("to_one", [True, False])
def test_a_stage_of_a_variance_schedule_ends_where_it_should(
    name: str, stage: int, to_one: bool
) -> None:
    """With the pair's own noise predicted at every step, latents go from the stage's start to its
    end: the schedulers are those of diffusers, kept to the stage's levels. The last stage ends as a
    render without a pyramid does: clean, or with the first trained time's noise, as a DDIM may."""
    steps = (3, 4, 5)
    path = VariancePath(DDIMScheduler.from_config(DDIM_CONFIG).alphas_cumprod.double().numpy())
    here = lay_stages(path, 3)[stage]
    config = DDIM_CONFIG | {"set_alpha_to_one": to_one}
    stepper = RangeStepper(name, config, steps, stage, diffusion="variance")
    clean, noise = start(), predictions_of(1, torch.float32)[0]
    latents, history = here.start.signal * clean + here.start.noise * noise, {}
    for index in range(steps[stage]):
        latents, history = stepper.step_range(index, noise, latents, history)
    left = stage < 2 or (name == "ddim" and not to_one)
    end = here.end.signal * clean + here.end.noise * noise if left else clean
    assert torch.allclose(latents, end, atol=2e-4)
    assert int(stepper.timesteps[0]) == here.start.time
    assert stepper.timesteps.dtype == torch.int64


@pytest.mark.parametrize("name", [n for n, s in SCHEDULERS["flow"].items() if not s.adds_noise])
@pytest.mark.parametrize("stage", range(3))
def test_a_stage_of_flow_matching_ends_where_it_should(name: str, stage: int) -> None:
    """With the pair's own velocity predicted at every step, as above. DPM++ starts from a sigma of
    0.9997, where diffusers keeps its logarithm finite."""
    steps = (3, 4, 5)
    here = lay_stages(FlowPath(), 3)[stage]
    stepper = RangeStepper(name, CONFIG, steps, stage)
    clean, noise = start(), predictions_of(1, torch.float32)[0]
    latents, history = here.start.signal * clean + here.start.noise * noise, {}
    for index in range(steps[stage]):
        latents, history = stepper.step_range(index, noise - clean, latents, history)
    assert torch.allclose(latents, here.end.signal * clean + here.end.noise * noise, atol=3e-3)
    assert not torch.allclose(latents, here.start.signal * clean + here.start.noise * noise)


def test_more_steps_than_trained_times_are_refused() -> None:
    with pytest.raises(BadJob, match="400 steps are more than the trained times"):
        RangeStepper("dpm++", DDIM_CONFIG, (400, 1, 1), 0, diffusion="variance")


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("shape", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_as_many_steps_as_planning_allows_have_times_of_their_own(shape: str, stages: int) -> None:
    config = DDIM_CONFIG | {"beta_schedule": shape}
    most = most_stage_steps(config, "variance", stages)
    assert most is not None
    for stage in range(stages):
        steps = [1] * stages
        steps[stage] = most
        stepper = RangeStepper("ddim", config, tuple(steps), stage, diffusion="variance")
        assert len(stepper.timesteps.unique()) == most
    with pytest.raises(BadJob, match="more than the trained times"):
        RangeStepper("ddim", config, (most + 3, *[1] * (stages - 1)), 0, diffusion="variance")


def test_a_job_can_name_every_scheduler() -> None:
    assert set(get_args(SchedulerName)) == set(VALID)


def test_a_refusal_says_which_values_are_valid() -> None:
    with pytest.raises(BadJob, match=r"solver_order=3 .*valid: 1 or 2, or name .*: euler, dpm"):
        build("unipc", CONFIG | {"solver_order": 3}, None)


def test_an_edm_schedule_starts_and_sees_as_diffusers_says() -> None:
    """Noise starts at sqrt(sigma_max^2 + 1); a model sees x / sqrt(sigma^2 + 1)."""
    stepper = RangeStepper("auto", EDM_CONFIG, (5,), diffusion="edm")
    noise = start()
    assert torch.equal(stepper.start(noise), noise * (torch.tensor(700.0) ** 2 + 1) ** 0.5)
    for step in (3, 0):
        sigma = torch.tensor(stepper.sigma(step))
        assert torch.equal(stepper.scale_input(noise, step), noise / (sigma**2 + 1) ** 0.5)
    assert stepper.sigma(0) == pytest.approx(700) and stepper.sigma(4) == pytest.approx(0.002)
    assert torch.equal(RangeStepper("auto", CONFIG, (5,)).start(noise), noise)


def test_euler_that_a_job_names_for_an_edm_model_has_its_levels() -> None:
    other = {"_class_name": "EDMEulerScheduler", "sigma_max": 80.0}
    config = build("euler", other, diffusion="edm")[1].config
    assert (config.sigma_max, config.sigma_min, config.use_karras_sigmas) == (80.0, 0.002, True)
    assert (config.prediction_type, config.timestep_type) == ("v_prediction", "continuous")


def test_config_is_read_from_the_folder(tmp_path: Path) -> None:
    with pytest.raises(BadJob, match=r"scheduler_config\.json is missing"):
        read_scheduler_config(tmp_path)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"a": 1}))
    assert read_scheduler_config(tmp_path) == {"a": 1}


@each_scheduler
def test_the_mix_is_what_diffusers_adds_noise_by(diffusion: str, name: str) -> None:
    stepper = RangeStepper(name, CONFIGS[diffusion], [8], diffusion=diffusion, places=PLACES)
    scheduler, (clean, noise) = stepper._scheduler, torch.randn(2, 1, 4, 3, 5, 5)
    for step in (0, 3, 7):
        signal, strength = stepper.mix(step)
        time = scheduler.timesteps[step : step + 1]
        if hasattr(scheduler, "scale_noise"):
            mixed = scheduler.scale_noise(clean, time, noise)
        else:
            mixed = scheduler.add_noise(clean, noise, time)
        assert torch.allclose(signal * clean + strength * noise, mixed, atol=1e-4, rtol=1e-4)
