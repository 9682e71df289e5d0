"""What an acceleration is: a frozen config, and how it attaches to a model from outside.

The model never imports an acceleration. A technique checks the model's blocks before it attaches
and raises where they do not fit; its state lives only inside ``with handle.run(tile, branch)``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from jobs.units import Unit

#: A guidance branch, or both as one batch, unconditional first. A cache of one is never read by
#: another.
Branch = Literal["cond", "uncond", "both"]


class Handle(Protocol):
    """One technique, attached to one model."""

    def run(self, tile: Unit, branch: Branch) -> AbstractContextManager[None]:
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
