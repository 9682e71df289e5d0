"""A worker: one device that computes units. A plain class; works the same with and without Ray."""

from __future__ import annotations

import hashlib
import json
import os
import time
import traceback
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch

from accel import adaptive, compose, slicing
from accel.handle import TileStep
from jobs.accelerations import LOOKS_BACK, Adaptive
from jobs.arrays import Bundle
from jobs.errors import BadJob, CannotRunHere, UnitError
from jobs.families.slicing_memory import DECODERS, MOST_SLICES
from jobs.faults import fault_point
from jobs.numerics import WorkerProfile
from jobs.units import DecodeTask, EncodeTask, StepTask, Task, TaskReport, Unit
from workers import machine
from workers.bundles import to_bundle, to_tensor, to_tensors
from workers.carrying import ACCEL, remembers
from workers.decoding import NotFinite
from workers.families import open_family
from workers.families.family import stepper_of
from workers.schedulers import RangeStepper
from workers.setup import WorkerSetup
from workers.stepping import StageSteps
from workers.tiles import assemble, blend
from workers.video import encode_segment

#: Schedules are tiny; this bounds them in a worker that serves many jobs.
STEPPERS_KEPT = 16


class Worker:
    """Computes units for the shots of one model. Loads each part of the model when first needed.

    Raises ``BadJob`` or ``CannotRunHere`` at once for a setup or model folder that cannot work.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        self.setup = setup
        self._applied: compose.Applied | None = None
        self._decoder: slicing.SlicingHandle | None = None
        machine.configure(setup)
        self._bare_bytes = machine.held_bytes(setup.device)  # libraries, before any weight
        self._peak_bytes = 0  # beside them
        self._family = open_family(
            setup.family,
            setup.model,
            setup.dtype,
            setup.device,
            [(lora.path, lora.scale) for lora in setup.loras],
            setup.decoder_dtype,
        )
        self._numerics = machine.numerics_class(setup)
        self._steppers: OrderedDict[tuple[object, ...], RangeStepper] = OrderedDict()

    def profile(self) -> WorkerProfile:
        """What this worker is, and the memory it has left beside the accelerated denoiser."""
        self._attach()
        return WorkerProfile(
            numerics=self._numerics,
            free_bytes=machine.free_bytes(self.setup.device),
            model_bytes=self._family.loaded_bytes(),
            host=machine.host_name(),
            process=os.getpid(),
        )

    def run(self, task: Task, inputs: Sequence[Bundle]) -> tuple[TaskReport, Bundle]:
        """Compute a unit. Raises UnitError, and nothing else, when it cannot be computed."""
        begun, engaged = time.perf_counter(), Counter[str]()
        with _blame(task.unit, self.setup, self._family.vae_kind.__name__):
            fault_point("worker.before_unit", str(task.unit))
            output = self._dispatch(task, inputs, engaged)
            machine.synchronise(self.setup.device)
            elapsed_s = time.perf_counter() - begun
        with suppress(OSError):  # no room for a log line is no reason to lose the unit
            self._log(task, elapsed_s)
        report = TaskReport(
            unit=task.unit,
            attempt=task.attempt,
            worker=self.setup.worker,
            elapsed_s=elapsed_s,
            output_bytes=output.nbytes,
            numerics=self._numerics.digest(),
            remembers=remembers(output),
            engaged=dict(engaged),
        )
        return report, output

    def _dispatch(self, task: Task, inputs: Sequence[Bundle], engaged: Counter[str]) -> Bundle:
        if isinstance(task, EncodeTask):
            return self._encode(task)
        if isinstance(task, StepTask):
            return self._step(task, inputs, engaged)
        return self._decode(task, inputs, engaged)

    def _encode(self, task: EncodeTask) -> Bundle:
        embeddings = self._family.encode(task.shot)
        for name, tensor in embeddings.items():
            _check_finite(tensor, f"the {name} embeddings", task.unit, self.setup.dtype)
        return to_bundle(embeddings)

    def _step(self, task: StepTask, inputs: Sequence[Bundle], engaged: Counter[str]) -> Bundle:
        unit, shot = task.unit, task.shot
        predicts = unit.step < shot.stage_steps[unit.stage]
        before = inputs[1:] if predicts else inputs
        _check_inputs(task, before)
        stage = self._stage(task)
        if unit.step == 0:
            latents, history = self._start(task, before, stage), {}
        else:
            latents, history = self._settle(task, before, stage)
            _check_finite(latents, "the latents", unit, self.setup.dtype)
        output = {"latents": latents}
        if predicts:
            own = before[task.covering.index(task.window)] if unit.step > 0 else None
            tile = self._tile_step(task, own, engaged)
            output["prediction"] = self._predict(task, tile, latents, own, stage, inputs[0])
            output |= {f"history.{name}": tensor for name, tensor in history.items()}
            output |= {f"{ACCEL}{name}": tensor for name, tensor in tile.kept.items()}
        return to_bundle(output)

    def _tile_step(self, task: StepTask, own: Bundle | None, engaged: Counter[str]) -> TileStep:
        """What the accelerations left with this tile at its step before goes on with it."""
        return TileStep(
            unit=task.unit,
            steps=task.shot.stage_steps[task.unit.stage],
            carried=to_tensors(own, ACCEL, self.setup.device) if own is not None else {},
            engaged=engaged,
        )

    def _added(self, task: StepTask, stage: StageSteps) -> list[adaptive.Noise]:
        """The noise of the steps that a decision looks back at, newest first."""
        last = range(task.unit.step - LOOKS_BACK, task.unit.step)
        if not stage.stepper.adds_noise or last.start < 0:
            return []
        frames = (task.window.start, task.window.stop)
        scaled = [
            (stage.stepper.noise_scale(s), stage.step_noise(s, frames)) for s in reversed(last)
        ]
        return [adaptive.Noise(*each) for each in scaled]

    def _stand_in(
        self,
        config: Adaptive,
        task: StepTask,
        tile: TileStep,
        latents: torch.Tensor,
        own: Bundle | None,
        stage: StageSteps,
    ) -> torch.Tensor | None:
        """What takes the place of a prediction, if the tile's step can do without the model."""
        before = None if own is None else to_tensor(own, "latents", self.setup.device)
        added, mix = self._added(task, stage), stage.stepper.mix
        if not adaptive.skips(config, tile, latents, before, mix, added):
            return None
        assert own is not None and before is not None, "a stage's first step always runs"
        # What others remember waits for the next step that runs.
        tile.kept.update({k: v for k, v in tile.carried.items() if k not in tile.kept})
        told = to_tensor(own, "prediction", self.setup.device)
        last = stage.stepper.renewed(task.unit.step, told, before, latents)
        return adaptive.stand_in(config, tile, last)

    def _start(self, task: StepTask, parents: Sequence[Bundle], stage: StageSteps) -> torch.Tensor:
        """What a stage starts from: noise, or the finished stage before at twice the frame rate."""
        frames = (task.window.start, task.window.stop)
        if task.unit.stage == 0:
            return stage.start(frames)
        pieces = [
            (parent.start, to_tensor(bundle, "latents", self.setup.device))
            for parent, bundle in zip(task.parents, parents, strict=True)
        ]
        return stage.jump(frames, assemble(pieces, task.owned), task.owned[0][0])

    def _settle(
        self, task: StepTask, before: Sequence[Bundle], stage: StageSteps
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Finish the step before over the window: blend what was predicted, step the scheduler.

        Latents and history are the window's own: every window over a place has the same there.
        """
        device = self.setup.device
        own = before[task.covering.index(task.window)]
        predictions = [to_tensor(bundle, "prediction", device) for bundle in before]
        return stage.settle(
            task.unit.step - 1,
            (task.window.start, task.window.stop),
            blend(task.window, task.covering, predictions),
            to_tensor(own, "latents", device),
            to_tensors(own, "history.", device),
        )

    def _predict(
        self,
        task: StepTask,
        tile: TileStep,
        latents: torch.Tensor,
        own: Bundle | None,
        stage: StageSteps,
        embeddings: Bundle,
    ) -> torch.Tensor:
        """The model's prediction, or what stands in for it; ``own`` is the tile's step before."""
        config = self.setup.accelerations.adaptive
        if config is not None:
            stand_in = self._stand_in(config, task, tile, latents, own, stage)
            if stand_in is not None:
                return stand_in
        told = to_tensors(embeddings, device=self.setup.device)
        branch = partial(self._attach().run, tile)
        prediction = stage.predict(task.unit.step, latents, told, branch)
        _check_finite(prediction, "the model's prediction", task.unit, self.setup.dtype)
        if config is not None:
            adaptive.remember(config, tile, prediction)
        return prediction

    def _decode(self, task: DecodeTask, inputs: Sequence[Bundle], engaged: Counter[str]) -> Bundle:
        latents = assemble(
            [
                (window.start, to_tensor(bundle, "latents"))
                for window, bundle in zip(task.windows, inputs, strict=True)
            ],
            task.owned,
        )
        assert latents.shape[2] >= task.stop - task.warm_start, "owned must reach to stop"
        with self._sliced_decoder(task.unit, engaged):
            frames = self._family.decode(task, latents)
        first, stop = self._family.geometry.pixel_range(task.start, task.stop)
        frames = frames[: min(stop, task.shot.pixel_frames) - first]
        segment = encode_segment(frames, fps=task.shot.fps, codec=task.codec, quality=task.quality)
        return Bundle.of(
            {"segment": np.frombuffer(segment, dtype=np.uint8)},
            meta={
                "codec": task.codec,
                "first_pixel_frame": str(first),
                "pixel_frames": str(len(frames)),
                "frame_sha256": json.dumps([_sha256(frame) for frame in frames]),
            },
        )

    @contextmanager
    def _sliced_decoder(self, unit: Unit, engaged: Counter[str]) -> Iterator[None]:
        """Slicing is for decoders that take all their frames at once, too. Counts the groups that
        were cut as ``slicing.decoder``."""
        sliced = self.setup.accelerations.slicing
        if sliced is None or type(self._family.vae).__name__ not in slicing.MODELS:
            yield
            return
        if self._decoder is None:
            self._decoder = slicing.apply(self._family.vae, sliced)
        tile = TileStep(unit=unit)
        with self._decoder.run(tile, "cond"):
            yield
        engaged[f"{slicing.NAME}.decoder"] += tile.engaged[slicing.NAME]

    def _attach(self) -> compose.Applied:
        if self._applied is None:
            self._applied = compose.apply(
                self._family.denoiser, compose.attached(self.setup.accelerations)
            )
        return self._applied

    def _stage(self, task: StepTask) -> StageSteps:
        return StageSteps(
            family=self._family,
            shot=task.shot,
            stage=task.unit.stage,
            stepper=self._stepper(task),
            device=self.setup.device,
        )

    def _stepper(self, task: StepTask) -> RangeStepper:
        """All windows of a stage have the same length, hence the same schedule."""
        shot, stage = task.shot, task.unit.stage
        places = task.window.latent_frames * shot.latent_height * shot.latent_width
        key = (shot.scheduler, shot.stage_steps, stage, shot.flow_shift, places)
        if key not in self._steppers:
            self._steppers[key] = stepper_of(self._family, shot, stage, places, self.setup.device)
            while len(self._steppers) > STEPPERS_KEPT:
                self._steppers.popitem(last=False)
        return self._steppers[key]

    def _log(self, task: Task, elapsed_s: float) -> None:
        """This worker's own account of what it computed, whatever becomes of the result."""
        if self.setup.log_dir is None:
            return
        unit = task.unit
        # What a system says of a process's peak may fall by a few pages.
        peak_bytes = machine.peak_bytes(self.setup.device) - self._bare_bytes
        self._peak_bytes = max(self._peak_bytes, peak_bytes)
        line = {
            "unit": str(unit),
            "kind": unit.kind,
            "shot": unit.shot,
            "stage": unit.stage,
            "index": unit.index,
            "step": unit.step,
            "attempt": task.attempt,
            "elapsed_s": elapsed_s,
            "peak_bytes": self._peak_bytes,
            "at_s": time.time(),
        }
        folder = Path(self.setup.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{self.setup.worker}.jsonl", "a") as log:  # closed, hence flushed
            log.write(json.dumps(line) + "\n")


@contextmanager
def _blame(unit: Unit, setup: WorkerSetup, autoencoder: str) -> Iterator[None]:
    """Turn whatever goes wrong in a unit into a UnitError that says whose fault it is."""
    try:
        yield
    except UnitError:
        raise
    except NotFinite:
        what, field = "the decoded pixels", "decoder_dtype"
        raise _not_finite(unit, what, field, setup.decoder_dtype) from None
    except (BadJob, CannotRunHere) as error:
        raise UnitError("bad_job", f"{unit}: {error}") from error
    except Exception as error:
        if machine.ran_out_of_memory(error):
            raise UnitError(
                "out_of_memory",
                f"{unit}: {setup.device} of worker {setup.worker} ran out of memory with "
                f"{machine.free_bytes(setup.device) / 2**30:.1f} GiB free; "
                f"{_less_memory(unit, setup, autoencoder)} ({error})",
            ) from error
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise UnitError(
            "worker",
            f"{unit}: {type(error).__name__}: {error} "
            f"(at {Path(where.filename).name}:{where.lineno} in {where.name}: {where.line})",
        ) from error


def _less_memory(unit: Unit, setup: WorkerSetup, autoencoder: str) -> str:
    """What a job can ask for, so that a unit which ran out needs less. ``autoencoder`` is the class
    of the model's."""
    fixes, asked = "plan smaller windows or a smaller size", setup.accelerations
    if unit.kind == "decode" and setup.decoder_dtype == "float32":
        fixes += ", or decoder_dtype: float16 or bfloat16"
    is_cut = unit.kind == "step" or (unit.kind == "decode" and autoencoder in DECODERS)
    if not is_cut:
        return fixes
    now = (asked.slicing and asked.slicing.slices) or 4
    if now >= MOST_SLICES:
        return fixes
    return f"{fixes}, or accelerations: {{slicing: {{slices: {min(2 * now, MOST_SLICES)}}}}}"


def _check_inputs(task: StepTask, before: Sequence[Bundle]) -> None:
    expected = len(task.covering) if task.unit.step > 0 else len(task.parents)
    assert len(before) == expected, f"{task.unit} needs {expected} windows, got {len(before)}"
    assert task.unit.step == 0 or task.window in task.covering


def _check_finite(tensor: torch.Tensor, what: str, unit: Unit, dtype: str) -> None:
    if not torch.isfinite(tensor).all():
        raise _not_finite(unit, what, "dtype", dtype)


def _not_finite(unit: Unit, what: str, field: str, dtype: str) -> UnitError:
    """``field`` of the job is where ``dtype`` was said."""
    if dtype == "float16":
        fix = f"its range is small: use {field} bfloat16 or float32"
    elif dtype == "bfloat16":
        fix = f"try {field} float32"
    else:
        fix = "the model's weights or the guidance may be at fault: try a lower guidance"
    return UnitError("not_finite", f"{unit}: {what} became NaN or infinite in {dtype}; {fix}")


def _sha256(frame: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(frame)).hexdigest()
