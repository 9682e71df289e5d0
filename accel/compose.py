"""Which techniques attach to a model for a job's accelerations, and in which order.

The order is written once, here, the reason standing beside each entry. Removal runs backwards, so
that each technique finds the model as it left it.

``adaptive`` is not among them: it does not touch the model, but decides whether it is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from accel import fast_attention, rehash, slicing
from accel.handle import Acceleration, Branch, Handle, TileStep
from jobs.accelerations import Accelerations


def attached(accelerations: Accelerations) -> tuple[Acceleration, ...]:
    """The techniques that attach to the model, in order."""
    techniques: list[Acceleration] = []
    if accelerations.slicing is not None:
        # First: it takes the place of the blocks' forward, where others stand in front of it.
        techniques.append(
            Acceleration(name="slicing", config=accelerations.slicing, apply=slicing.apply)
        )
    if accelerations.fast_attention is not None:
        stages = accelerations.fast_attention.stages
        assert stages is not None, "planning has found them"
        steps = [plan.steps for plan in stages]
        config = fast_attention.FastAttention(
            stages=stages,
            may_skip=accelerations.may_skip(steps),
            reusing=accelerations.reusing(steps),
        )
        techniques.append(
            Acceleration(name="fast_attention", config=config, apply=fast_attention.apply)
        )
    if accelerations.rehash is not None:
        # Last: whatever runs inside a block is left out with it.
        techniques.append(
            Acceleration(name="rehash", config=accelerations.rehash, apply=rehash.apply)
        )
    return tuple(techniques)


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
