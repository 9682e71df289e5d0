"""The profile of Step Rehash (Streamlined Inference, arXiv 2411.01171): how alike the features are
that a model makes at its steps, and the key steps that follow from it. Saved as JSON and found
again by what it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs import calibration
from jobs.calibration import CalibrationKey
from jobs.errors import CannotRunHere

Similarity = NDArray[np.floating[Any]]


def key_steps(similarity_SS: Similarity, threshold: float) -> tuple[int, ...]:
    """The greedy choice of the paper's algorithm 1: a step is a key step if its features are less
    like those of the key step before it than ``threshold``; the first and the last step are."""
    steps, keys = len(similarity_SS), [0]
    for step in range(1, steps):
        if similarity_SS[step, keys[-1]] < threshold:
            keys.append(step)
    return tuple(keys) if keys[-1] == steps - 1 else (*keys, steps - 1)


def save(
    folder: Path, key: CalibrationKey, similarity_SS: Similarity, how: Mapping[str, Any]
) -> Path:
    """Write a stage's profile where ``load`` finds it; ``how`` says how it was found."""
    found = {"similarity": similarity_SS.tolist()}
    return calibration.save(folder, "rehash profile", key, found, how)


def load(folder: Path, key: CalibrationKey) -> Similarity:
    """The cosine similarities [steps, steps] that were found for ``key``. Raises CannotRunHere if
    there are none, or if they do not fit the key."""
    record, path = calibration.load(folder, "rehash profile", key)
    try:
        found: Similarity = np.array(record["similarity"], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise CannotRunHere(f"{path} holds no profile ({error}): calibrate again") from error
    if found.shape != (key.steps, key.steps) or not np.isfinite(found).all():
        raise CannotRunHere(
            f"{path} does not hold similarities of {key.steps} steps: calibrate again"
        )
    return found
