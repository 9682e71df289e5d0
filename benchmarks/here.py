"""Renders a job in this process, without Ray or a store: for figures of techniques, where what
counts is a model's work and what comes of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.operations import counted
from jobs.accelerations import Accelerations
from jobs.arrays import Bundle
from jobs.spec import JobSpec
from jobs.units import Unit
from orchestrator.here import frames_of, render_units
from orchestrator.plan import Plan
from orchestrator.prepare import Prepared, prepare
from workers.setup import WorkerSetup
from workers.worker import Worker

#: What is attached around a render to a model family, its denoiser above all, beside Longtake's own
#: techniques.
Tune = Callable[[Any], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True)
class Here:
    """A film and what it took."""

    plan: Plan
    frames: NDArray[np.uint8]  # [F, H, W, 3]
    steps_s: float  # wall time of all steps of tiles
    decode_s: float  # of all pieces, writing them included
    passes: int  # of the denoiser, guidance branches counted
    operations: int  # multiplications of the denoiser: linear layers, convolutions, attention
    engaged: Counter[str]
    outputs: Mapping[Unit, Bundle]  # of all units


def render_here(
    job: Mapping[str, Any],
    tune: Tune = lambda family: nullcontext(),
    given: Mapping[Unit, Bundle] = MappingProxyType({}),
) -> Here:
    """A film by one worker, unit after unit, written without loss; those ``given`` are not computed
    again."""
    assert not job.get("loras"), "the worker here loads none"
    lossless = {"output": {"codec": "ffv1"}}
    prepared = prepare(JobSpec.model_validate({"version": 1, **job, **lossless}))
    plan, worker = prepared.plan, _worker(prepared)
    return render_plan(plan, worker, tune, given)


def render_plan(
    plan: Plan,
    worker: Worker,
    tune: Tune,
    given: Mapping[Unit, Bundle] = MappingProxyType({}),
) -> Here:
    """A planned film by a worker that is loaded."""
    outputs = dict(given)
    seconds, engaged = defaultdict[str, float](float), Counter[str]()
    family = worker._family
    with counted(family.denoiser) as counts, tune(family):
        for report, output in render_units(plan, worker, given):
            outputs[report.unit] = output
            engaged.update(report.engaged)
            seconds[report.unit.kind] += report.elapsed_s
    return Here(
        plan=plan,
        frames=np.concatenate([frames_of(outputs[goal]) for goal in plan.goals()]),
        steps_s=seconds["step"],
        decode_s=seconds["decode"],
        passes=counts["passes"],
        operations=counts["operations"],
        engaged=engaged,
        outputs=outputs,
    )


def _worker(prepared: Prepared) -> Worker:
    plan = prepared.plan
    return _loaded(
        str(prepared.model.folder),
        prepared.model.family.name,
        plan.dtype,
        plan.decoder_dtype,
        plan.threads,
        plan.accelerations.model_dump_json(),
    )


@cache
def _loaded(
    folder: str, family: str, dtype: str, decoder_dtype: str, threads: int, accelerations: str
) -> Worker:
    setup = WorkerSetup(
        worker="here",
        model=folder,
        family=family,
        dtype=dtype,
        decoder_dtype=decoder_dtype,
        threads=threads,
        accelerations=Accelerations.model_validate_json(accelerations),
    )
    return Worker(setup)
