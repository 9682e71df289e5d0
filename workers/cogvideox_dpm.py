"""CogVideoX's SDE-DPM-Solver++(2M), with the noise that it adds and its memory as its caller's.

Diffusers' ``CogVideoXDPMScheduler.step`` draws noise for the whole tensor from one generator, so
what a latent frame gets would depend on the window that it is stepped in. (It draws twice and uses
one: which of the two depends on the step, so no order of drawing could repair that.) Here a step
takes the noise; the multipliers are diffusers' own.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import CogVideoXDPMScheduler

from workers.sde_dpm import restated


class KeyedCogVideoXDPMScheduler(CogVideoXDPMScheduler):
    """`CogVideoXDPMScheduler` whose steps draw nothing."""

    old_pred_original_sample: torch.Tensor | None = None  # x_0 as the step before predicted it
    _step_index = 0  # of the step that comes; set by the caller

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        noise: torch.Tensor,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """The sample after this step. DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095), the
        second-order multistep SDE solver; in diffusers' own arithmetic and order."""
        alpha, alpha_prev = self._alphas(timestep)
        first = self._step_index == 0
        alpha_back = None if first else self.alphas_cumprod[self.timesteps[self._step_index - 1]]
        h, r, _, _ = self.get_variables(alpha, alpha_prev, alpha_back)
        mult = self.get_mult(h, r, alpha, alpha_prev, alpha_back)
        mult_noise = _mult_noise(h, alpha_prev)

        original = self._original(model_output, sample, alpha)
        old, self.old_pred_original_sample = self.old_pred_original_sample, original
        # The first step knows no other, and the last one goes to no noise at all.
        single = old is None or self._next(timestep) < 0
        denoised = original if single else mult[2] * original - mult[3] * old
        moved = mult[0] * sample - mult[1] * denoised + mult_noise * noise.to(sample.dtype)
        return (moved,)

    def noise_scale(self, step: int) -> float:
        """What step number ``step`` multiplies its noise by."""
        alpha, alpha_prev = self._alphas(self.timesteps[step])
        h, _, _, _ = self.get_variables(alpha, alpha_prev, None)
        return float(_mult_noise(h, alpha_prev))

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
        time, next_time = self.timesteps[next_step - 1], self.timesteps[next_step]
        original = self._original(told, sample.float(), self.alphas_cumprod[time])
        alpha = self.alphas_cumprod[next_time]
        kind, levels = self.config.prediction_type, (alpha**0.5, (1 - alpha) ** 0.5)
        return restated(original, after, *levels, kind).to(model_output.dtype)

    def _next(self, timestep: Any) -> Any:
        return timestep - self.config.num_train_timesteps // self.num_inference_steps

    def _alphas(self, timestep: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The cumulative alphas where the step begins and where it ends."""
        after = self._next(timestep)
        ends = self.alphas_cumprod[after] if after >= 0 else self.final_alpha_cumprod
        return self.alphas_cumprod[timestep], ends

    def _original(
        self, model_output: torch.Tensor, sample: torch.Tensor, alpha: torch.Tensor
    ) -> torch.Tensor:
        """x_0 as the model's output says it."""
        if self.config.prediction_type == "epsilon":
            return (sample - (1 - alpha) ** 0.5 * model_output) / alpha**0.5
        assert self.config.prediction_type == "v_prediction", "others are refused by name"
        return alpha**0.5 * sample - (1 - alpha) ** 0.5 * model_output


def _mult_noise(h: torch.Tensor, alpha_prev: torch.Tensor) -> torch.Tensor:
    return (1 - alpha_prev) ** 0.5 * (1 - (-2 * h).exp()) ** 0.5
