"""How far two films lie apart: PSNR and SSIM of each frame, and of the worst one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from skimage.metrics import structural_similarity

#: The window of the first description of SSIM (Wang et al. 2004), as most papers report it.
_SSIM = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


@dataclass(frozen=True, slots=True)
class Fidelity:
    """A film against its reference, frame by frame.

    ``squared_error_F`` is the mean square, in levels of 255 (0 where frames are equal), and
    ``ssim_F`` the structural similarity (1 where they are).
    """

    squared_error_F: np.ndarray
    ssim_F: np.ndarray

    def summary(self, start: int = 0, stop: int | None = None) -> dict[str, Any]:
        """Over frames ``[start, stop)``, if not the whole film, and at the worst of them, which are
        counted in the film; a PSNR is None where all is equal."""
        error_F, ssim_F = self.squared_error_F[start:stop], self.ssim_F[start:stop]
        worst, unlike = int(error_F.argmax()), int(ssim_F.argmin())
        return {
            "frames": len(ssim_F),
            "equal_frames": int((error_F == 0).sum()),
            "psnr_db": psnr_db(float(error_F.mean())),
            "worst_psnr_db": psnr_db(float(error_F[worst])),
            "worst_psnr_frame": start + worst,
            "ssim": float(ssim_F.mean()),
            "worst_ssim": float(ssim_F[unlike]),
            "worst_ssim_frame": start + unlike,
        }


def psnr_db(squared_error: float) -> float | None:
    """Of 8-bit frames with this mean squared difference; None if they are equal."""
    return 10 * math.log10(255**2 / squared_error) if squared_error else None


def compare(film: Iterable[np.ndarray], reference: Iterable[np.ndarray]) -> Fidelity:
    """Two films, frame by frame; each frame is uint8 [H, W, 3]. Raises ValueError if they differ in
    length or size, or if their frames are too small for SSIM (11 pixels)."""
    errors, similarities = [], []
    for frame, other in zip_longest(film, reference):
        if frame is None or other is None:
            shorter = "film" if frame is None else "reference"
            raise ValueError(f"the {shorter} ends after {len(errors)} frames, the other goes on")
        if frame.shape != other.shape:
            raise ValueError(
                f"frame {len(errors)} is {frame.shape[1]}x{frame.shape[0]}, and "
                f"{other.shape[1]}x{other.shape[0]} in the reference"
            )
        errors.append(float(((frame.astype(np.float64) - other) ** 2).mean()))
        similarities.append(
            structural_similarity(frame, other, channel_axis=2, data_range=255, **_SSIM)
        )
    if not errors:
        raise ValueError("there are no frames to compare")
    return Fidelity(np.array(errors), np.array(similarities))
