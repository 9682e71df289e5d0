"""A job's accelerations, checked against its model, with what planning finds for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from jobs.accelerations import Accelerations
from jobs.attention_plan import PlanKey, usual_folder
from jobs.attention_plan import load as load_plan
from jobs.errors import CannotRunHere
from jobs.families.family import loaded_bytes
from jobs.families.slicing_memory import fewest_slices
from jobs.model_folder import ModelInfo
from jobs.spec import JobSpec, ResolvedSpec
from jobs.spec_accelerations import acceleration_place
from jobs.spec_errors import Problem, bad_job
from orchestrator.tile_memory import dtype_of, largest_tile, sliced_tile_bytes


def with_fitted_accelerations(
    spec: JobSpec, job: ResolvedSpec, model: ModelInfo, scheduler: str
) -> ResolvedSpec:
    """The job with the slices that its budget asks for, and with its plan of attention. Raises
    BadJob for accelerations that this model does not take."""
    problems = list(_misfits(spec, job, model))
    if problems:
        raise bad_job(problems, spec._places)
    if job.accelerations.slicing and job.accelerations.slicing.slices is None:
        job = replace(job, accelerations=_with_slices(spec, job, model))
    if job.accelerations.fast_attention:
        job = replace(job, accelerations=_with_plan(spec, job, model, scheduler))
    return job


def _misfits(spec: JobSpec, job: ResolvedSpec, model: ModelInfo) -> Iterator[Problem]:
    """Accelerations that this family's models do not take."""
    family = model.family
    for name in type(job.accelerations).model_fields:
        if getattr(job.accelerations, name) is None or name in family.accelerations:
            continue
        said = f"{family.name} models do not take {name} yet; they take "
        place = acceleration_place(spec, name)
        yield Problem(place, said + ", ".join(family.accelerations))


def _with_slices(spec: JobSpec, job: ResolvedSpec, model: ModelInfo) -> Accelerations:
    """The job's accelerations with the fewest slices that fit its budget. Raises BadJob."""
    slicing = job.accelerations.slicing
    assert slicing is not None and slicing.budget_gb is not None
    dtype = dtype_of(job, model)
    weights = loaded_bytes(model.family, model.parameters, dtype)
    try:
        slices = fewest_slices(
            lambda count: weights + sliced_tile_bytes(job, model, dtype, count),
            int(slicing.budget_gb * 1e9),
        )
    except CannotRunHere as refusal:
        place = ("accelerations", "slicing", "budget_gb")
        raise bad_job([Problem(place, str(refusal))], spec._places) from None
    found = slicing.model_copy(update={"slices": slices})
    return job.accelerations.model_copy(update={"slicing": found})


def _with_plan(spec: JobSpec, job: ResolvedSpec, model: ModelInfo, scheduler: str) -> Accelerations:
    """The job's accelerations with the plan of attention that is on file for it. Raises BadJob."""
    asked = job.accelerations.fast_attention
    assert asked is not None
    place = ("accelerations", "fast_attention")
    folder = usual_folder() if asked.plans is None else Path(asked.plans).expanduser()
    try:
        plan = load_plan(folder, _attention_key(job, model, scheduler))
    except CannotRunHere as missing:
        how = f"{missing}; longtake calibrate finds one"
        raise bad_job([Problem(place, how)], spec._places) from None
    if all(strategy == "full" for row in plan.rows for strategy in row):
        idle = "does nothing: the plan that was found for it leaves every layer as it is; longtake "
        how = f"{idle}calibrate with a larger --delta changes more, or remove it"
        raise bad_job([Problem(place, how)], spec._places)
    found = asked.model_copy(update={"plan": plan})
    return job.accelerations.model_copy(update={"fast_attention": found})


def _attention_key(job: ResolvedSpec, model: ModelInfo, scheduler: str) -> PlanKey:
    """What a job's plan of attention is found by: its longest window and its schedule."""
    return PlanKey(
        model=model.identity,
        latent_size=largest_tile(job, model.geometry),
        steps=job.steps,
        scheduler=scheduler,
        flow_shift=job.flow_shift,
        guided=model.geometry.has_two_branches(job.shots[0].guidance),
    )
