"""How much a step brings, as SeaCache measures it (arXiv 2602.18993): latents are looked at through
the filter that best finds the clean signal in their noise (Wiener's), and what is seen is compared.

So noise that a sampler takes away is not mistaken for a film that changes. The clean signal's power
is taken to fall with the third power of frequency, along each of time, height and width; the
response has a mean of one (the paper's equation 7). Diffusers has the method as a cache, whose
state stays in the model; here the decision goes with the tile.
"""

from __future__ import annotations

import torch

#: Signal and noise of latents: x = signal * clean + noise * e.
Mix = tuple[float, float]

#: The clean signal's power falls with frequency to this power; so the paper for video.
POWER = 3.0

#: Against division by zero: at pure noise, and at frequency 0.
_LEAST, _TINY = 1e-6, 1e-16


def seen(latents: torch.Tensor, mix: Mix) -> torch.Tensor:
    """Latents [B, C, T, H, W] through the filter for their mix; float32."""
    signal, noise = (max(each, _LEAST) for each in mix)
    axes = (2, 3, 4)
    gain = torch.ones((), device=latents.device)
    for axis in axes:
        frequency = torch.fft.fftfreq(latents.shape[axis], device=latents.device)
        power = 1 / (frequency.abs() ** POWER + _TINY)
        along = signal * power / (signal**2 * power + noise**2 + _TINY)
        gain = gain * along.view([-1 if n == axis else 1 for n in range(5)])
    spectrum = torch.fft.fftn(latents.float(), dim=axes)
    return torch.fft.ifftn(spectrum * (gain / gain.mean()), dim=axes).real


def change(now: torch.Tensor, before: torch.Tensor, mix_now: Mix, mix_before: Mix) -> float:
    """Mean change of what is seen from one step's latents to the next one's, over its mean size."""
    new, old = seen(now, mix_now), seen(before, mix_before)
    return float((new - old).abs().mean() / (old.abs().mean() + _TINY))
