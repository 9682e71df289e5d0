"""Which accelerations a preset stands for, and the order in which they attach.

The order of a preset's tuple is the order of application, the reason standing beside each
entry. Removal runs backwards, so that each technique finds the model as it left it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from accel.handle import Acceleration, Branch, Handle, TileStep
from jobs.accelerations import PRESETS as NAMES
from jobs.errors import BadJob

#: The accelerations of every built preset, in order.
PRESETS: dict[str, tuple[Acceleration, ...]] = {
    "exact": (),  # only what cannot change the result
}


def preset(name: str) -> tuple[Acceleration, ...]:
    """The accelerations that a preset stands for, in order."""
    if name in PRESETS:
        return PRESETS[name]
    problem = "is not built yet" if name in NAMES else "is unknown"
    raise BadJob(f"acceleration preset '{name}' {problem}; available: {', '.join(PRESETS)}")


class Applied:
    """The accelerations attached to one model, as one handle."""

    def __init__(self, handles: Sequence[Handle]) -> None:
        self._handles = tuple(handles)

    @contextmanager
    def run(self, tile: TileStep, branch: Branch) -> Iterator[None]:
        with ExitStack() as stack:
            for handle in self._handles:
                stack.enter_context(handle.run(tile, branch))
            yield

    def remove(self) -> None:
        for handle in reversed(self._handles):
            handle.remove()
        self._handles = ()


def apply(model: torch.nn.Module, accelerations: Sequence[Acceleration]) -> Applied:
    """Attach ``accelerations`` in order; if one does not fit, none stays attached."""
    handles: list[Handle] = []
    try:
        for acceleration in accelerations:
            handles.append(acceleration.apply(model, acceleration.config))
    except BaseException:
        Applied(handles).remove()
        raise
    return Applied(handles)
