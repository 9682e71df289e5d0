"""What a person asked for: the job spec, and the step that makes everything in it concrete.

A `JobSpec` holds what was written and nothing that depends on a model. `resolve` fills the gaps
from the model's defaults and checks what only its geometry can tell. `jobs.spec_file` reads specs
from files and flags, and turns every mistake into one `BadJob` that names its place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from jobs.accelerations import Accelerations
from jobs.families.family import ModelDefaults
from jobs.geometry import ModelGeometry
from jobs.presets import PresetName, combined
from jobs.pyramid import split_steps
from jobs.spec_accelerations import acceleration_problems
from jobs.spec_checks import (
    MAX_FILM_S,
    MAX_SIZE_PX,
    as_written,
    guidance_problems,
    image_problems,
    layout_problems,
    refused_problems,
    single_window_problems,
    size_problems,
    time_problems,
)
from jobs.spec_errors import Places, bad_job
from jobs.spec_later import (
    NOT_BUILT,
    CrossfadeSeconds,
    SoundTrack,
)
from jobs.spec_lora import Loras
from jobs.spec_part import FilePath, Part
from jobs.spec_pyramid import (
    FirstStage,
    Pyramid,
    StepShares,
    pyramid_problems,
    pyramid_warnings,
    step_shares,
)

_T = TypeVar("_T")

MAX_FPS = 240
MAX_SEED = 2**63 - 1

#: Fields of a shot that a job of one shot may give at the top instead.
SHORTHAND = ("prompt", "seconds", "pixel_frames", "image")

Text = Annotated[str, Field(max_length=20_000)]
Side = Annotated[int, Field(ge=16, le=MAX_SIZE_PX)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Fps = Annotated[int, Field(ge=1, le=MAX_FPS)]
Scale = Annotated[float, Field(ge=0, le=100)]
Guidance = Annotated[tuple[Scale, ...], Field(strict=False, min_length=1, max_length=8)]
Seconds = Annotated[float, Field(gt=0, le=MAX_FILM_S)]
SchedulerName = Literal[
    "auto", "unipc", "euler", "dpm++", "sde-dpm++", "ddim", "cogvideox-ddim", "cogvideox-dpm"
]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


def _number_or_list(value: Any) -> Any:
    lone = isinstance(value, int | float) and not isinstance(value, bool)
    return (value,) if lone else value


def _none_is_off(value: Any) -> Any:
    return {} if value is None else value


class Output(Part):
    """How the film is written. ``ffv1`` is lossless and ignores ``quality``."""

    codec: Literal["h264", "ffv1"] = "h264"
    quality: Annotated[int, Field(ge=0, le=51)] = 18  # CRF: 0 best, 51 worst


class Shot(Part):
    """A part of the film with one prompt. Its length is ``seconds`` or ``pixel_frames``.

    ``image`` is what it starts from, a path that counts from the job file; whether a shot takes an
    image, a prompt or both, its model says.
    """

    image: FilePath | None = None
    prompt: Annotated[Text | None, Field(validate_default=True)] = None
    negative: Text | None = None
    seed: Seed | None = None
    guidance: Guidance | None = None
    pixel_frames: Annotated[int, Field(ge=1, le=MAX_FILM_S * MAX_FPS)] | None = None
    seconds: Annotated[Seconds | None, Field(validate_default=True)] = None
    transition: Literal["cut", "crossfade"] = "cut"
    crossfade_s: CrossfadeSeconds | None = None
    start_s: Annotated[float, Field(ge=0, le=MAX_FILM_S)] | None = None

    _one_guidance = field_validator("guidance", mode="before")(_number_or_list)

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("image") is None and "image" in info.data:
            raise PydanticKnownError("missing")
        if value is not None and not value.strip():
            raise ValueError("must not be empty; say what the shot shows")
        return value

    @field_validator("seconds")
    @classmethod
    def _one_length(cls, value: float | None, info: ValidationInfo) -> float | None:
        frames = info.data.get("pixel_frames")
        if value is not None and frames is not None:
            raise ValueError("give seconds or pixel_frames, not both; remove one")
        if value is None and frames is None and "pixel_frames" in info.data:
            raise PydanticKnownError("missing")
        return value

    @field_validator("transition")
    @classmethod
    def _cuts_only(cls, value: str) -> str:
        if value != "cut":
            raise ValueError(f"{value!r} is not built yet; use 'cut'")
        return value

    @field_validator("crossfade_s")
    @classmethod
    def _with_crossfade(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None:
            cut = info.data.get("transition") == "cut"
            why = " (it goes with transition: crossfade; this shot has a cut)" if cut else ""
            raise ValueError(NOT_BUILT + why)
        return value

    def asked_s(self, fps: int) -> Fraction:
        """The length before it is rounded to whole frames."""
        if self.pixel_frames is not None:
            return Fraction(self.pixel_frames, fps)
        assert self.seconds is not None
        return as_written(self.seconds)

    def length(self, fps: int) -> int:
        """Pixel frames at ``fps``: rounded to the nearest, half up, and at least 1."""
        return max(1, math.floor(self.asked_s(fps) * fps + Fraction(1, 2)))


class JobSpec(Part):
    """A job as it was asked for. None means: as the model says."""

    version: Literal[1] = 1
    title: Annotated[str, Field(max_length=200)] = ""
    model: Annotated[str, Field(min_length=1, max_length=4096)] = "demo"
    size: Annotated[tuple[Side, Side], Field(strict=False)] | None = None  # width, height, px
    fps: Fps | None = None  # of the film
    model_fps: Fps | None = None  # what the model is asked to make
    seed: Seed = 0
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    scheduler: SchedulerName = "auto"
    flow_shift: Annotated[float, Field(gt=0, le=100)] | None = None
    guidance: Guidance | None = None  # one for all experts, or one each
    negative: Text | None = None
    text_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    dtype: DtypeName = "auto"
    decoder_dtype: DtypeName = "auto"
    preset: PresetName = "exact"
    accelerations: Annotated[Accelerations, BeforeValidator(_none_is_off)] = Accelerations()
    regions: Annotated[int, Field(ge=1, le=64)] = 1
    pyramid: Pyramid = "auto"
    pyramid_steps: StepShares | None = None  # of the stages, coarsest first
    pyramid_first_stage: FirstStage = "windows"
    numerics: Literal["any", "pinned"] = "any"
    threads: Annotated[int, Field(ge=1, le=256)] = 1  # CPU threads per worker
    window_latent_frames: Annotated[int, Field(ge=1, le=4096)] | None = None
    overlap_latent_frames: Annotated[int, Field(ge=0, le=4095)] | None = None
    repeated_noise: Annotated[float, Field(ge=0, le=1)] = 0.0  # share, by variance
    checkpoint_every: Annotated[int, Field(ge=1, le=1000)] = 5  # steps
    loras: Loras = ()
    audio: SoundTrack = None
    output: Output = Output()
    shots: Annotated[tuple[Shot, ...], Field(strict=False, min_length=1, max_length=10_000)]

    _places: Places = PrivateAttr(default_factory=Places)
    _one_guidance = field_validator("guidance", mode="before")(_number_or_list)

    @model_validator(mode="before")
    @classmethod
    def _one_shot(cls, data: Any) -> Any:
        """``prompt`` and ``seconds`` at the top are short for one shot."""
        if not isinstance(data, Mapping) or "shots" in data:
            return data
        shot = {key: data[key] for key in SHORTHAND if key in data}
        rest = {key: value for key, value in data.items() if key not in SHORTHAND}
        return rest | {"shots": [shot]}

    @field_validator("title")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("must be one line of printable text")
        return value

    @field_validator("size", mode="before")
    @classmethod
    def _size_text(cls, value: Any) -> Any:
        """``832x480`` is the same as [832, 480]."""
        found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", value) if isinstance(value, str) else None
        return (int(found[1]), int(found[2])) if found else value

    @field_validator("model_fps")
    @classmethod
    def _same_fps(cls, value: int | None, info: ValidationInfo) -> int | None:
        fps = info.data.get("fps")
        if value is not None and fps is not None and value != fps:
            raise ValueError(f"a model_fps other than fps ({fps}) is not built yet; remove it")
        return value

    @field_validator("regions")
    @classmethod
    def _one_region(cls, value: int) -> int:
        if value != 1:
            raise ValueError("more than 1 is not built yet; remove it")
        return value

    def canonical(self) -> dict[str, Any]:
        """Plain JSON data, equal for equal jobs; `JobSpec.model_validate` reads it back."""
        return self.model_dump(mode="json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedShot:
    """A shot with everything concrete. ``prompt`` is empty where the model reads none."""

    prompt: str
    negative_prompt: str
    seed: int
    guidance: tuple[float, ...]  # one per expert
    pixel_frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedSpec:
    """A job with everything concrete. ``flow_shift`` None: as the model's scheduler says."""

    title: str
    model: str
    width_px: int
    height_px: int
    fps: int
    stage_steps: tuple[int, ...]  # of the stages of the pyramid, coarsest first
    first_stage: FirstStage
    scheduler: SchedulerName
    flow_shift: float | None
    text_tokens: int
    dtype: DtypeName
    decoder_dtype: DtypeName
    preset: PresetName
    accelerations: Accelerations
    numerics: Literal["any", "pinned"]
    threads: int
    window_latent_frames: int
    overlap_latent_frames: int
    repeated_noise: float
    checkpoint_every: int
    codec: Literal["h264", "ffv1"]
    quality: int
    shots: tuple[ResolvedShot, ...]
    warnings: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        return sum(self.stage_steps)

    @property
    def pixel_frames(self) -> int:
        return sum(shot.pixel_frames for shot in self.shots)

    def canonical(self) -> dict[str, Any]:
        """Plain JSON data, equal for equal jobs."""
        plain = asdict(self)
        plain["shots"] = [
            shot | {"guidance": list(shot["guidance"])} for shot in map(dict, plain["shots"])
        ]
        return plain | {"accelerations": self.accelerations.recipe()}


def resolve(spec: JobSpec, geometry: ModelGeometry, defaults: ModelDefaults) -> ResolvedSpec:
    """Fill in the model's defaults and check against its geometry. Raises BadJob.

    A shot without a seed gets the job's seed plus its position, counted from 0. So editing one
    shot changes no other; inserting or removing one does renumber those behind it, unless they
    have seeds of their own.
    """
    fps = _or(spec.fps, defaults.fps)
    width, height = _or(spec.size, defaults.size)
    window = _or(spec.window_latent_frames, geometry.window_latent_frames)
    overlap = _or(spec.overlap_latent_frames, min(geometry.overlap_latent_frames, window - 1))
    steps = _or(spec.steps, defaults.steps)
    shares = step_shares(spec, defaults)
    asked = combined(spec.preset, spec.accelerations, geometry.family)
    problems = [
        *pyramid_problems(spec, defaults, steps, shares),
        *size_problems(width, height, geometry.size_multiple),
        *layout_problems(spec, window, overlap),
        *time_problems(spec, fps),
        *guidance_problems(spec, geometry.experts),
        *acceleration_problems(
            spec, asked, split_steps(steps, shares) if steps >= len(shares) else ()
        ),
        *image_problems(spec, geometry),
        *refused_problems(spec, geometry),
        *single_window_problems(spec, geometry, fps, len(shares)),
    ]
    if problems:
        raise bad_job(problems, spec._places)
    return ResolvedSpec(
        title=spec.title,
        model=spec.model,
        width_px=width,
        height_px=height,
        fps=fps,
        stage_steps=split_steps(steps, shares),
        first_stage=spec.pyramid_first_stage,
        warnings=pyramid_warnings(len(shares), defaults, geometry.family),
        scheduler=spec.scheduler,
        flow_shift=_or(spec.flow_shift, defaults.flow_shift),
        text_tokens=_or(spec.text_tokens, defaults.text_tokens),
        dtype=spec.dtype,
        decoder_dtype=spec.decoder_dtype,
        preset=spec.preset,
        accelerations=asked,
        numerics=spec.numerics,
        threads=spec.threads,
        window_latent_frames=window,
        overlap_latent_frames=overlap,
        repeated_noise=spec.repeated_noise,
        checkpoint_every=spec.checkpoint_every,
        codec=spec.output.codec,
        quality=spec.output.quality,
        shots=_resolve_shots(spec, fps, geometry.experts, defaults),
    )


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _resolve_shots(
    spec: JobSpec, fps: int, experts: int, defaults: ModelDefaults
) -> tuple[ResolvedShot, ...]:
    shots = []
    for index, shot in enumerate(spec.shots):
        guidance = _or(_or(shot.guidance, spec.guidance), defaults.guidance)
        shots.append(
            ResolvedShot(
                prompt=_or(shot.prompt, ""),
                negative_prompt=_or(_or(shot.negative, spec.negative), defaults.negative),
                seed=_or(shot.seed, (spec.seed + index) % (MAX_SEED + 1)),
                guidance=guidance * experts if len(guidance) == 1 else guidance,
                pixel_frames=shot.length(fps),
            )
        )
    return tuple(shots)
