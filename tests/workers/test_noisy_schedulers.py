"""Schedulers that add noise at each step: it is handed to them, and a skipped step knows of it."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXDPMScheduler
from diffusers.schedulers import scheduling_dpm_cogvideox

from jobs.model_scheduler import SCHEDULERS, folder_scheduler
from tests.workers.test_schedulers import (
    COGVIDEOX_CONFIG,
    CONFIG,
    CONFIGS,
    SUPPORTED,
    each_dtype,
    each_scheduler,
    noise_of,
    predictions_of,
    start,
)
from workers.schedulers import RangeStepper


@each_dtype
@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("steps", [8, 6])  # that divide the trained times, and that do not
def test_noise_that_is_handed_in_is_all_that_differs(
    dtype, prediction_type: str, steps: int, monkeypatch
) -> None:
    """CogVideoX's stochastic scheduler, as its pipeline calls it, with the noise that ours gets in
    the place of the noise that it draws. 5b's settings."""
    config = COGVIDEOX_CONFIG | {
        "_class_name": "CogVideoXDPMScheduler",
        "prediction_type": prediction_type,
        "snr_shift_scale": 1.0,
        "rescale_betas_zero_snr": prediction_type == "v_prediction",
    }
    stepper = RangeStepper("auto", config, (steps,), diffusion="snr_shifted")
    assert stepper.name == "cogvideox-dpm" and stepper.adds_noise
    plain = CogVideoXDPMScheduler.from_config(config)
    plain.set_timesteps(steps)
    ours, theirs, history, old = start().to(dtype), start().to(dtype), {}, None
    for i, prediction in enumerate(predictions_of(steps, torch.float32)):
        noise = noise_of(stepper, i)
        ours, history = stepper.step_range(i, prediction, ours, history, noise)
        drawn = lambda shape, dtype, noise=noise, **k: noise.to(dtype)  # noqa: E731
        monkeypatch.setattr(scheduling_dpm_cogvideox, "randn_tensor", drawn)
        back = plain.timesteps[i - 1] if i else None
        theirs, old = plain.step(prediction, old, plain.timesteps[i], back, theirs)
        assert torch.equal(ours, theirs), f"step {i} is not diffusers'"
        ours, theirs = ours.to(dtype), theirs.to(dtype)
    assert torch.isfinite(ours).all() and ours.float().std() > 0.1


def test_noise_is_added_at_every_step_but_the_last() -> None:
    config = COGVIDEOX_CONFIG | {"_class_name": "CogVideoXDPMScheduler"}
    stepper = RangeStepper("auto", config, (8,), diffusion="snr_shifted")
    latents, history = start(), {}
    for i, prediction in enumerate(predictions_of(8, torch.float32)):
        noise = noise_of(stepper, i)
        other = stepper.step_range(i, prediction, latents, history, noise.neg())[0]
        latents, history = stepper.step_range(i, prediction, latents, history, noise)
        assert torch.equal(latents, other) == (i == 7)


NOISY = [pair for pair in SUPPORTED if SCHEDULERS[pair[0]][pair[1]].adds_noise]


@pytest.mark.parametrize(("diffusion", "name"), NOISY)
def test_the_scale_of_a_steps_noise_is_known(diffusion, name) -> None:
    stepper = RangeStepper(name, CONFIGS[diffusion], (8,), diffusion=diffusion)
    latents, history = start().double(), {}
    for i, prediction in enumerate(predictions_of(8, torch.float64)):
        noise = noise_of(stepper, i).double()
        steps = [stepper.step_range(i, prediction, latents, history, n * noise) for n in (0, 1)]
        added = steps[1][0] - steps[0][0]
        torch.testing.assert_close(added, stepper.noise_scale(i) * noise, rtol=1e-6, atol=1e-9)
        latents, history = steps[1]
    assert stepper.noise_scale(0) > 0.1 and stepper.noise_scale(7) == 0


PREDICTS = [
    (*pair, kind)
    for pair in NOISY
    for kind in (("flow_prediction",) if pair[0] == "flow" else ("epsilon", "v_prediction"))
]


@pytest.mark.parametrize(("diffusion", "name", "prediction_type"), PREDICTS)
def test_what_stands_in_for_a_prediction_says_the_same_clean_film(
    diffusion, name, prediction_type
) -> None:
    """``stepper.mix`` says how clean film and noise make latents."""
    config = CONFIGS[diffusion] | {"prediction_type": prediction_type}
    stepper = RangeStepper(name, config, (8,), diffusion=diffusion)
    told, before, latents = predictions_of(3, torch.float32)
    renewed = stepper.renewed(3, told, before, latents)

    def clean(step: int, prediction: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        signal, noise = stepper.mix(step)
        if prediction_type == "flow_prediction":
            return x - noise * prediction
        if prediction_type == "epsilon":
            return (x - noise * prediction) / signal
        return signal * x - noise * prediction

    torch.testing.assert_close(
        clean(2, told, before), clean(3, renewed, latents), rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(renewed, told)


@pytest.mark.parametrize("diffusion", ["flow", "variance"])
def test_a_folders_own_algorithm_tells_whether_noise_is_added(diffusion) -> None:
    for algorithm, name in (("dpmsolver++", "dpm++"), ("sde-dpmsolver++", "sde-dpm++")):
        config = CONFIGS[diffusion] | {
            "_class_name": "DPMSolverMultistepScheduler",
            "algorithm_type": algorithm,
            "use_flow_sigmas": diffusion == "flow",
        }
        assert RangeStepper("auto", config, (4,), diffusion=diffusion).name == name
        for asked in ("dpm++", "sde-dpm++"):  # a job's choice stands over the folder's
            stepper = RangeStepper(asked, config, (4,), diffusion=diffusion)
            assert stepper.adds_noise == (asked == "sde-dpm++")


@each_scheduler
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_an_algorithm_is_no_matter_to_schedulers_of_other_classes(
    diffusion, name, algorithm
) -> None:
    """Diffusers keeps it in the config of a scheduler that is made of another's."""
    settings = SCHEDULERS[diffusion][name]
    if settings.class_name == "DPMSolverMultistepScheduler":
        return
    config = CONFIGS[diffusion] | {
        "_class_name": settings.class_name, "algorithm_type": algorithm
    }  # fmt: skip
    assert folder_scheduler(config, diffusion) == name


def test_a_prediction_stands_in_as_it_is_where_no_noise_was_added() -> None:
    stepper = RangeStepper("euler", CONFIG, (8,))
    told, before, latents = predictions_of(3, torch.float32)
    assert stepper.renewed(3, told, before, latents) is told
