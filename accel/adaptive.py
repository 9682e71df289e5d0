"""AdaptiveDiffusion: skip a model call where the latents change evenly (arXiv 2410.09873).

The scheduler's step is never skipped: a skipped step takes the tile's last prediction in place of
a new one. A decision looks at one tile's own latents, so a window where little happens skips more
than a busy one; what it looks back at goes with the tile.

Notation: x_s are the latents at the beginning of step s, d_s = x_s - x_(s-1). The paper counts
down; here steps count up. Its condition to compute step s is
||d_s - 2 d_(s-1) + d_(s-2)|| >= threshold * ||d_(s-1)|| (its section 3.3).

Where the scheduler adds noise (SDE-DPM-Solver), the paper asks a second estimator, of the scaled
noise, too, and computes if either says so. Read to the letter neither could ever skip: draws that
are independent never change evenly, alone or within the latents. Here the first looks at d_s
without the step's noise, which is known; and the second at the sizes of the noise, which are its
scales: they belong to the schedule, so no seed changes what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from accel.handle import TileStep
from jobs.accelerations import LOOKS_BACK, Adaptive

#: Where a tile keeps the latents of the last steps but one and two, and its skips in a row.
_BEFORE = ("adaptive.latents.1", "adaptive.latents.2")
_SKIPS = "adaptive.skips"


@dataclass(frozen=True, slots=True)
class Noise:
    """What a stochastic scheduler added at the end of a step: ``scale`` times ``drawn``."""

    scale: float
    drawn: torch.Tensor  # standard normal, of the latents' shape


def skips(
    config: Adaptive,
    tile: TileStep,
    latents: torch.Tensor,
    before: torch.Tensor | None,
    added: Sequence[Noise] = (),
) -> bool:
    """Whether a tile's step can do without the model; keeps in ``tile`` what its next one asks.

    ``latents`` [B, C, T, H, W] are those at the beginning of the step, ``before`` those at the
    beginning of the step before it, None for a stage's first. ``added``: at the end of each of the
    last three steps, newest first; nothing by a deterministic scheduler.
    """
    trail = [before, *(tile.carried.get(name) for name in _BEFORE)]
    known = [latents, *(each for each in trail if each is not None)]
    row = int(tile.carried[_SKIPS]) if _SKIPS in tile.carried else 0
    skip = (
        tile.unit.step in config.may_skip(tile.steps)
        and row < config.most_skips
        and changes_evenly(config, known, added)
    )
    for name, kept in zip(_BEFORE, known[1:], strict=False):
        tile.kept[name] = kept
    tile.kept[_SKIPS] = torch.tensor([row + 1 if skip else 0])
    tile.engaged["adaptive.skipped" if skip else "adaptive.computed"] += 1
    return skip


def changes_evenly(
    config: Adaptive, latents: Sequence[torch.Tensor], added: Sequence[Noise] = ()
) -> bool:
    """The criterion on x_s, x_(s-1), x_(s-2), x_(s-3), newest first; both of them if noise was
    ``added``."""
    assert len(added) in (0, LOOKS_BACK)
    trail = [each.float() for each in latents]
    changes = [newer - older for newer, older in pairwise(trail)]
    if not added:
        return _evenly(config, changes)
    quiet = [change - each.scale * each.drawn for change, each in zip(changes, added, strict=True)]
    scales = [torch.tensor([each.scale]) for each in added]
    return _evenly(config, quiet) and _evenly(config, scales)


def _evenly(config: Adaptive, changes: Sequence[torch.Tensor]) -> bool:
    newest, middle, oldest = changes
    if config.form == "scalar":
        a, b, c = (float(change.abs().mean()) for change in (newest, middle, oldest))
        return abs((a + c) / 2 - b) <= config.threshold * b
    third = torch.linalg.vector_norm(newest - 2 * middle + oldest)
    return bool(third < config.threshold * torch.linalg.vector_norm(middle))
