"""Renders a plan in this process: by one worker, unit after unit, without Ray or a store."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jobs.arrays import Bundle
from jobs.units import Task, TaskReport, Unit
from orchestrator.plan import Plan

if TYPE_CHECKING:
    from workers.setup import WorkerSetup

_KINDS = ("encode", "step", "decode")


class Computes(Protocol):
    """A ``workers.worker.Worker``, loaded for the plan."""

    def run(self, task: Task, inputs: Sequence[Bundle]) -> tuple[TaskReport, Bundle]: ...


def worker_setup(plan: Plan, worker: str, **here: Any) -> WorkerSetup:
    """What a worker of a plan is told; ``here``: what it is told of the place where it works."""
    from workers.setup import WorkerSetup

    setup = WorkerSetup(
        worker=worker,
        model=plan.model,
        family=plan.geometry.family,
        loras=plan.loras,
        images=plan.images,
        dtype=plan.dtype,
        decoder_dtype=plan.decoder_dtype,
        encoding_bytes=plan.encoding_bytes,
        threads=plan.threads,
        accelerations=plan.accelerations,
    )
    return replace(setup, **here)


def render_units(
    plan: Plan, worker: Computes, given: Mapping[Unit, Bundle]
) -> Iterator[tuple[TaskReport, Bundle]]:
    """What each unit took and gave, each after all that it depends on; those ``given`` are not
    computed again. An output is let go after its last use. Raises UnitError."""
    order = [unit for unit in in_order(plan) if unit not in given]
    uses = Counter(each for unit in order for each in plan.inputs(unit))
    at_hand = dict(given)
    for unit in order:
        inputs = plan.inputs(unit)
        report, output = worker.run(plan.task(unit, 1), [at_hand[each] for each in inputs])
        yield report, output
        at_hand[unit] = output
        uses.subtract(inputs)
        for each in (unit, *inputs):
            if not uses[each]:
                at_hand.pop(each, None)


def frames_of(piece: Bundle) -> np.ndarray:
    """A decoded piece that was written without loss, as uint8 [F, H, W, 3]."""
    from workers.films import iter_frames

    with tempfile.NamedTemporaryFile(suffix=".mkv") as file:
        file.write(piece.arrays["segment"].tobytes())
        file.flush()
        return np.stack(list(iter_frames(Path(file.name))))


def in_order(plan: Plan) -> list[Unit]:
    """Every unit, each after all that it depends on."""
    return sorted(plan.units(), key=lambda u: (u.shot, _KINDS.index(u.kind), u.stage, u.step))
