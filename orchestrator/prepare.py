"""From a job spec to a stored plan: find the model, fill in defaults, lay the film out."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jobs.accelerations import Accelerations
from jobs.errors import BadJob, CannotRunHere, DamagedRecord
from jobs.families.family import Diffusion, loaded_bytes
from jobs.families.features import feature_bytes
from jobs.families.slicing_memory import DECODERS, fewest_slices, sliced_bytes
from jobs.geometry import ModelGeometry
from jobs.images import ImageFile, find_image, read_image
from jobs.loras import LoraFile, with_loras
from jobs.model_folder import ModelInfo, inspect_model, pinned_name, resolve_model
from jobs.model_scheduler import SCHEDULERS, check_pyramid, choose_scheduler
from jobs.spec import JobSpec, ResolvedShot, ResolvedSpec, resolve
from jobs.spec_accelerations import acceleration_place
from jobs.spec_errors import Problem, bad_job
from jobs.units import ShotRender
from jobs.versions import NOISE_VERSION, PLANNER_VERSION
from orchestrator.calibrated import with_calibrations
from orchestrator.plan import Plan, lay_shot

_PLAN = TypeAdapter(Plan)

#: Models with less weights than this render in float32 unless told otherwise.
SMALL_MODEL_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A job that has passed every check that needs no worker."""

    spec: JobSpec
    model: ModelInfo
    plan: Plan


def prepare(spec: JobSpec) -> Prepared:
    """Check a job against its model and plan it. Raises BadJob, CannotRunHere."""
    model = inspect_model(resolve_model(spec.model))
    try:
        model, loras = with_loras(model, spec.loras)
    except BadJob as refusal:
        raise bad_job([Problem(("loras",), str(refusal))], spec._places) from None
    job = resolve(spec, model.geometry, model.defaults)
    try:
        config, diffusion = model.configs["scheduler"], model.family.diffusion
        scheduler = choose_scheduler(job.scheduler, config, diffusion)
        if len(job.stage_steps) > 1:
            check_pyramid(scheduler, config, diffusion)
    except BadJob as refusal:
        raise bad_job([Problem(("scheduler",), str(refusal))], spec._places) from None
    misfits = _misfits(spec, job, model)
    if misfits:
        raise bad_job(misfits, spec._places)
    if job.accelerations.slicing and job.accelerations.slicing.slices is None:
        job = replace(job, accelerations=_with_slices(spec, job, model))
    job = replace(job, accelerations=with_calibrations(spec, job, model, scheduler))
    problems = [*_family_problems(spec, model), *_window_problems(job, model)]
    if job.accelerations.adaptive and SCHEDULERS[diffusion][scheduler].adds_noise:
        problems.append(_noisy(spec, scheduler, diffusion))
    if problems:
        raise bad_job(problems, spec._places)
    plan = make_plan(job, model, loras, find_images(spec))
    return Prepared(spec=spec, model=model, plan=plan)


def find_images(spec: JobSpec) -> tuple[ImageFile | None, ...]:
    """What each shot starts from; a path counts from the job file. Raises BadJob."""
    folder = Path(spec._places.source).parent
    found: list[ImageFile | None] = []
    problems = []
    for index, shot in enumerate(spec.shots):
        try:
            found.append(None if shot.image is None else find_image(shot.image, folder))
        except BadJob as refusal:
            problems.append(Problem(("shots", index, "image"), str(refusal)))
    if problems:
        raise bad_job(problems, spec._places)
    return tuple(found)


def _misfits(spec: JobSpec, job: ResolvedSpec, model: ModelInfo) -> list[Problem]:
    """Accelerations that this family's models do not take."""
    family, problems = model.family, []
    for name in type(job.accelerations).model_fields:
        if getattr(job.accelerations, name) is None or name in family.accelerations:
            continue
        said = f"{family.name} models do not take {name} yet; they take "
        place = acceleration_place(spec, name)
        problems.append(Problem(place, said + ", ".join(family.accelerations)))
    return problems


def _with_slices(spec: JobSpec, job: ResolvedSpec, model: ModelInfo) -> Accelerations:
    """The job's accelerations with the fewest slices that fit its budget. Raises BadJob."""
    slicing = job.accelerations.slicing
    assert slicing is not None and slicing.budget_gb is not None
    dtype = _dtype(job, model)
    weights = loaded_bytes(model.family, model.parameters, dtype)
    try:
        slices = fewest_slices(
            lambda count: weights + _sliced_tile_bytes(job, model, dtype, count),
            int(slicing.budget_gb * 1e9),
        )
    except CannotRunHere as refusal:
        place = ("accelerations", "slicing", "budget_gb")
        raise bad_job([Problem(place, str(refusal))], spec._places) from None
    found = slicing.model_copy(update={"slices": slices})
    return job.accelerations.model_copy(update={"slicing": found})


def _sliced_tile_bytes(job: ResolvedSpec, model: ModelInfo, dtype: str, slices: int) -> int:
    branches = 2 if model.family.batches_branches else 1
    config = model.configs[model.family.denoiser]
    size = _largest_tile(job, model.geometry)
    return sliced_bytes(config, size, dtype, slices, branches=branches)


def _noisy(spec: JobSpec, scheduler: str, diffusion: Diffusion) -> Problem:
    """Latents that get fresh noise at every step never change evenly."""
    quiet = [name for name, each in SCHEDULERS[diffusion].items() if not each.adds_noise]
    said = f"adaptive skips no step with scheduler {scheduler}, which adds noise at each; use "
    place = acceleration_place(spec, "adaptive")
    return Problem(place, f"{said}scheduler {' or '.join(quiet)}, or remove it")


def _family_problems(spec: JobSpec, model: ModelInfo) -> list[Problem]:
    """What was asked for that this family has no use for."""
    family, tokens = model.family, model.geometry.text_tokens
    problems = []
    if spec.flow_shift is not None and family.diffusion != "flow":
        said = f"{family.name} models have no flow shift; remove it"
        problems.append(Problem(("flow_shift",), said))
    if family.fixed_text and spec.text_tokens not in (None, tokens):
        said = f"the text encoder of this model always has {tokens}; remove it"
        problems.append(Problem(("text_tokens",), said))
    return problems


def _window_problems(job: ResolvedSpec, model: ModelInfo) -> list[Problem]:
    """A model has positions for so many frames; those of a coarse stage may stand far apart."""
    stride = 2 ** (len(job.stage_steps) - 1) if model.defaults.stage_positions else 1
    window = model.family.longest_window(model.configs, stride)
    if job.window_latent_frames <= window:
        return []
    said = f"{job.window_latent_frames} is more than this model has positions for; at most {window}"
    return [Problem(("window_latent_frames",), said)]


def image_warnings(
    images: Sequence[ImageFile | None], width_px: int, height_px: int
) -> Iterator[str]:
    """Models fit an image to the film's size, whatever its shape."""
    for number, image in enumerate(images, 1):
        if image is not None and image.is_stretched_to(width_px, height_px):
            yield (
                f"the image of shot {number}, {image.width_px}x{image.height_px} px, is stretched "
                f"to {width_px}x{height_px}: crop it to that shape first"
            )


def make_plan(
    job: ResolvedSpec,
    model: ModelInfo,
    loras: Sequence[LoraFile] = (),
    images: Sequence[ImageFile | None] = (),
) -> Plan:
    """``images``: of each shot; none at all for a model that takes none."""
    geometry = model.geometry
    dtype = _dtype(job, model)
    shots = []
    first = 0
    for shot, image in zip(job.shots, images or [None] * len(job.shots), strict=True):
        laid = lay_shot(
            _render(shot, job, model, image),
            window=job.window_latent_frames,
            overlap=job.overlap_latent_frames,
            first_pixel_frame=first,
            first_alone=geometry.first_alone,
            one_piece=geometry.single_window,
            piece_border=max(
                geometry.decode_batch_latent_frames, geometry.decode_stride_latent_frames
            ),
        )
        shots.append(laid)
        first += shot.pixel_frames
    return Plan(
        title=job.title,
        model=pinned_name(job.model, model.folder),
        model_identity=model.identity,
        geometry=geometry,
        dtype=dtype,
        preset=job.preset,
        accelerations=job.accelerations,
        threads=job.threads,
        numerics=job.numerics,
        checkpoint_every=job.checkpoint_every,
        codec=job.codec,
        quality=job.quality,
        fps=job.fps,
        width_px=job.width_px,
        height_px=job.height_px,
        shots=tuple(shots),
        tile_bytes=_tile_bytes(job, model, dtype),
        kept_bytes=_kept_bytes(job, model, dtype),
        model_bytes=loaded_bytes(model.family, model.parameters, dtype),
        decode_context=geometry.decode_context_latent_frames,
        warnings=(*job.warnings, *image_warnings(images, job.width_px, job.height_px)),
        loras=tuple(loras),
    )


def _dtype(job: ResolvedSpec, model: ModelInfo) -> str:
    return _auto_dtype(model) if job.dtype == "auto" else job.dtype


def _auto_dtype(model: ModelInfo) -> str:
    """A function of the model alone, so that the film does not depend on who renders it."""
    small = sum(model.parameters_bytes.values()) < SMALL_MODEL_BYTES
    return "float32" if small else "bfloat16"


def _render(
    shot: ResolvedShot, job: ResolvedSpec, model: ModelInfo, image: ImageFile | None
) -> ShotRender:
    geometry = model.geometry
    return ShotRender(
        prompt=shot.prompt,
        negative_prompt=shot.negative_prompt,
        seed=shot.seed,
        guidance=shot.guidance,
        stage_steps=job.stage_steps,
        stage_positions=model.defaults.stage_positions and len(job.stage_steps) > 1,
        scheduler=job.scheduler,
        flow_shift=job.flow_shift,
        text_tokens=job.text_tokens,
        latent_frames=geometry.latent_frames(shot.pixel_frames),
        latent_height=job.height_px // geometry.spatial_scale,
        latent_width=job.width_px // geometry.spatial_scale,
        pixel_frames=shot.pixel_frames,
        fps=job.fps,
        image=image,
    )


def _largest_tile(job: ResolvedSpec, geometry: ModelGeometry) -> tuple[int, int, int]:
    """Latent frames, height and width."""
    longest = max(geometry.latent_frames(shot.pixel_frames) for shot in job.shots)
    scale = geometry.spatial_scale
    frames = min(job.window_latent_frames, longest)
    return frames, job.height_px // scale, job.width_px // scale


def _tile_bytes(job: ResolvedSpec, model: ModelInfo, dtype: str) -> int:
    """Estimated memory of one tile beside the model: the larger of denoising and decoding."""
    geometry, slicing = model.geometry, job.accelerations.slicing
    latent_size = _largest_tile(job, geometry)
    if slicing is None or slicing.slices is None:
        denoise = model.family.denoise_bytes(model.configs, latent_size, dtype)
    else:
        denoise = _sliced_tile_bytes(job, model, dtype, slicing.slices)
    pixel_frames = geometry.pixel_frames(latent_size[0])
    decode = model.family.decode_bytes(model.configs, job.height_px, job.width_px, pixel_frames)
    vae = model.configs["vae"]
    if slicing is not None and slicing.slices and vae["_class_name"] in DECODERS:
        decode = sliced_bytes(vae, latent_size, "float32", slicing.slices, branches=1)
    # What a step gets from the one before it, and what it leaves.
    return max(denoise + 2 * _kept_bytes(job, model, dtype), decode)


def _kept_bytes(job: ResolvedSpec, model: ModelInfo, dtype: str) -> int:
    """Estimate of what accelerations keep with a tile from a step to the next: layers' features."""
    asked = job.accelerations
    kept = 2 if asked.rehash else 0
    if asked.fast_attention and (plans := asked.fast_attention.stages):
        each = zip(plans, asked.may_skip(job.stage_steps), strict=True)
        kept += max(len(p.kept_after(step, skip)) for p, skip in each for step in range(p.steps))
    if not kept:
        return 0
    config, tile = model.configs[model.family.denoiser], _largest_tile(job, model.geometry)
    return kept * feature_bytes(config, tile, dtype, job.text_tokens)


def plan_to_json(plan: Plan) -> dict[str, Any]:
    return dict(_PLAN.dump_python(plan, mode="json"))


def plan_from_json(data: dict[str, Any]) -> Plan:
    """Raises DamagedRecord if the data is no plan, CannotRunHere if it is one of another version
    of Longtake, which would lay the film out or draw its noise otherwise."""
    _check_versions(data)
    try:
        return _PLAN.validate_python(data)
    except ValidationError as error:
        raise DamagedRecord(f"the stored plan cannot be read: {error}") from None


def _check_versions(data: Mapping[str, Any]) -> None:
    ours = {"planner_version": PLANNER_VERSION, "noise_version": NOISE_VERSION}
    theirs = {name: data.get(name) for name in ours}
    if theirs == ours:
        return
    if any(type(value) is not int for value in theirs.values()):
        raise DamagedRecord(f"the stored plan cannot be read: its versions are {theirs}")
    differing = [
        f"{name.replace('_', ' ')} {theirs[name]} (here {ours[name]})"
        for name in ours
        if theirs[name] != ours[name]
    ]
    raise CannotRunHere(
        f"this job was planned by another version of Longtake, with {', '.join(differing)}: going "
        "on here would mix two films. Go on with the version of Longtake that planned it, or "
        "render its job file again here as a new job"
    )


def check_same_model(plan: Plan) -> None:
    """Refuse to go on with other weights or images than the job began with. Raises BadJob,
    CannotRunHere."""
    model, _ = with_loras(inspect_model(resolve_model(plan.model)), plan.loras)
    if model.identity != plan.model_identity:
        raise BadJob(
            f"the files of model {plan.model} have changed since this job was planned "
            f"({plan.model_identity[:12]} then, {model.identity[:12]} now). Restore them to "
            "resume, or render again as a new job"
        )
    for image in plan.images:
        read_image(image)


def new_job_id(spec: JobSpec) -> str:
    """A readable name that no other job has: words of the title, prompt or image's name, and six
    hex digits."""
    shot = spec.shots[0]
    said = spec.title or shot.prompt or Path(shot.image or "").stem
    words = re.findall(r"[a-z0-9]+", said.lower())
    slug = "-".join(words)[:32].strip("-") or "film"
    return f"{slug}-{secrets.token_hex(3)}"
