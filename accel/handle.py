"""What an acceleration is: a frozen config, and how it attaches to a model from outside.

The model never imports an acceleration. A technique checks the model's blocks before it attaches
and raises ``CannotRunHere`` where they do not fit; its state lives only inside
``with handle.run(tile, branch)``. What it must remember from one step of a tile to the next it
takes from the tile and leaves with it: so a tile may go on at any worker, after any interruption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from jobs.attention_plan import Branch
from jobs.units import Unit

__all__ = ["Acceleration", "Branch", "Handle", "LostState", "TileStep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TileStep:
    """One step of one tile, as techniques see it.

    State is tensors by name, ``<technique>.<branch>.<what>``. What is not put into ``kept`` again
    is forgotten. What a branch shares with the next one of the same step never leaves the worker.
    """

    unit: Unit
    steps: int = 1  # of the tile's stage; unit.step counts from 0
    carried: Mapping[str, torch.Tensor] = field(default_factory=dict)  # left by the step before
    kept: MutableMapping[str, torch.Tensor] = field(default_factory=dict)  # for the step after
    shared: dict[str, torch.Tensor] = field(default_factory=dict)  # by the branch run before
    engaged: Counter[str] = field(default_factory=Counter)  # what techniques changed, counted


class LostState(RuntimeError):
    """A step came without what the step before it was to hand on. Nothing that a person asks for
    brings that about, and to compute in full instead would give other bits than the plan says."""


class Handle(Protocol):
    """One technique, attached to one model."""

    def run(self, tile: TileStep, branch: Branch) -> AbstractContextManager[None]:
        """Hold the technique's state for one pass of one tile and branch."""
        ...

    def remove(self) -> None:
        """Leave the model as it was found."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceleration:
    """A technique with its settings, not yet attached."""

    name: str
    config: Any  # a frozen dataclass of the technique's own
    apply: Callable[[torch.nn.Module, Any], Handle]
