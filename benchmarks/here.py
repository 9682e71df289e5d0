"""Renders a job in this process, without Ray or a store: for figures of techniques, where what
counts is a model's work and what comes of it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.accelerations import Accelerations
from jobs.arrays import Bundle
from jobs.spec import JobSpec
from jobs.units import Unit
from orchestrator.plan import Plan
from orchestrator.prepare import Prepared, prepare
from workers.setup import WorkerSetup
from workers.video import iter_frames
from workers.worker import Worker

#: What is attached to a model around a render, beside Longtake's own techniques.
Tune = Callable[[torch.nn.Module], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True)
class Here:
    """A film and what it took."""

    plan: Plan
    frames: NDArray[np.uint8]  # [F, H, W, 3]
    steps_s: float  # wall time of all steps of tiles
    passes: int  # of the denoiser, guidance branches counted
    engaged: Counter[str]


def render_here(job: Mapping[str, Any], tune: Tune = lambda model: nullcontext()) -> Here:
    """A film by one worker, unit after unit, written without loss."""
    assert not job.get("loras"), "the worker here loads none"
    lossless = {"output": {"codec": "ffv1"}}
    prepared = prepare(JobSpec.model_validate({"version": 1, **job, **lossless}))
    plan, worker = prepared.plan, _worker(prepared)
    passes = Counter[str]()
    model = worker._family.denoiser
    counter = model.register_forward_pre_hook(lambda *_: passes.update(["all"]))
    outputs: dict[Unit, Bundle] = {}
    steps_s, engaged = 0.0, Counter[str]()
    try:
        with tune(model):
            for unit in _in_order(plan):
                inputs = [outputs[each] for each in plan.inputs(unit)]
                report, outputs[unit] = worker.run(plan.task(unit, 1), inputs)
                engaged.update(report.engaged)
                steps_s += report.elapsed_s if unit.kind == "step" else 0.0
    finally:
        counter.remove()
    frames = np.concatenate([_frames(outputs[goal]) for goal in plan.goals()])
    return Here(
        plan=plan, frames=frames, steps_s=steps_s, passes=passes["all"], engaged=engaged
    )  # fmt: skip


def _worker(prepared: Prepared) -> Worker:
    plan = prepared.plan
    return _loaded(
        str(prepared.model.folder),
        prepared.model.family.name,
        plan.dtype,
        plan.threads,
        plan.accelerations.model_dump_json(),
    )


@cache
def _loaded(folder: str, family: str, dtype: str, threads: int, accelerations: str) -> Worker:
    setup = WorkerSetup(
        worker="here",
        model=folder,
        family=family,
        dtype=dtype,
        threads=threads,
        accelerations=Accelerations.model_validate_json(accelerations),
    )
    return Worker(setup)


def _in_order(plan: Plan) -> list[Unit]:
    """Every unit, each after all that it depends on."""
    return sorted(plan.units(), key=lambda u: (u.shot, _KINDS.index(u.kind), u.stage, u.step))


_KINDS = ("encode", "step", "decode")


def _frames(piece: Bundle) -> NDArray[np.uint8]:
    with tempfile.NamedTemporaryFile(suffix=".mkv") as file:
        file.write(piece.arrays["segment"].tobytes())
        file.flush()
        return np.stack(list(iter_frames(Path(file.name))))
