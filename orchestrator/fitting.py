"""A job's accelerations, checked against its model, with what planning finds for them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from jobs.accelerations import REHASHED_BLOCKS, Accelerations
from jobs.families.family import encoding_bytes, rendering_bytes
from jobs.families.slicing_memory import MOST_SLICES, fewest_slices
from jobs.model_folder import ModelInfo
from jobs.model_scheduler import SCHEDULERS
from jobs.presets import PRESETS
from jobs.spec import JobSpec, ResolvedSpec
from jobs.spec_accelerations import acceleration_place, adaptive_problem
from jobs.spec_errors import Problem, bad_job
from orchestrator.calibrated import with_calibrations
from orchestrator.sizes import gb
from orchestrator.tile_memory import (
    cuts_decoding,
    decode_bytes,
    decoder_dtype_of,
    denoise_bytes,
    dtype_of,
)


def with_fitted_accelerations(
    spec: JobSpec, job: ResolvedSpec, model: ModelInfo, scheduler: str
) -> ResolvedSpec:
    """The job with the slices that its budget asks for, and with what calibration has found for
    it. Raises BadJob for accelerations that this model does not take."""
    job = _with_presets_choice(spec, job, model, scheduler)
    problems = [
        *_misfits(spec, job, model),
        *_shallow(spec, job, model),
        *_noisy(spec, job, model, scheduler),
    ]
    if problems:
        raise bad_job(problems, spec._places)
    # before the slices: what plans of attention keep counts against a budget
    job = replace(job, accelerations=with_calibrations(spec, job, model, scheduler))
    if job.accelerations.slicing and job.accelerations.slicing.slices is None:
        job = replace(job, accelerations=_with_slices(spec, job, model))
    return job


def _with_presets_choice(
    spec: JobSpec, job: ResolvedSpec, model: ModelInfo, scheduler: str
) -> ResolvedSpec:
    """A preset has other settings where the scheduler adds noise; the job's own stay. Raises
    BadJob if it has none for the family, or if there are too few steps for them."""
    known, preset = SCHEDULERS[model.family.diffusion], PRESETS[job.preset]
    if not known[scheduler].adds_noise:
        return job
    own = {name: each for name, each in spec.accelerations if each is not None}
    settings = preset.with_noise.get(model.family.name, Accelerations())
    chosen, said = settings.model_copy(update=own), None
    if chosen.adaptive:
        said = adaptive_problem(chosen.adaptive, job.stage_steps)
    elif preset.settings_of(model.family.name).adaptive:
        others = ", ".join(name for name, each in known.items() if not each.adds_noise)
        said = (
            f"{preset.name} has no settings for {model.family.name} with scheduler {scheduler}, "
            f"which adds noise at each step; use another scheduler ({others}), or accelerations of "
            "your own"
        )
    if said:
        raise bad_job([Problem(acceleration_place(spec, "adaptive"), said)], spec._places)
    return replace(job, accelerations=chosen)


def _misfits(spec: JobSpec, job: ResolvedSpec, model: ModelInfo) -> Iterator[Problem]:
    """Accelerations that this family's models do not take."""
    family = model.family
    for name in type(job.accelerations).model_fields:
        if getattr(job.accelerations, name) is None or name in family.accelerations:
            continue
        said = f"{family.name} models do not take {name} yet; they take "
        place = acceleration_place(spec, name)
        yield Problem(place, said + ", ".join(family.accelerations))


def _shallow(spec: JobSpec, job: ResolvedSpec, model: ModelInfo) -> Iterator[Problem]:
    """Models in which rehash finds too little to reuse: ``accel.rehash`` would refuse them."""
    asked, config = job.accelerations, model.configs[model.family.denoiser]
    if asked.rehash is None:
        return
    place = acceleration_place(spec, "rehash")
    if "num_layers" in config:
        blocks = config["num_layers"] + config.get("num_single_layers", 0)
        if blocks < REHASHED_BLOCKS:
            yield Problem(
                place,
                f"this model's {blocks} blocks are too few to reuse any of: rehash needs "
                f"{REHASHED_BLOCKS} or more; leave it out, and try adaptive",
            )
    if asked.slicing and config["_class_name"] == "UNetSpatioTemporalConditionModel":
        finest = config.get("up_block_types", ("CrossAttn",))[-1]
        if "CrossAttn" not in finest:
            yield Problem(
                place,
                f"this model's finest up-block, {finest}, has no attention, and rehash goes with "
                "slicing where attention follows; leave one of the two out",
            )


def _noisy(spec: JobSpec, job: ResolvedSpec, model: ModelInfo, scheduler: str) -> Iterator[Problem]:
    """Ways to skip that know of no noise but the one a sampler takes away."""
    config = job.accelerations.adaptive
    if config is None or not SCHEDULERS[model.family.diffusion][scheduler].adds_noise:
        return
    if config.form == "spectral" or config.forecast:
        said = (
            f"form spectral and forecast are not for scheduler {scheduler}, which adds noise at "
            "each step; use form tensor or scalar, without forecast"
        )
        yield Problem(acceleration_place(spec, "adaptive"), said)


def _with_slices(spec: JobSpec, job: ResolvedSpec, model: ModelInfo) -> Accelerations:
    """The job's accelerations with the fewest slices that fit its budget. Raises BadJob."""
    slicing = job.accelerations.slicing
    assert slicing is not None and slicing.budget_gb is not None
    slices = fewest_slices(
        lambda count: max(_phases(job, model, count).values()), int(slicing.budget_gb * 1e9)
    )
    if slices is None:
        place = ("accelerations", "slicing", "budget_gb")
        raise bad_job([Problem(place, _shortfall(job, model, slicing.budget_gb))], spec._places)
    return _in_slices(job, slices)


def _in_slices(job: ResolvedSpec, slices: int) -> Accelerations:
    assert job.accelerations.slicing is not None
    found = job.accelerations.slicing.model_copy(update={"slices": slices})
    return job.accelerations.model_copy(update={"slicing": found})


def _phases(job: ResolvedSpec, model: ModelInfo, slices: int) -> dict[str, int]:
    """Bytes of weights alone while what shots start from is encoded, and with a tile afterwards."""
    dtype, sliced = dtype_of(job, model), replace(job, accelerations=_in_slices(job, slices))
    weights = rendering_bytes(model.family, model.parameters, dtype, decoder_dtype_of(job, model))
    encoding = encoding_bytes(model.family, model.parameters, dtype)
    return {
        # What has no room on a card is encoded by the processor, which is of another class.
        **({"encoding": encoding} if job.numerics == "pinned" else {}),
        "denoising": weights + denoise_bytes(sliced, model, dtype),
        "decoding": weights + decode_bytes(sliced, model),
    }


def _shortfall(job: ResolvedSpec, model: ModelInfo, budget_gb: float) -> str:
    """What is too large for a budget in the thinnest slices, and what would do."""
    least = _phases(job, model, MOST_SLICES)
    fits_gb = _rounded_up(max(least.values()) / 1e9)
    needs = ", ".join(f"{phase} takes {gb(size)}" for phase, size in least.items())
    uncut = "" if cuts_decoding(model) else ", which slices make no smaller"
    half = replace(job, decoder_dtype="float16")
    whole = decoder_dtype_of(job, model) == "float32"
    would_fit = whole and max(_phases(half, model, MOST_SLICES).values()) <= budget_gb * 1e9
    narrower = ", decoder_dtype: float16 or bfloat16" if would_fit else ""
    weights_fit = least.get("encoding", 0) <= budget_gb * 1e9
    smaller = f", or a size smaller than {job.width_px}x{job.height_px}" if weights_fit else ""
    return (
        f"slicing cannot bring the model under {budget_gb:g} GB: with its weights, in the thinnest "
        f"slices, {needs}{uncut}; give budget_gb: {fits_gb:g} or more{narrower}{smaller}"
    )


def _rounded_up(size: float) -> float:
    """To three digits, which is near enough and never too little."""
    unit = 10.0 ** (math.floor(math.log10(size)) - 2)
    return float(f"{math.ceil(size / unit) * unit:.3g}")
