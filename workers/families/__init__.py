"""Model families by name."""

from __future__ import annotations

from jobs.errors import BadJob
from workers.families.animatediff import AnimateDiffFamily
from workers.families.family import BranchContext, ModelFamily
from workers.families.wan import WanFamily

__all__ = ["FAMILIES", "BranchContext", "ModelFamily", "open_family"]

FAMILIES: dict[str, type[ModelFamily]] = {
    "wan": WanFamily,
    "animatediff": AnimateDiffFamily,
}


def open_family(name: str, folder: str, dtype: str, device: str) -> ModelFamily:
    """A family on a model folder; reads config files only."""
    if name not in FAMILIES:
        raise BadJob(f"unknown model family '{name}'; valid: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name](folder, dtype, device)
