"""Profiles of Step Rehash: how alike the features are that it would reuse, by a few prompts.

What a shot has shown in a stage is on file as soon as it has gone through it, so that the same call
goes on after an interruption.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accel import rehash
from accel.handle import TileStep
from jobs.accelerations import Rehash, Slicing
from jobs.arrays import decode_bundle, encode_bundle
from jobs.calibration import CalibrationKey
from jobs.errors import BadJob, DamagedRecord
from jobs.files import replace_file
from jobs.rehash_profile import Similarity, save
from jobs.units import ShotRender, Unit
from workers.bundles import to_bundle, to_tensor
from workers.calibration import CalibrationSample, common_keys, prompts_of, sliced
from workers.families.family import ModelFamily

FORMAT = 1

#: By stage and number of the shot.
_Files = Mapping[tuple[int, int], "PartFile"]


def find_profiles(
    family: ModelFamily,
    model: str,
    shots: Sequence[ShotRender],
    *,
    folder: Path,
    window_latent_frames: int | None = None,
    slicing: Slicing | None = None,
    progress: Callable[[int, int, int], None] = lambda stage, sample, step: None,
) -> list[Similarity]:
    """How alike the features are that Step Rehash would reuse, [steps, steps] for each stage: the
    mean over the first windows of ``shots`` and their guidance branches. Saved in ``folder``, and
    what each shot has shown in each stage as well: the same call goes on after an interruption.
    ``slicing`` changes nothing that is found. ``progress`` is told the stage, the number of the
    shot and the step that is done.

    Raises BadJob for shots that no single profile is for, UnitError for a model whose predictions
    are no numbers, CannotRunHere."""
    keys = common_keys(family, model, shots, window_latent_frames)
    files = {
        (key.stage, number): PartFile.of(folder, keys, key.stage, shot)
        for key in keys
        for number, shot in enumerate(shots)
    }
    _find_missing(family, keys, shots, files, window_latent_frames, slicing, progress)
    found = list[Similarity]()
    for key in keys:
        parts = [files[key.stage, number].read() for number in range(len(shots))]
        every = [each for part in parts if part is not None for each in part.similarities]
        mean: Similarity = np.mean(every, axis=0)
        found.append(mean)
        save(folder, key, mean, {"prompts": prompts_of(shots)})
    return found


def _find_missing(
    family: ModelFamily,
    keys: Sequence[CalibrationKey],
    shots: Sequence[ShotRender],
    files: _Files,
    window: int | None,
    slicing: Slicing | None,
    progress: Callable[[int, int, int], None],
) -> None:
    """Send the shots through the stages that are not on file, a stage after the other. Where all
    are, no weights are loaded."""
    missing = {place for place, file in files.items() if file.read() is None}
    left = sorted({number for _, number in missing})
    samples = {number: CalibrationSample(family, shots[number], window) for number in left}
    if not samples:
        return
    all_steps = tuple(tuple(range(key.steps)) for key in keys)
    with sliced(family, slicing), _rehashed(family, Rehash(key_steps=all_steps)) as handle:
        for key in keys:
            for number, sample in samples.items():
                file = files[key.stage, number]
                if (key.stage, number) in missing:
                    told = partial(progress, key.stage, number)
                    file.write(_through_stage(sample, key, handle, told))
                elif (part := file.read()) is not None and key.stage + 1 < len(keys):
                    sample.go_on(key.stage + 1, part.latents)


@contextmanager
def _rehashed(family: ModelFamily, config: Rehash) -> Iterator[rehash.RehashHandle]:
    handle = rehash.apply(family.denoiser, config)
    try:
        yield handle
    finally:
        handle.remove()


@dataclass(frozen=True, slots=True)
class Part:
    """What a shot has shown in a stage."""

    similarities: list[Similarity]  # [steps, steps] of each guidance branch
    latents: torch.Tensor  # [1, C, T, H, W] of the next stage's start, or the finished ones


def _through_stage(
    sample: CalibrationSample,
    key: CalibrationKey,
    handle: rehash.RehashHandle,
    progress: Callable[[int], None],
) -> Part:
    """Features of all steps are held at once, and not on the device, which may have room for one
    step's alone."""
    features = defaultdict[str, list[torch.Tensor]](list)
    for step in range(key.steps):
        # One step more than there are: the last one's features are kept, too.
        unit = Unit("step", 0, stage=key.stage, step=step)
        tile = TileStep(unit=unit, steps=key.steps + 1)
        sample.advance(sample.predict(partial(handle.run, tile)))
        for name, feature in tile.kept.items():
            features[name].append(feature.cpu())
        progress(step)
    return Part([rehash.similarity(each) for each in features.values()], sample.latents)


@dataclass(frozen=True, slots=True)
class PartFile:
    """A part in a file; ``made_for`` tells it from others."""

    path: Path
    made_for: Mapping[str, Any]

    @classmethod
    def of(
        cls, folder: Path, keys: Sequence[CalibrationKey], stage: int, shot: ShotRender
    ) -> PartFile:
        """That of a shot, all of which counts, in one of its stages."""
        told = asdict(shot)
        del told["repeated_noise"]  # there is none in a calibration
        how = {"keys": [asdict(key) for key in keys], "stage": stage, "shot": told}
        text = json.dumps(how, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:24]
        return cls(folder / f"rehash-part-{digest}.json", json.loads(text))

    @property
    def steps(self) -> int:
        """Of the stage."""
        stage = self.made_for["stage"]
        return int(self.made_for["keys"][stage]["stage_steps"][stage])

    def read(self) -> Part | None:
        """None if there is none yet. Raises BadJob if the file holds something else."""
        try:
            record = json.loads(self.path.read_text("utf-8"))
            if record["format"] != FORMAT or record["made_for"] != self.made_for:
                raise BadJob(f"{self.path} is of another calibration; delete it")
            bundle = decode_bundle(base64.b64decode(record["latents"], validate=True))
            similarities = [np.array(each, dtype=np.float64) for each in record["similarities"]]
            _check_similarities(similarities, self.steps)
            return Part(similarities, to_tensor(bundle, "latents"))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, binascii.Error, DamagedRecord) as error:
            raise BadJob(f"{self.path} is no part of a profile ({error}); delete it") from error

    def write(self, part: Part) -> None:
        """Raises BadJob where nothing can be written."""
        data = encode_bundle(to_bundle({"latents": part.latents}))
        record = {
            "format": FORMAT,
            "made_for": self.made_for,
            "similarities": [each.tolist() for each in part.similarities],
            "latents": base64.b64encode(data).decode(),
        }
        try:
            replace_file(self.path, json.dumps(record) + "\n")
        except OSError as error:
            where = f"{self.path} cannot be written: {error.strerror}"
            raise BadJob(f"{where}; choose another folder") from error


def _check_similarities(similarities: Sequence[Similarity], steps: int) -> None:
    shapes = {each.shape for each in similarities}
    if shapes != {(steps, steps)} or not np.isfinite(similarities).all():
        raise ValueError(f"it does not hold similarities of {steps} steps")
