"""What ``longtake calibrate`` finds, in files that are found again by what they were made for."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from jobs.errors import BadJob, CannotRunHere
from jobs.files import replace_file
from jobs.geometry import ModelGeometry
from jobs.model_hashes import cache_file
from jobs.pyramid import window_frames

FORMAT = 3

What = Literal["attention plan", "rehash profile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationKey:
    """A tile of a stage, and the way it takes: a calibration holds for nothing else."""

    model: str  # identity of the model folder, by the hashes of its files
    latent_size: tuple[int, int, int]  # frames of the stage, latent height and width of a tile
    stage_steps: tuple[int, ...]  # of all stages, coarsest first; a single one is no pyramid
    stage: int
    scheduler: str
    flow_shift: float | None  # None: as the model folder says
    guided: bool  # whether there is an unconditional branch
    dtype: str  # that the denoiser computes in

    @property
    def steps(self) -> int:
        """Of the stage."""
        return self.stage_steps[self.stage]

    def __str__(self) -> str:
        """All but the model, for a person."""
        frames, height, width = self.latent_size
        steps = "-".join(map(str, self.stage_steps))
        stage = f"stage {self.stage + 1} of " if len(self.stage_steps) > 1 else ""
        shift = "" if self.flow_shift is None else f", flow shift {self.flow_shift:g}"
        return (
            f"{stage}{steps} steps of {self.scheduler}{shift}, windows of {frames} x {height} x "
            f"{width} latents (frames, rows, columns), {'with' if self.guided else 'without'} "
            f"guidance, in {self.dtype}"
        )

    def file(self, what: What) -> str:
        """The name of a file."""
        text = json.dumps(asdict(self), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:24]
        return _name(what, digest)


def _name(what: What, digest: str) -> str:
    return f"{what.replace(' ', '-')}-{digest}.json"


def calibration_keys(
    geometry: ModelGeometry,
    *,
    latent_size: tuple[int, int, int],
    window_latent_frames: int | None,
    stage_steps: tuple[int, ...],
    guidance: Sequence[float],
    model: str,
    scheduler: str,
    flow_shift: float | None,
    dtype: str,
) -> tuple[CalibrationKey, ...]:
    """What is calibrated for each stage of a shot has these: ``latent_size`` is its latent frames,
    height and width, of which a window has ``window_latent_frames``, or as many as its stage has
    (None: all). ``model`` is the identity of the model's folder, ``scheduler`` one by name,
    ``dtype`` what the denoiser computes in."""
    frames, height, width = latent_size
    windows = window_frames(
        frames, len(stage_steps), window_latent_frames, first_alone=geometry.first_alone
    )
    return tuple(
        CalibrationKey(
            model=model,
            latent_size=(count, height, width),
            stage_steps=stage_steps,
            stage=stage,
            scheduler=scheduler,
            flow_shift=flow_shift,
            guided=geometry.has_two_branches(guidance),
            dtype=dtype,
        )
        for stage, count in enumerate(windows)
    )


def usual_folder() -> Path:
    """Where calibrations are kept unless a job or a command names another place."""
    found = os.environ.get("LONGTAKE_PLANS")
    return Path(found) if found else cache_file().parent / "plans"


def save(
    folder: Path, what: What, key: CalibrationKey, found: Mapping[str, Any], how: Mapping[str, Any]
) -> Path:
    """Write ``found`` where ``load`` looks for it; ``how`` says how it was found. Raises BadJob."""
    path = folder / key.file(what)
    record = {"format": FORMAT, "key": asdict(key), **found, "how": dict(how)}
    try:
        replace_file(path, json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise BadJob(
            f"{path} cannot be written: {error.strerror}; choose another folder"
        ) from error
    return path


def found_in(folder: Path) -> dict[str, Any]:
    """All that was found and lies in a folder, by file, without how it was found. What is only
    begun, and what cannot be read, is not among it."""
    told: dict[str, Any] = {}
    for what in get_args(What):
        for path in folder.glob(_name(what, "*")):
            with suppress(OSError, ValueError):
                record = json.loads(path.read_text())
                told[path.name] = record | {"how": None} if isinstance(record, dict) else record
    return told


def load(folder: Path, what: What, key: CalibrationKey) -> tuple[dict[str, Any], Path]:
    """What was found for ``key``, and its file. Raises CannotRunHere if there is none, or if it is
    of another format or key."""
    path = folder / key.file(what)
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CannotRunHere(f"{folder} has no {what} of this model for {key}") from None
    except ValueError as error:
        raise CannotRunHere(f"{path} is no {what} ({error}): calibrate again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CannotRunHere(f"{path} is no {what} of format {FORMAT}: calibrate again")
    if record.get("key") != json.loads(json.dumps(asdict(key))):
        raise CannotRunHere(f"{path} was made for another model, or not for {key}: calibrate again")
    return record, path
