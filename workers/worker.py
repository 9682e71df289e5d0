"""A worker: one device that computes units. A plain class; works the same with and without Ray."""

from __future__ import annotations

import os
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from accel import adaptive, compose, slicing
from accel.handle import TileStep
from jobs.accelerations import LOOKS_BACK, Adaptive, Slicing
from jobs.arrays import Bundle
from jobs.errors import UnitError
from jobs.faults import fault_point
from jobs.numerics import NumericsClass, WorkerProfile
from jobs.units import DecodeTask, EncodeTask, Stayed, StepTask, Task, TaskReport, Unit, UnitKind
from workers import machine
from workers.account import Account
from workers.blame import blame, check_finite
from workers.bundles import piece_bundle, to_bundle, to_tensor, to_tensors
from workers.carrying import ACCEL, remembers
from workers.depth import Depth, TooLarge, in_model
from workers.encoding import encode, is_moved
from workers.families import open_family
from workers.families.family import stepper_of
from workers.families.loading import release
from workers.schedulers import RangeStepper
from workers.setup import WorkerSetup
from workers.shelf import Shelf
from workers.stepping import StageSteps
from workers.tiles import assemble, blend
from workers.video import encode_segment

#: Schedules are tiny; this bounds them in a worker that serves many jobs.
STEPPERS_KEPT = 16


@dataclass(slots=True, kw_only=True)
class _Errand:
    """One run of a unit: what came with it, and what is told of it."""

    stayed: Stayed | None
    may_stay: bool
    stays: bool = False
    on_processor: bool = False
    left: MutableMapping[str, torch.Tensor] = field(default_factory=dict)
    waiting_bytes: int = 0  # of other tiles, on the shelf
    engaged: Counter[str] = field(default_factory=Counter)


class Worker:
    """Computes units for the shots of one model. Loads each part of the model when first needed.

    Raises ``BadJob`` or ``CannotRunHere`` at once for a setup or model folder that cannot work.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        self.setup = setup
        self._applied: compose.Applied | None = None
        self._decoder: slicing.SlicingHandle | None = None
        self.shelf = Shelf(setup.device)
        machine.configure(setup)
        self._account = Account(setup)  # before any weight
        self._family = open_family(
            setup.family,
            setup.model,
            setup.dtype,
            setup.device,
            [(lora.path, lora.scale) for lora in setup.loras],
            setup.decoder_dtype,
        )
        self._depth = Depth(setup.accelerations.slicing, self._family.vae_kind.__name__)
        self._numerics = machine.numerics_class(setup)
        self._told_of_encoders = False
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

    def run(
        self,
        task: Task,
        inputs: Sequence[Bundle],
        *,
        stayed: Stayed | None = None,
        may_stay: bool = False,
    ) -> tuple[TaskReport, Bundle]:
        """Compute a unit; in more slices, if the setup lets it, where memory runs out in the model.
        Raises UnitError, and nothing else, when it cannot be computed.

        ``stayed``: what the accelerations left with the tile is on this worker's shelf, not with
        the inputs. ``may_stay``: much that they leave goes there, not into the output.
        """
        attempt = partial(self._run, task, inputs, stayed, may_stay)
        try:
            return attempt()
        except TooLarge as error:
            if not self.setup.deepens:
                raise
            ran_out = str(error)
        return self._depth.retry(task.unit.kind, attempt, self._recut, ran_out)

    def _recut(self, kind: str, slicing: Slicing | None) -> None:
        self._depth.take(kind, slicing)
        handle = self._applied if kind == "step" else self._decoder
        if handle is not None:
            handle.remove()
        if kind == "step":
            self._applied = None
        else:
            self._decoder = None
            self._family.drop_lanes()  # a piece is of one class from its warm-up on
        release(self.setup.device)

    def _run(
        self, task: Task, inputs: Sequence[Bundle], stayed: Stayed | None, may_stay: bool
    ) -> tuple[TaskReport, Bundle]:
        """Once, in as many slices as now."""
        begun, kind = time.perf_counter(), task.unit.kind
        errand = _Errand(stayed=stayed, may_stay=may_stay)
        with blame(task.unit, self.setup, self._depth):
            fault_point("worker.before_unit", str(task.unit))
            errand.waiting_bytes = self.shelf.make_room(errand.stayed)
            output = self._dispatch(task, inputs, errand)
            machine.synchronise(self.setup.device)
            self._leave(task, errand)
            elapsed_s = time.perf_counter() - begun
        with suppress(OSError):  # no room for a log line is no reason to lose the unit
            self._account.note(
                task, elapsed_s, stays=errand.stays, waiting_bytes=errand.waiting_bytes
            )
        report = TaskReport(
            unit=task.unit,
            attempt=task.attempt,
            worker=self.setup.worker,
            elapsed_s=elapsed_s,
            output_bytes=output.nbytes,
            numerics=self._class_of(kind).digest(),
            remembers=errand.stays or remembers(output),
            stays=errand.stays,
            engaged=dict(errand.engaged),
            on_processor=errand.on_processor,
        )
        return report, output

    def _class_of(self, kind: UnitKind) -> NumericsClass:
        if kind == "encode" and is_moved(self._family):
            there = replace(self.setup, device=str(self._family.encodes_on))
            return replace(machine.numerics_class(there), threads=machine.cores())
        return replace(self._numerics, slices=self._depth.slices(kind))

    def _dispatch(self, task: Task, inputs: Sequence[Bundle], errand: _Errand) -> Bundle:
        if isinstance(task, EncodeTask):
            return self._encode(task, errand)
        if isinstance(task, StepTask):
            return self._step(task, inputs, errand)
        return self._decode(task, inputs, errand.engaged)

    def _encode(self, task: EncodeTask, errand: _Errand) -> Bundle:
        embeddings = encode(self._family, task.shot, self.setup.encoding_bytes)
        for name, tensor in embeddings.items():
            check_finite(tensor, f"the {name} embeddings", task.unit, self.setup.dtype)
        errand.on_processor = is_moved(self._family) and not self._told_of_encoders
        self._told_of_encoders = self._told_of_encoders or errand.on_processor
        return to_bundle(embeddings)

    def _step(self, task: StepTask, inputs: Sequence[Bundle], errand: _Errand) -> Bundle:
        unit = task.unit
        predicts = _predicts(task)
        before = inputs[1:] if predicts else inputs
        _check_inputs(task, before)
        stage = self._stage(task)
        if unit.step == 0:
            latents, history = self._start(task, before, stage), {}
        else:
            latents, history = self._settle(task, before, stage)
            check_finite(latents, "the latents", unit, self.setup.dtype)
        output = {"latents": latents}
        if predicts:
            own = before[task.covering.index(task.window)] if unit.step > 0 else None
            tile = self._tile_step(task, own, errand)
            output["prediction"] = self._predict(task, tile, latents, own, stage, inputs[0])
            output |= {f"history.{name}": tensor for name, tensor in history.items()}
            is_read = unit.step + 1 < tile.steps
            errand.stays = errand.may_stay and is_read and self.shelf.takes(tile.kept)
            if errand.stays:
                errand.left = tile.kept
            else:
                output |= {f"{ACCEL}{name}": tensor for name, tensor in tile.kept.items()}
        return to_bundle(output)

    def _leave(self, task: Task, errand: _Errand) -> None:
        """Once the step is done: one that fails, even here, is computed once more from what is
        there."""
        if errand.stays:
            self.shelf.put(Stayed(task.unit, task.attempt), errand.left)
        if errand.stayed is not None:
            self.shelf.drop(errand.stayed)

    def _tile_step(self, task: StepTask, own: Bundle | None, errand: _Errand) -> TileStep:
        """What the accelerations left with this tile at its step before goes on with it."""
        if errand.stayed is not None:
            carried = self.shelf.get(errand.stayed)
        else:
            carried = to_tensors(own, ACCEL, self.setup.device) if own is not None else {}
        if carried is None:
            raise UnitError("cluster", f"{task.unit}: what its tile had kept is gone")
        return TileStep(
            unit=task.unit,
            steps=task.shot.stage_steps[task.unit.stage],
            carried=carried,
            engaged=errand.engaged,
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
        with in_model(task.unit):
            prediction = stage.predict(task.unit.step, latents, told, branch)
        check_finite(prediction, "the model's prediction", task.unit, self.setup.dtype)
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
        self._family.free_text()  # before the decoder loads
        with self._sliced_decoder(task.unit, engaged), in_model(task.unit):
            frames = self._family.decode(task, latents)
        first, stop = self._family.geometry.pixel_range(task.start, task.stop)
        frames = frames[: min(stop, task.shot.pixel_frames) - first]
        segment = encode_segment(frames, fps=task.shot.fps, codec=task.codec, quality=task.quality)
        return piece_bundle(segment, task.codec, frames, first)

    @contextmanager
    def _sliced_decoder(self, unit: Unit, engaged: Counter[str]) -> Iterator[None]:
        """Slicing is for decoders that take all their frames at once, too. Counts the groups that
        were cut as ``slicing.decoder``."""
        sliced, decoder = self._depth.of(unit.kind), self._family.vae
        if sliced is None or type(decoder).__name__ not in slicing.MODELS:
            yield
            return
        if self._decoder is None:
            self._decoder = slicing.apply(decoder, sliced)
        tile = TileStep(unit=unit)
        with self._decoder.run(tile, "cond"):
            yield
        engaged[f"{slicing.NAME}.decoder"] += tile.engaged[slicing.NAME]

    def _attach(self) -> compose.Applied:
        if self._applied is None:
            sliced = {"slicing": self._depth.of("step")}
            self._applied = compose.apply(
                self._family.denoiser,
                compose.attached(self.setup.accelerations.model_copy(update=sliced)),
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


def _predicts(task: StepTask) -> bool:
    """Each stage's last step settles the one before, and is done."""
    return task.unit.step < task.shot.stage_steps[task.unit.stage]


def _check_inputs(task: StepTask, before: Sequence[Bundle]) -> None:
    expected = len(task.covering) if task.unit.step > 0 else len(task.parents)
    assert len(before) == expected, f"{task.unit} needs {expected} windows, got {len(before)}"
    assert task.unit.step == 0 or task.window in task.covering
