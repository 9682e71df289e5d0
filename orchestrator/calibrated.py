"""What calibration has found for a job, taken from where it was kept."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from jobs.accelerations import Accelerations, FastAttention, Rehash
from jobs.attention_plan import load as load_plan
from jobs.calibration import CalibrationKey, calibration_keys, usual_folder
from jobs.errors import BadJob, CannotRunHere
from jobs.model_folder import ModelInfo
from jobs.rehash_profile import key_steps
from jobs.rehash_profile import load as load_profile
from jobs.spec import JobSpec, ResolvedSpec
from jobs.spec_accelerations import acceleration_place, rehash_problem
from jobs.spec_errors import Problem, bad_job
from jobs.spec_part import Part
from orchestrator.tile_memory import dtype_of


def with_calibrations(
    spec: JobSpec, job: ResolvedSpec, model: ModelInfo, scheduler: str
) -> Accelerations:
    """The job's accelerations with what is on file for each of its stages: plans of attention, and
    key steps by a threshold. Raises BadJob, with all that is missing."""
    found, keys = job.accelerations, job_keys(job, model, scheduler)
    update: dict[str, Part] = {}
    problems: list[Problem] = []
    if (attention := found.fast_attention) is not None:
        with _named(spec, "fast_attention", problems):
            update["fast_attention"] = _with_plans(spec, attention, keys)
    if (rehash := found.rehash) is not None and rehash.threshold is not None:
        with _named(spec, "rehash", problems):
            update["rehash"] = _with_key_steps(spec, rehash, keys, job.stage_steps)
    if problems:
        raise bad_job(problems, spec._places)
    return found.model_copy(update=update)


def _with_plans(
    spec: JobSpec, attention: FastAttention, keys: tuple[CalibrationKey, ...]
) -> FastAttention:
    """Raises CannotRunHere where a plan is missing, BadJob where none does anything."""
    command = command_for(spec)
    with _to_make_it(command):
        plans = tuple(load_plan(_folder(attention.plans), key) for key in keys)
    if all(strategy == "full" for plan in plans for row in plan.rows for strategy in row):
        raise BadJob(
            "does nothing: the plan that was found for it leaves every layer as it is; "
            f"`{command}` with a larger --delta changes more, or remove it"
        )
    return attention.model_copy(update={"stages": plans})


def _with_key_steps(
    spec: JobSpec, rehash: Rehash, keys: tuple[CalibrationKey, ...], stage_steps: tuple[int, ...]
) -> Rehash:
    """Raises CannotRunHere where a profile is missing, BadJob where nothing can be reused."""
    assert rehash.threshold is not None
    with _to_make_it(command_for(spec, "--rehash", f"{rehash.threshold}")):
        profiles = [load_profile(_folder(rehash.profiles), key) for key in keys]
    chosen = tuple(key_steps(profile, rehash.threshold) for profile in profiles)
    rehash = rehash.model_copy(update={"key_steps": chosen})
    if said := rehash_problem(rehash, stage_steps):
        raise BadJob(said)
    return rehash


def _folder(asked: str | None) -> Path:
    return usual_folder() if asked is None else Path(asked).expanduser()


def command_for(spec: JobSpec, *technique: str) -> str:
    """The calibration that a job looks for, as it must be typed: on its file, or else its model,
    with what was said on the command line of all that matters to it."""
    places, shot = spec._places, spec.shots[0]
    model = {"model": spec.model} if places.source else {}
    said = model | {
        "prompt": shot.prompt,
        "image": shot.image,
        "seconds": shot.seconds,
        "size": spec.size and "x".join(map(str, spec.size)),
        "fps": spec.fps,
        "steps": spec.steps,
        "pyramid": spec.pyramid,
        "pyramid_first_stage": spec.pyramid_first_stage,
    }
    given = {name: value for name, value in said.items() if name in places.flags}
    options = [(f"--{name.replace('_', '-')}", str(value)) for name, value in given.items()]
    if "loras" in places.flags:
        options += [("--lora", f"{lora.path}={lora.scale}") for lora in spec.loras]
    words = ["longtake", "calibrate", places.source or spec.model]
    return shlex.join([*words, *chain.from_iterable(options), *technique])


@contextmanager
def _to_make_it(command: str) -> Iterator[None]:
    """What is missing, a command finds."""
    try:
        yield
    except CannotRunHere as missing:
        raise CannotRunHere(f"{missing}; to make it: {command}") from None


@contextmanager
def _named(spec: JobSpec, name: str, problems: list[Problem]) -> Iterator[None]:
    """What an acceleration lacks is the job's problem."""
    try:
        yield
    except (BadJob, CannotRunHere) as lack:
        problems.append(Problem(acceleration_place(spec, name), str(lack)))


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
