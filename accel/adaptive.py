"""AdaptiveDiffusion: skip a model call where the latents change evenly (arXiv 2410.09873).

The scheduler's step is never skipped: a skipped step takes the tile's last prediction in place of
a new one. A decision looks at one tile's own latents, so a window where little happens skips more
than a busy one; what it looks back at goes with the tile.

Notation: x_s are the latents at the beginning of step s, d_s = x_s - x_(s-1). The paper counts
down; here steps count up. Its condition to compute step s is
||d_s - 2 d_(s-1) + d_(s-2)|| >= threshold * ||d_(s-1)|| (its section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from accel.handle import TileStep
from jobs.accelerations import Adaptive

#: Where a tile keeps the latents of the last steps but one and two, and its skips in a row.
_BEFORE = ("adaptive.latents.1", "adaptive.latents.2")
_SKIPS = "adaptive.skips"


def skips(
    config: Adaptive, tile: TileStep, latents: torch.Tensor, before: torch.Tensor | None
) -> bool:
    """Whether a tile's step can do without the model; keeps in ``tile`` what its next one asks.

    ``latents`` [B, C, T, H, W] are those at the beginning of the step, ``before`` those at the
    beginning of the step before it, None for a stage's first.
    """
    trail = [before, *(tile.carried.get(name) for name in _BEFORE)]
    known = [latents, *(each for each in trail if each is not None)]
    row = int(tile.carried[_SKIPS]) if _SKIPS in tile.carried else 0
    skip = (
        tile.unit.step in config.may_skip(tile.steps)
        and row < config.most_skips
        and changes_evenly(config, known)
    )
    for name, kept in zip(_BEFORE, known[1:], strict=False):
        tile.kept[name] = kept
    tile.kept[_SKIPS] = torch.tensor([row + 1 if skip else 0])
    tile.engaged["adaptive.skipped" if skip else "adaptive.computed"] += 1
    return skip


def changes_evenly(config: Adaptive, latents: Sequence[torch.Tensor]) -> bool:
    """The criterion on x_s, x_(s-1), x_(s-2), x_(s-3), newest first."""
    x0, x1, x2, x3 = (each.float() for each in latents)
    newest, middle, oldest = x0 - x1, x1 - x2, x2 - x3
    if config.form == "scalar":
        a, b, c = (float(change.abs().mean()) for change in (newest, middle, oldest))
        return abs((a + c) / 2 - b) <= config.threshold * b
    third = torch.linalg.vector_norm(newest - 2 * middle + oldest)
    return bool(third < config.threshold * torch.linalg.vector_norm(middle))
