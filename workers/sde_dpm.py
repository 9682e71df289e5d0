"""Diffusers' SDE-DPM-Solver++, with the noise that it adds as its caller's.

``DPMSolverMultistepScheduler`` has both, the deterministic solver and this one; its step draws
noise for the whole tensor unless it is handed some. The arithmetic is its own.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler


class KeyedDPMSolverMultistepScheduler(DPMSolverMultistepScheduler):
    """`DPMSolverMultistepScheduler` whose steps draw nothing."""

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample after this step. ``noise`` [of the sample's shape] where the solver adds some
        (Lu et al. 2022, arXiv 2211.01095, appendix)."""
        assert (noise is not None) == str(self.config.algorithm_type).startswith("sde")
        return super().step(
            model_output, timestep, sample, variance_noise=noise, return_dict=return_dict
        )

    def noise_scale(self, step: int) -> float:
        """What step number ``step`` multiplies its noise by."""
        (alpha, sigma), (alpha_next, sigma_next) = self._levels(step), self._levels(step + 1)
        shrunk = (sigma_next * alpha / (alpha_next * sigma)) ** 2  # exp(-2h)
        return float(sigma_next * (1 - shrunk) ** 0.5)

    def renewed(
        self,
        model_output: torch.Tensor,
        sample: torch.Tensor,
        next_sample: torch.Tensor,
        next_step: int,
    ) -> torch.Tensor:
        """The model's output that says the same x_0 of the next sample as ``model_output``, of the
        step before ``next_step``, says of this one: an output also says which noise a sample holds,
        and that is another one now."""
        told, after = model_output.float(), next_sample.float()
        self._step_index = next_step - 1
        original = self.convert_model_output(told, sample=sample.float())
        alpha, sigma = self._levels(next_step)
        output = restated(original, after, alpha, sigma, self.config.prediction_type)
        return output.to(model_output.dtype)

    def _levels(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Signal and noise where a step begins."""
        return self._sigma_to_alpha_sigma_t(self.sigmas[step])


def restated(
    original: torch.Tensor,
    sample: torch.Tensor,
    signal: torch.Tensor,
    noise: torch.Tensor,
    prediction_type: str,
) -> torch.Tensor:
    """The model's output that says x_0 = ``original`` of a sample of so much signal and noise."""
    if prediction_type == "epsilon":
        return (sample - signal * original) / noise
    if prediction_type == "v_prediction":
        return (signal * sample - original) / noise
    assert prediction_type == "flow_prediction", "others are refused by name"
    return (sample - original) / noise
