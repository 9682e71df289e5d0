"""What calibration has found for a job, taken from where it was kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.accelerations import Accelerations
from jobs.attention_plan import load as load_plan
from jobs.calibration import CalibrationKey, calibration_keys, usual_folder
from jobs.errors import CannotRunHere
from jobs.model_folder import ModelInfo
from jobs.rehash_profile import key_steps
from jobs.rehash_profile import load as load_profile
from jobs.spec import JobSpec, ResolvedSpec
from jobs.spec_accelerations import acceleration_place, rehash_problem
from jobs.spec_errors import Problem, bad_job
from orchestrator.tile_memory import dtype_of


def with_calibrations(
    spec: JobSpec, job: ResolvedSpec, model: ModelInfo, scheduler: str
) -> Accelerations:
    """The job's accelerations with what is on file for each of its stages: plans of attention, and
    key steps by a threshold. Raises BadJob."""
    found, keys = job.accelerations, job_keys(job, model, scheduler)
    attention, rehash = found.fast_attention, found.rehash
    if attention is not None:
        with _named(spec, "fast_attention", "longtake calibrate finds one"):
            plans = tuple(load_plan(_folder(attention.plans), key) for key in keys)
        if all(strategy == "full" for plan in plans for row in plan.rows for strategy in row):
            how = (
                "does nothing: the plan that was found for it leaves every layer as it is; "
                "longtake calibrate with a larger --delta changes more, or remove it"
            )
            raise bad_job([Problem(acceleration_place(spec, "fast_attention"), how)], spec._places)
        attention = attention.model_copy(update={"stages": plans})
        found = found.model_copy(update={"fast_attention": attention})
    if rehash is not None and rehash.threshold is not None:
        how = f"longtake calibrate --rehash {rehash.threshold} makes one"
        with _named(spec, "rehash", how):
            profiles = [load_profile(_folder(rehash.profiles), key) for key in keys]
        chosen = tuple(key_steps(profile, rehash.threshold) for profile in profiles)
        rehash = rehash.model_copy(update={"key_steps": chosen})
        if said := rehash_problem(rehash, job.stage_steps):
            raise bad_job([Problem(acceleration_place(spec, "rehash"), said)], spec._places)
        found = found.model_copy(update={"rehash": rehash})
    return found


def _folder(asked: str | None) -> Path:
    return usual_folder() if asked is None else Path(asked).expanduser()


@contextmanager
def _named(spec: JobSpec, name: str, how: str) -> Iterator[None]:
    """What is missing is the job's problem, and a command finds it."""
    try:
        yield
    except CannotRunHere as missing:
        problem = Problem(acceleration_place(spec, name), f"{missing}; {how}")
        raise bad_job([problem], spec._places) from None


def job_keys(job: ResolvedSpec, model: ModelInfo, scheduler: str) -> tuple[CalibrationKey, ...]:
    """What is calibrated for each of a job's stages: on its longest shot, as calibration does."""
    geometry = model.geometry
    longest = max(job.shots, key=lambda shot: geometry.latent_frames(shot.pixel_frames))
    return calibration_keys(
        geometry,
        latent_size=(
            geometry.latent_frames(longest.pixel_frames),
            job.height_px // geometry.spatial_scale,
            job.width_px // geometry.spatial_scale,
        ),
        window_latent_frames=job.window_latent_frames,
        stage_steps=job.stage_steps,
        guidance=longest.guidance,
        model=model.identity,
        scheduler=scheduler,
        flow_shift=job.flow_shift,
        dtype=dtype_of(job, model),
    )
