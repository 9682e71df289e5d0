"""From a job spec to a stored plan: find the model, fill in defaults, lay the film out."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jobs.errors import BadJob, CannotRunHere, DamagedRecord
from jobs.families.family import encoding_bytes, rendering_bytes
from jobs.images import ImageFile, find_image, read_image
from jobs.loras import LoraFile, with_loras
from jobs.model_folder import ModelInfo, inspect_model, pinned_name, resolve_model
from jobs.model_scheduler import check_pyramid, choose_scheduler, most_stage_steps
from jobs.presets import PRESETS, WITH_PYRAMID, chosen_by
from jobs.spec import JobSpec, ResolvedShot, ResolvedSpec, resolve
from jobs.spec_errors import Problem, bad_job
from jobs.units import RepeatedNoise, ShotRender
from jobs.versions import ACCELERATIONS_VERSION, NOISE_VERSION, PLANNER_VERSION
from orchestrator.fitting import with_fitted_accelerations
from orchestrator.plan import Plan, ShotPlan, lay_shot
from orchestrator.sizes import gb
from orchestrator.tile_memory import (
    decoder_dtype_of,
    denoised_frames,
    dtype_of,
    kept_bytes,
    tile_bytes,
)

_PLAN = TypeAdapter(Plan)

#: Up to so many times the pixels of a model's own size are nothing to warn of.
USUAL_SIZES = 4


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
    job = with_fitted_accelerations(spec, job, model, scheduler)
    problems = [
        *_stage_problems(job, model),
        *_window_problems(job, model),
    ]
    if problems:
        raise bad_job(problems, spec._places)
    plan = make_plan(job, model, loras, find_images(spec))
    return Prepared(spec=spec, model=model, plan=plan)


def _stage_problems(job: ResolvedSpec, model: ModelInfo) -> list[Problem]:
    steps, family = job.stage_steps, model.family
    most = most_stage_steps(model.configs["scheduler"], family.diffusion, len(steps))
    if len(steps) == 1 or most is None or max(steps) <= most:
        return []
    said = (
        f"{max(steps)} of the {sum(steps)} steps are of one stage, of a pyramid of {len(steps)}; "
        f"this model has trained times for {most} in each: use fewer"
    )
    return [Problem(("steps",), said)]


def find_images(spec: JobSpec) -> tuple[ImageFile | None, ...]:
    """What each shot starts from. Raises BadJob."""
    found: list[ImageFile | None] = []
    problems = []
    for index, shot in enumerate(spec.shots):
        try:
            found.append(None if shot.image is None else find_image(shot.image))
        except BadJob as refusal:
            problems.append(Problem(("shots", index, "image"), str(refusal)))
    if problems:
        raise bad_job(problems, spec._places)
    return tuple(found)


def _window_problems(job: ResolvedSpec, model: ModelInfo) -> list[Problem]:
    """A model has positions for so many frames; those of a coarse stage may stand far apart."""
    stride = 2 ** (len(job.stage_steps) - 1) if model.defaults.stage_positions else 1
    window = model.family.longest_window(model.configs, stride)
    most = f"more than this model has positions for; at most {window}"
    problems: list[Problem] = []
    if job.window_latent_frames > window:
        said = f"{job.window_latent_frames} is {most}"
        problems.append(Problem(("window_latent_frames",), said))
    elif (frames := denoised_frames(job, model.geometry)) > window:
        said = f"whole, it has {frames} frames, {most}: cut the shot in two, or say windows"
        problems.append(Problem(("pyramid_first_stage",), said))
    return problems


def first_stage_warnings(job: ResolvedSpec, model: ModelInfo) -> Iterator[str]:
    """Weights meet a window that is longer than others nowhere else; or there is none."""
    windows, most = job.window_latent_frames, denoised_frames(job, model.geometry)
    if most > windows:
        yield (
            f"the coarsest stage is one window of {most} latent frames, where windows have "
            f"{windows}: if the weights were not trained for so long a one, shapes may suffer"
        )
    elif job.first_stage == "whole":
        yield (
            "pyramid_first_stage: whole makes no difference here: each shot's coarsest stage fits "
            f"into one window of {windows} latent frames as it is"
        )


def preset_warnings(job: ResolvedSpec, model: ModelInfo) -> Iterator[str]:
    """Settings that were tried on others may do less, or harm, on these."""
    preset, family = PRESETS[job.preset], model.family.name
    kind = family + (WITH_PYRAMID if len(job.stage_steps) > 1 else "")
    if chosen_by(job.preset, job.accelerations, family) and kind not in preset.measured:
        yield (
            f"preset {job.preset} has not been measured on {kind}: longtake presets, given this "
            "job, tries it on the beginnings of its shots"
        )


def noise_warnings(job: ResolvedSpec, shots: Sequence[ShotPlan]) -> Iterator[str]:
    """Of noise that never comes again."""
    if job.repeated_noise and all(shot.render.repeated_noise is None for shot in shots):
        longest = max(shot.stages[0].longest for shot in shots)
        yield (
            "repeated_noise makes no difference here: each shot starts as one window, of up to "
            f"{longest} latent frames"
        )


def size_warnings(job: ResolvedSpec, model: ModelInfo) -> Iterator[str]:
    """Of a picture far larger than the model's own."""
    width, height = model.defaults.size
    times = job.width_px * job.height_px / (width * height)
    if times > USUAL_SIZES:
        yield (
            f"{job.width_px}x{job.height_px} has {times:.0f} times the pixels of the {width}x"
            f"{height} that this model is meant for: a step takes that much longer, or more, and "
            "the film may look wrong"
        )


def budget_warnings(job: ResolvedSpec, model: ModelInfo, dtype: str) -> Iterator[str]:
    """Slices make what encodes no smaller; with pinned numerics such a job is refused."""
    slicing = job.accelerations.slicing
    needed = encoding_bytes(model.family, model.parameters, dtype)
    if slicing and slicing.budget_gb and needed > slicing.budget_gb * 1e9:
        yield (
            f"encoding takes {gb(needed)}, more than budget_gb: what has no room on a card is "
            "encoded by the processor"
        )


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
    dtype, decoder_dtype = dtype_of(job, model), decoder_dtype_of(job, model)
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
            whole_first_stage=job.first_stage == "whole",
            piece_border=geometry.piece_border,
        )
        shots.append(_with_noise(laid, job.repeated_noise))
        first += shot.pixel_frames
    return Plan(
        title=job.title,
        model=pinned_name(job.model, model.folder),
        model_identity=model.identity,
        geometry=geometry,
        dtype=dtype,
        decoder_dtype=decoder_dtype,
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
        tile_bytes=tile_bytes(job, model, dtype),
        kept_bytes=kept_bytes(job, model, dtype),
        model_bytes=rendering_bytes(model.family, model.parameters, dtype, decoder_dtype),
        encoding_bytes=encoding_bytes(model.family, model.parameters, dtype),
        decode_context=geometry.decode_context_latent_frames,
        warnings=(
            *job.warnings,
            *size_warnings(job, model),
            *budget_warnings(job, model, dtype),
            *first_stage_warnings(job, model),
            *preset_warnings(job, model),
            *noise_warnings(job, shots),
            *image_warnings(images, job.width_px, job.height_px),
        ),
        loras=tuple(loras),
    )


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


def _with_noise(laid: ShotPlan, share: float) -> ShotPlan:
    """Noise comes again only where a shot starts in several windows."""
    first = laid.stages[0]
    if not share or len(first.windows) == 1:
        return laid
    repeated = RepeatedNoise(period=first.longest, share=share)
    return replace(laid, render=replace(laid.render, repeated_noise=repeated))


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
    asked = data.get("accelerations")
    if isinstance(asked, Mapping) and any(each is not None for each in asked.values()):
        ours["accelerations_version"] = ACCELERATIONS_VERSION
        theirs["accelerations_version"] = data.get("accelerations_version", 3)  # before it was kept
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
    try:
        folder = resolve_model(plan.model)
    except BadJob:
        raise BadJob(
            f"the model of this job is no longer at {plan.model}: put it back there to resume, or "
            "render the job's file again as a new job, with --model and where it is now"
        ) from None
    model, _ = with_loras(inspect_model(folder), plan.loras)
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
