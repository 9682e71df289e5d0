"""The noise of Stable Video Diffusion: EDM's (Karras et al., arXiv 2206.00364), as a path.

EDM adds noise of deviation sigma to a clip and shows the model that sum over sqrt(sigma^2 + 1). So
the model sees signal 1 / sqrt(sigma^2 + 1) and noise sigma / sqrt(sigma^2 + 1), which preserves
variance, and what diffusers calls its `v_prediction` is the velocity of that.
"""

from __future__ import annotations

import math

import numpy as np

from accel.pyramid import Level

#: Of ln sigma in training (Stable Video Diffusion, arXiv 2311.15127, image to video), and its ends.
MEAN, DEVIATION = 0.7, 1.6
LOWEST, HIGHEST = math.log(0.002), math.log(700.0)
#: The share of clips whose ln sigma is drawn evenly, so that no step of a render is unknown.
UNIFORM = 0.2


class EdmPath:
    """Times are what the model is told: ln(sigma) / 4."""

    last = HIGHEST / 4

    def at(self, time: float) -> Level:
        """What the model is shown at a time."""
        sigma = math.exp(4 * time)
        signal = 1 / math.hypot(sigma, 1)
        return Level(time, signal, sigma * signal)

    def of_ratio(self, ratio: float) -> Level:
        """Where sigma is so large."""
        return self.at(math.log(ratio) / 4)

    def draw(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Times for training."""
        normal = np.clip(rng.normal(MEAN, DEVIATION, batch), LOWEST, HIGHEST)
        even = rng.uniform(LOWEST, HIGHEST, batch)
        return np.where(rng.uniform(size=batch) < UNIFORM, even, normal) / 4
