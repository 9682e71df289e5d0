"""``longtake presets JOB``: what each preset saves, and how far the film then differs, on the job's
own model and on this machine. What was found is kept, and listed by ``longtake presets``."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from PIL.Image import Image

from jobs.accelerations import Accelerations
from jobs.arrays import Bundle
from jobs.calibration import usual_folder
from jobs.errors import BadJob, UnitError
from jobs.files import replace_file
from jobs.presets import PRESETS
from jobs.spec import JobSpec, Output, Shot
from jobs.units import Unit
from orchestrator.engagement import proofs
from orchestrator.here import frames_of, in_order, render_units, worker_setup
from orchestrator.plan import Plan
from orchestrator.prepare import Prepared, prepare
from orchestrator.progress import clock
from orchestrator.room import check_room, lossless
from orchestrator.sample_job import window_pixel_frames

#: More shots say little more, and take longer.
MOST_SHOTS = 4
#: Frames of a shot in the picture, and characters that are written above them.
STILLS, LONGEST_CAPTION = 8, 120
#: The name of what a job asks for itself, beside the presets.
OWN = "this job"

Given = Mapping[Unit, Bundle]


@dataclass(frozen=True, slots=True)
class _Rendered:
    """What the shots of a plan took and gave, by shot."""

    steps_s: dict[int, float]
    frames: dict[int, np.ndarray]  # uint8 [F, H, W, 3]
    engaged: Counter[str]


def try_presets(
    spec: JobSpec, device: str, say: Callable[[str], None], *, stills: bool = False
) -> tuple[dict[str, Any], Image | None]:
    """Render a window of each of a job's longest shots in full, with each preset, and as the job
    itself asks, all from the same noise. Times are of steps alone, after one that warms up. With
    ``stills`` also a picture: frames of each shot by each setting.
    Raises BadJob, CannotRunHere, UnitError."""
    from workers.devices import device_of
    from workers.quiet import quiet_libraries

    quiet_libraries()
    device = device_of(device)
    whole = prepare(spec.model_copy(update=_settings("exact", lossless(spec))))
    for said in whole.plan.warnings:
        say(f"warning: {said}")
    jobs, refused = _prepared(_windows_of(spec, whole))
    check_room(jobs["exact"].plan, device, "the full render")
    trial, full, rows = _Trial(jobs, device, say, stills), jobs["exact"], list[dict[str, Any]]()

    def report() -> dict[str, Any]:
        others = [{"name": name, "refused": why} for name, why in refused.items()]
        film = {"step_s": trial.step_s(), "film_steps": step_count(whole.plan)}
        return _basis(full, device) | film | {"presets": rows + others}

    try:
        for name in jobs:
            rows.append(trial.row(name))
    except KeyboardInterrupt:
        if len(rows) > 1:  # the full render by itself says nothing
            _keep(report(), full.model.identity, say)
            say("what was tried is kept: longtake presets lists it")
        raise
    _keep(report(), full.model.identity, say)
    return report(), sheet(trial.stills, full.plan) if stills else None


def step_count(plan: Plan) -> int:
    """Of all windows of a plan."""
    stages = [each for shot in plan.shots for each in shot.stages]
    return sum(len(each.windows) * each.steps for each in stages)


class _Trial:
    """Renders by one setting after the other; of all but the full one only the row is kept, and a
    few frames where they are to be seen."""

    def __init__(
        self, jobs: Mapping[str, Prepared], device: str, say: Callable[[str], None], stills: bool
    ) -> None:
        self._jobs, self._device = jobs, device
        self._pace = _Pace(len(jobs), say)
        say("encoding what the shots start from")
        self._given = _encoded(jobs["exact"], device, say)
        self._full: _Rendered | None = None
        self._keeps_stills = stills
        self.stills: dict[str, dict[int, np.ndarray]] = {}  # by setting and shot

    def row(self, name: str) -> dict[str, Any]:
        """The full render, "exact", comes first. What another setting cannot do is told in its row:
        the others stand. Raises UnitError if the full render fails."""
        self._pace.begin(name)
        job = self._jobs[name]
        try:
            found = _render(job, self._device, self._given)
        except UnitError as failure:
            if self._full is None:
                raise
            return {"name": name, "failed": str(failure)}
        if self._keeps_stills:
            self.stills[name] = {shot: stills_of(each) for shot, each in found.frames.items()}
        if self._full is None:
            self._full = found
        return row(name, job.plan, found, self._full)

    def step_s(self) -> float:
        """Of a step of a tile in full."""
        assert self._full is not None
        return sum(self._full.steps_s.values()) / step_count(self._jobs["exact"].plan)


def _windows_of(spec: JobSpec, whole: Prepared) -> JobSpec:
    """The job with its longest shots alone, the longest first, and of each no more frames than a
    window of the coarsest stage spans. What is calibrated is calibrated on the longest shot, so
    it is found for them."""
    stages, window = len(whole.plan.shots[0].stages), spec.window_latent_frames
    most = window_pixel_frames(whole.model, stages, window)
    renders = [shot.render for shot in whole.plan.shots]
    longest = sorted(range(len(renders)), key=lambda shot: -renders[shot].pixel_frames)
    shots = tuple(
        _cut(spec.shots[shot], min(most, renders[shot].pixel_frames), renders[shot].seed)
        for shot in longest[:MOST_SHOTS]
    )
    return spec.model_copy(update={"shots": shots, "output": Output(codec="ffv1")})


def _cut(shot: Shot, pixel_frames: int, seed: int) -> Shot:
    """The beginning of a shot, with the seed that it has among others."""
    alone = {"seconds": None, "start_s": None, "pixel_frames": pixel_frames, "seed": seed}
    return shot.model_copy(update=alone)


def _prepared(spec: JobSpec) -> tuple[dict[str, Prepared], dict[str, str]]:
    """The settings to try by name, and why others are not for this job. Raises BadJob if none is
    but the full render, or if the job itself cannot be."""
    jobs, refused = dict[str, Prepared](), dict[str, str]()
    for name, each in _variants(spec):
        try:
            jobs[name] = prepare(each)
        except BadJob as refusal:
            if name in ("exact", OWN):
                raise
            refused[name] = str(refusal)
    if len(jobs) == 1:
        raise BadJob(f"no preset is for this job: {next(iter(refused.values()))}")
    return jobs, refused


def _variants(spec: JobSpec) -> Iterator[tuple[str, JobSpec]]:
    """The job with each preset, and as it is where it asks for something else."""
    own = lossless(spec)
    for name in PRESETS:
        yield name, spec.model_copy(update=_settings(name, own))
    if spec.accelerations != own:
        yield OWN, spec


def _settings(preset: str, own: Accelerations) -> dict[str, Any]:
    return {"preset": preset, "accelerations": own}


def _encoded(full: Prepared, device: str, say: Callable[[str], None]) -> dict[Unit, Bundle]:
    """What the shots start from: encoded once, by a worker that then ends."""
    plan, worker, given = full.plan, _worker(full, device), dict[Unit, Bundle]()
    for unit in in_order(plan):
        if unit.kind == "encode":
            report, given[unit] = worker.run(plan.task(unit, 1), [])
            if report.on_processor:
                say(f"{device} has no room for the model's encoders: they are on the processor")
    return given


def _render(job: Prepared, device: str, given: Given) -> _Rendered:
    plan, worker = job.plan, _worker(job, device)
    _warm_up(plan, worker, given)
    steps_s, engaged = dict.fromkeys(range(len(plan.shots)), 0.0), Counter[str]()
    pieces: dict[int, list[np.ndarray]] = {shot: [] for shot in steps_s}
    for report, output in render_units(plan, worker, given):
        engaged.update(report.engaged)
        if report.unit.kind == "step":
            steps_s[report.unit.shot] += report.elapsed_s
        elif report.unit.kind == "decode":
            pieces[report.unit.shot].append(frames_of(output))
    return _Rendered(steps_s, {s: np.concatenate(each) for s, each in pieces.items()}, engaged)


def _warm_up(plan: Plan, worker: Any, given: Given) -> None:
    """A first step loads weights and chooses kernels: of that no preset is guilty."""
    first = next(unit for unit in in_order(plan) if unit.kind == "step")
    worker.run(plan.task(first, 1), [given[each] for each in plan.inputs(first)])


def _worker(job: Prepared, device: str) -> Any:
    from workers.families.loading import release
    from workers.worker import Worker

    release(device)  # the last model would still be there
    folder = str(job.model.folder)
    return Worker(worker_setup(job.plan, "here", model=folder, device=device))


class _Pace:
    """Which setting is under way, and how long the others take, by those that are done."""

    def __init__(self, count: int, say: Callable[[str], None]) -> None:
        self._count, self._say = count, say
        self._begun: list[float] = []

    def begin(self, name: str) -> None:
        self._begun.append(time.monotonic())
        done = len(self._begun) - 1
        left_s = (self._begun[-1] - self._begun[0]) / max(done, 1) * (self._count - done)
        left = f"; about {clock(left_s)} left" if done else ""
        self._say(f"{name}, {done + 1} of {self._count}{left}")


def row(name: str, plan: Plan, found: _Rendered, full: _Rendered) -> dict[str, Any]:
    """A setting beside the full render: its speed is the median over shots, its PSNR the mean over
    those that differ; None where all frames are equal. ``idle``: accelerations that did nothing."""
    seen = [_apart(found.frames[shot], full.frames[shot]) for shot in full.frames]
    apart = [each["psnr_db"] for each in seen if each["psnr_db"] is not None]
    did = proofs(plan, found.engaged, complete=True)
    return {
        "name": name,
        "speed": median(full.steps_s[shot] / found.steps_s[shot] for shot in full.steps_s),
        "psnr_db": mean(apart) if apart else None,
        "worst_psnr_db": min(apart, default=None),
        "ssim": mean(each["ssim"] for each in seen),
        "worst_ssim": min(each["ssim"] for each in seen),
        "did": [f"{proof.name} {proof.said}" for proof in did],
        "idle": [proof.name for proof in did if proof.engaged is False],
        "accelerations": plan.accelerations.recipe(),
    }


def stills_of(frames: np.ndarray) -> np.ndarray:
    """A few of a shot's frames [F, H, W, 3], evenly spread over it."""
    return frames[[(2 * i + 1) * len(frames) // (2 * STILLS) for i in range(STILLS)]]


def sheet(stills: Mapping[str, Mapping[int, np.ndarray]], plan: Plan) -> Image | None:
    """A row for each shot by each setting, the settings of a shot one below the other."""
    from workers.contact_sheet import Row, sheet_of

    pairs = [(shot, name) for shot in range(len(plan.shots)) for name in stills]
    said = [plan.shots[shot].render.prompt for shot, _ in pairs]
    rows = [
        Row(f"shot {shot + 1}, {name}: {prompt}"[:LONGEST_CAPTION], n * STILLS, (n + 1) * STILLS)
        for n, ((shot, name), prompt) in enumerate(zip(pairs, said, strict=True))
    ]
    shown = (frame for shot, name in pairs for frame in stills[name][shot])
    return sheet_of(shown, rows, columns=STILLS)


def save_sheet(picture: Image, out: Path) -> None:
    """As a PNG. Raises BadJob where it cannot be written."""
    from workers.parts import whole_or_absent

    with whole_or_absent(out.expanduser(), "--picture") as part:
        picture.save(part, format="PNG")


def _apart(frames: np.ndarray, full: np.ndarray) -> dict[str, Any]:
    from workers.fidelity import compare

    if np.array_equal(frames, full):  # at once, where a comparison takes its time
        return {"psnr_db": None, "ssim": 1.0}
    return compare(frames, full).summary()


def _basis(full: Prepared, device: str) -> dict[str, Any]:
    """What was tried on what."""
    from workers.machine import device_name

    plan = full.plan
    return {
        "format": FORMAT,
        "model": plan.model,
        "loras": [[Path(lora.path).name, lora.scale] for lora in plan.loras],
        "family": plan.geometry.family,
        "dtype": plan.dtype,
        **({} if plan.decoder_dtype == "float32" else {"decoder_dtype": plan.decoder_dtype}),
        "size": [plan.width_px, plan.height_px],
        "stage_steps": list(plan.shots[0].render.stage_steps),
        "scheduler": plan.shots[0].render.scheduler,
        "guidance": list(plan.shots[0].render.guidance),
        "pixel_frames": [shot.render.pixel_frames for shot in plan.shots],
        "device": device_name(device),
    }


FORMAT = 1

#: What a trial finds, or what of its length is said; all else is what was tried.
_FOUND = ("presets", "step_s", "pixel_frames", "film_steps")
_KEPT = "tried-presets-{}.json"


def _keep(report: Mapping[str, Any], identity: str, say: Callable[[str], None]) -> None:
    """A later trial of the same takes its place."""
    of = {name: report[name] for name in report if name not in _FOUND}
    told = json.dumps(of | {"identity": identity}, sort_keys=True)
    path = usual_folder() / _KEPT.format(hashlib.sha256(told.encode()).hexdigest()[:24])
    try:
        replace_file(path, json.dumps(report, indent=1) + "\n")
    except OSError as error:
        say(f"longtake presets will not list this: {path} cannot be written: {error.strerror}")


def kept() -> list[dict[str, Any]]:
    """All that was tried here of models that are still there. What cannot be read is left out."""
    found = []
    for path in sorted(usual_folder().glob(_KEPT.format("*"))):
        with suppress(OSError, ValueError):
            found.append(json.loads(path.read_text("utf-8")))
    ours = [each for each in found if isinstance(each, dict) and each.get("format") == FORMAT]
    return [each for each in ours if _is_there(each["model"])]


def _is_there(model: str) -> bool:
    """A folder may be gone; other names can be had."""
    return not os.path.isabs(model) or os.path.isdir(model)
