"""AdaptiveDiffusion: skip a model call where the latents change evenly (arXiv 2410.09873).

The scheduler's step is never skipped: a skipped step takes the tile's last prediction in place of
a new one, or what lies on the line through its last two. A decision looks at one tile's own
latents, so a window where little happens skips more than a busy one; what it looks back at goes
with the tile.

Notation: x_s are the latents at the beginning of step s, d_s = x_s - x_(s-1). The paper counts
down; here steps count up. Its condition to compute step s is
||d_s - 2 d_(s-1) + d_(s-2)|| >= threshold * ||d_(s-1)|| (its section 3.3).

Where the scheduler adds noise (SDE-DPM-Solver), the paper asks a second estimator, of the scaled
noise, too, and computes if either says so. Read to the letter neither could ever skip: draws that
are independent never change evenly, alone or within the latents. Here the first looks at d_s
without the step's noise, which is known; and the second at the sizes of the noise, which are its
scales: they belong to the schedule, so no seed changes what it says.

The scalar form is the criterion of the paper's released code, on mean sizes of changes. That code
always runs its first four steps and knows nothing of the noise before the first; here ``first``
says how many run, three at least, and that noise is the oldest of the latents looked back at.

The spectral form is a younger method's (``accel/spectral.py``): compute step s if the changes of
what is seen, summed from the step after the last one that was computed, reach the threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from accel.handle import TileStep
from accel.spectral import Mix, change
from jobs.accelerations import LOOKS_BACK, Adaptive

#: Where a tile keeps the latents of the last steps but one and two, its skips in a row, the change
#: that these add up to, and the last two predictions that were computed, with their steps.
_BEFORE = ("adaptive.latents.1", "adaptive.latents.2")
_SKIPS, _CHANGE = "adaptive.skips", "adaptive.change"
_LATEST, _FORMER, _STEPS = "adaptive.latest", "adaptive.former", "adaptive.steps"


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
    mix: Callable[[int], Mix],
    added: Sequence[Noise] = (),
) -> bool:
    """Whether a tile's step can do without the model; keeps in ``tile`` what its next one asks.

    ``latents`` [B, C, T, H, W] are those at the beginning of the step, ``before`` those at the
    beginning of the step before it, None for a stage's first; ``mix`` says what a step's latents
    are of signal and noise. ``added``: at the end of each of the last three steps, newest first;
    nothing by a deterministic scheduler.
    """
    row = int(tile.carried[_SKIPS]) if _SKIPS in tile.carried else 0
    may = tile.unit.step in config.may_skip(tile.steps) and row < config.most_skips
    if config.form == "spectral":
        skip = may and _changes_little(config, tile, latents, before, mix)
    else:
        known = _trail(tile, latents, before)
        skip = may and changes_evenly(config, known, added)
    tile.kept[_SKIPS] = torch.tensor([row + 1 if skip else 0])
    tile.engaged["adaptive.skipped" if skip else "adaptive.computed"] += 1
    return skip


def _trail(
    tile: TileStep, latents: torch.Tensor, before: torch.Tensor | None
) -> list[torch.Tensor]:
    """The latents of this step and of those before it that are known, newest first; keeps what the
    next step asks of them."""
    trail = [before, *(tile.carried.get(name) for name in _BEFORE)]
    known = [latents, *(each for each in trail if each is not None)]
    for name, kept in zip(_BEFORE, known[1:], strict=False):
        tile.kept[name] = kept
    return known


def _changes_little(
    config: Adaptive,
    tile: TileStep,
    latents: torch.Tensor,
    before: torch.Tensor | None,
    mix: Callable[[int], Mix],
) -> bool:
    assert before is not None, "a stage's first step always runs"
    step = tile.unit.step
    so_far = float(tile.carried[_CHANGE]) if _CHANGE in tile.carried else 0.0
    total = so_far + change(latents, before, mix(step), mix(step - 1))
    if total >= config.threshold:
        return False
    tile.kept[_CHANGE] = torch.tensor([total], dtype=torch.float64)
    return True


def remember(config: Adaptive, tile: TileStep, prediction: torch.Tensor) -> None:
    """Keep a prediction that was computed, and the one before it, for those that are not."""
    if not config.forecast:
        return
    steps = [tile.unit.step]
    if _LATEST in tile.carried:
        tile.kept[_FORMER] = tile.carried[_LATEST]
        steps.append(int(tile.carried[_STEPS][0]))
    tile.kept[_LATEST], tile.kept[_STEPS] = prediction, torch.tensor(steps)


def stand_in(config: Adaptive, tile: TileStep, last: torch.Tensor) -> torch.Tensor:
    """The prediction of a skipped step: the step's before, ``last``; or, with ``forecast``, on the
    line through the last two that were computed (as TaylorSeer's first order, arXiv 2503.06923)."""
    if not config.forecast or _FORMER not in tile.carried:
        return last
    latest, former = tile.carried[_LATEST], tile.carried[_FORMER]
    newer, older = (int(step) for step in tile.carried[_STEPS])
    return latest + (latest - former) * ((tile.unit.step - newer) / (newer - older))


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
