"""The plan of a film: windows, steps, pieces, and what each unit of work depends on.

Pure: a plan is a function of the job, the model's geometry and the planning profile alone, and
is stored with the job. The film does not depend on the cluster that happens to render it.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from jobs.accelerations import Accelerations
from jobs.geometry import ModelGeometry, batch_border
from jobs.images import ImageFile
from jobs.loras import LoraFile
from jobs.pyramid import covered, parents, stage_frames, stage_strides
from jobs.units import DecodeTask, EncodeTask, ShotRender, StepTask, Task, Unit, Window
from jobs.versions import ACCELERATIONS_VERSION, NOISE_VERSION, PLANNER_VERSION

#: A piece is never longer than this, but for the step to the next tile of a decoder that goes by
#: tiles, so that no decoding call runs for long.
MAX_PIECE_LATENT_FRAMES = 32


def lay_windows(latent_frames: int, window: int, overlap: int) -> tuple[Window, ...]:
    """Cover ``[0, latent_frames)`` by the fewest windows that overlap by ``overlap`` or more.

    Windows are spread evenly, so the last one is as long as all others.
    """
    if not 0 <= overlap < window:
        raise ValueError(f"overlap {overlap} must be in [0, {window})")
    if latent_frames <= window:
        return (Window(0, 0, latent_frames),)
    count = -(-(latent_frames - overlap) // (window - overlap))
    last = latent_frames - window
    starts = [(index * last + (count - 1) // 2) // (count - 1) for index in range(count)]
    return tuple(Window(i, start, start + window) for i, start in enumerate(starts))


def lay_pieces(
    windows: tuple[Window, ...], latent_frames: int, border: int = 1
) -> tuple[tuple[int, int], ...]:
    """Cut the shot where windows start: a piece then needs no window after its own. Where the
    autoencoder decodes batches, or goes by tiles, a cut is the last border of one up to there."""
    cuts = [window.start for window in windows] + [latent_frames]
    edges = {0, latent_frames}
    for start, stop in itertools.pairwise(cuts):
        parts = -(-(stop - start) // MAX_PIECE_LATENT_FRAMES)
        inner = (start + (stop - start) * i // parts for i in range(parts))
        edges |= {batch_border(frame, border) for frame in inner}
    return tuple(itertools.pairwise(sorted(edges)))


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One level of the temporal pyramid: ``stride`` latent frames of the film per frame of it.
    Windows count in frames of the stage."""

    stride: int
    steps: int
    windows: tuple[Window, ...]

    @property
    def longest(self) -> int:
        """Frames of the longest window."""
        return max(window.latent_frames for window in self.windows)

    @cached_property
    def covering(self) -> tuple[tuple[Window, ...], ...]:
        """Per window, all windows that overlap it, itself included, by rising index."""
        rows = []
        for window in self.windows:
            low = high = window.index
            while low > 0 and self.windows[low - 1].overlaps(window):
                low -= 1
            while high + 1 < len(self.windows) and self.windows[high + 1].overlaps(window):
                high += 1
            rows.append(self.windows[low : high + 1])
        return tuple(rows)

    def owned(self, index: int) -> tuple[int, int]:
        """The range that a window hands on when it is finished: up to the next window's start."""
        window = self.windows[index]
        if index + 1 == len(self.windows):
            return window.start, window.stop
        return window.start, self.windows[index + 1].start

    def owners(self, start: int, stop: int) -> tuple[Window, ...]:
        """The windows that hand on frames ``[start, stop)``."""
        first = bisect_right(self.windows, start, key=_start) - 1
        return self.windows[first : bisect_left(self.windows, stop, key=_start)]

    def shares(self, start: int, stop: int) -> tuple[tuple[int, int], ...]:
        """The part of frames ``[start, stop)`` that each of their owners hands on."""
        owned = (self.owned(window.index) for window in self.owners(start, stop))
        return tuple((max(low, start), min(high, stop)) for low, high in owned)

    def reach(self, hops: int) -> tuple[tuple[int, int], ...]:
        """Per window, the half-open range of window indices within ``hops`` overlaps of it."""
        rows = [(row[0].index, row[-1].index + 1) for row in self.covering]
        result = [(i, i + 1) for i in range(len(rows))]
        for _ in range(min(hops, len(rows))):
            result = [(rows[low][0], rows[high - 1][1]) for low, high in result]
        return tuple(result)


@dataclass(frozen=True, kw_only=True)
class ShotPlan:
    """A shot laid out. ``pieces`` are half-open latent ranges; ``first_pixel_frame`` is the
    shot's place in the film."""

    render: ShotRender
    stages: tuple[StagePlan, ...]
    pieces: tuple[tuple[int, int], ...]
    first_pixel_frame: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a render needs to know, and the graph of its units."""

    model: str  # as the person named it
    model_identity: str  # sha256 over weights, configs, tokenizer and adapters
    geometry: ModelGeometry
    dtype: str
    preset: str
    accelerations: Accelerations
    threads: int
    numerics: str  # "any" or "pinned"
    checkpoint_every: int  # steps between checkpoint lines
    codec: str
    quality: int
    fps: int
    width_px: int
    height_px: int
    shots: tuple[ShotPlan, ...]
    tile_bytes: int  # estimated memory that one tile needs beside the model
    model_bytes: int  # estimated memory that the denoiser and what decodes need
    encoding_bytes: int = 0  # estimated: of the denoiser and encoders, before the first tile
    decoder_dtype: str = "float32"
    kept_bytes: int = 0  # estimated: what accelerations keep with a tile from step to step
    title: str = ""
    planner_version: int = PLANNER_VERSION
    noise_version: int = NOISE_VERSION
    accelerations_version: int = ACCELERATIONS_VERSION
    decode_context: int = field(default=0)
    warnings: tuple[str, ...] = ()  # of what the job asks for
    loras: tuple[LoraFile, ...] = ()  # added to the model's weights, in this order

    @property
    def rendering_bytes(self) -> int:
        """Estimated: what a worker with one tile holds once all is encoded."""
        return self.model_bytes + self.tile_bytes

    @property
    def peak_bytes(self) -> int:
        """Estimated: the most that a worker with one tile holds at once, encoders and all."""
        return max(self.encoding_bytes, self.rendering_bytes)

    # -- what there is to do

    def goals(self) -> Iterator[Unit]:
        """The units whose results make up the film, in film order."""
        for shot, plan in enumerate(self.shots):
            for piece in range(len(plan.pieces)):
                yield Unit("decode", shot, index=piece)

    def units(self) -> Iterator[Unit]:
        """Every unit of the film."""
        for shot, plan in enumerate(self.shots):
            yield Unit("encode", shot)
            for stage, stage_plan in enumerate(plan.stages):
                for window in stage_plan.windows:
                    for step in range(stage_plan.steps + 1):
                        yield Unit("step", shot, stage, window.index, 0, step)
        yield from self.goals()

    def steps(self, unit: Unit) -> int:
        """Denoising steps of a step unit's stage."""
        return self.stage(unit).steps

    def is_last_step(self, unit: Unit) -> bool:
        return unit.kind == "step" and unit.step == self.steps(unit)

    def is_durable(self, unit: Unit) -> bool:
        """Whether the unit's result is kept in the store."""
        if unit.kind != "step":
            return True
        return self.is_last_step(unit) or self.on_line(unit)

    def on_line(self, unit: Unit) -> bool:
        """Whether the unit's state belongs to a checkpoint line."""
        return unit.kind == "step" and unit.step > 0 and unit.step % self.checkpoint_every == 0

    @cached_property
    def usual_frames(self) -> int:
        """Latent frames of the longest window in which a shot is finished."""
        return max(shot.stages[-1].longest for shot in self.shots)

    @cached_property
    def longest_frames(self) -> int:
        """Latent frames of the longest window of any stage: more than the usual one's where a
        coarsest stage is one window."""
        return max(stage.longest for shot in self.shots for stage in shot.stages)

    def length(self, unit: Unit) -> float:
        """Of a step's window, 1 for the usual one: a coarsest stage that is one window may be many
        times as long."""
        if unit.kind != "step":
            return 1.0
        return self.stage(unit).windows[unit.index].latent_frames / self.usual_frames

    # -- what depends on what

    def inputs(self, unit: Unit) -> tuple[Unit, ...]:
        """The units whose outputs ``unit`` reads, in the order that its task expects."""
        if unit.kind == "encode":
            return ()
        if unit.kind == "decode":
            last = len(self.shots[unit.shot].stages) - 1
            return tuple(self._last_step(unit.shot, last, w) for w in self._decoded(unit))
        needs = [] if self.is_last_step(unit) else [Unit("encode", unit.shot)]
        if unit.step > 0:
            for window in self.stage(unit).covering[unit.index]:
                needs.append(
                    Unit("step", unit.shot, unit.stage, window.index, unit.region, unit.step - 1)
                )
        elif unit.stage > 0:
            for window in self._before(unit).owners(*self._parents(unit)):
                needs.append(self._last_step(unit.shot, unit.stage - 1, window))
        return tuple(needs)

    def stage(self, unit: Unit) -> StagePlan:
        return self.shots[unit.shot].stages[unit.stage]

    def _last_step(self, shot: int, stage: int, window: Window) -> Unit:
        steps = self.shots[shot].stages[stage].steps
        return Unit("step", shot, stage, window.index, 0, steps)

    def _before(self, unit: Unit) -> StagePlan:
        return self.shots[unit.shot].stages[unit.stage - 1]

    def _parents(self, unit: Unit) -> tuple[int, int]:
        """The frames of the stage before that stand for a tile's window."""
        window = self.stage(unit).windows[unit.index]
        return parents(window.start, window.stop, first_alone=self.geometry.first_alone)

    def warm_start(self, unit: Unit) -> int:
        """The latent frame from which a decoder without context must start for a piece."""
        start, _ = self.shots[unit.shot].pieces[unit.index]
        return self.geometry.decode_border(max(0, start - self.decode_context))

    def read_stop(self, unit: Unit) -> int:
        """Where the latent frames end that a piece's pixels depend on."""
        plan = self.shots[unit.shot]
        ahead = plan.pieces[unit.index][1] + self.geometry.decode_ahead_latent_frames
        return min(ahead, plan.render.latent_frames)

    def _decoded(self, unit: Unit) -> tuple[Window, ...]:
        """The windows that own a part of a piece, of its warm-up or of what it looks ahead at."""
        stage = self.shots[unit.shot].stages[-1]
        return stage.owners(self.warm_start(unit), self.read_stop(unit))

    # -- what a worker is told

    def task(self, unit: Unit, attempt: int) -> Task:
        render = self.shots[unit.shot].render
        if unit.kind == "encode":
            return EncodeTask(unit=unit, attempt=attempt, shot=render)
        if unit.kind == "step":
            return self._step_task(unit, attempt)
        stage = self.shots[unit.shot].stages[-1]
        start, stop = self.shots[unit.shot].pieces[unit.index]
        windows, warm_start = self._decoded(unit), self.warm_start(unit)
        return DecodeTask(
            unit=unit,
            attempt=attempt,
            shot=render,
            start=start,
            stop=stop,
            warm_start=warm_start,
            windows=windows,
            owned=stage.shares(warm_start, self.read_stop(unit)),
            codec=self.codec,
            quality=self.quality,
        )

    def _step_task(self, unit: Unit, attempt: int) -> StepTask:
        stage, jumps = self.stage(unit), unit.stage > 0 and unit.step == 0
        return StepTask(
            unit=unit,
            attempt=attempt,
            shot=self.shots[unit.shot].render,
            window=stage.windows[unit.index],
            covering=stage.covering[unit.index],
            parents=self._before(unit).owners(*self._parents(unit)) if jumps else (),
            owned=self._before(unit).shares(*self._parents(unit)) if jumps else (),
        )

    # -- what goes first

    def priority(self, unit: Unit) -> tuple[int, int, int, int]:
        """Sorts units: lower goes first.

        Earliest film time first makes a wavefront: few windows are live at a time, and the
        film's first seconds are finished long before its last. Decoding goes before denoising
        of the same place, since it frees the finished latents.
        """
        plan = self.shots[unit.shot]
        if unit.kind == "encode":  # all prompts at once, then the text encoder can go
            return (-1, unit.shot, 0, 0)
        if unit.kind == "decode":
            start = plan.pieces[unit.index][0]
            rank = 0
        else:
            start, _ = covered(
                self.stage(unit).windows[unit.index].start,
                self.stage(unit).stride,
                plan.render.latent_frames,
                first_alone=self.geometry.first_alone,
            )
            rank = 1
        first, _ = self.geometry.pixel_range(start, start + 1)
        return (plan.first_pixel_frame + first, rank, unit.stage, unit.step)

    # -- sums

    @property
    def images(self) -> tuple[ImageFile, ...]:
        """What the shots start from, each once."""
        given = (shot.render.image for shot in self.shots)
        return tuple(dict.fromkeys(image for image in given if image is not None))

    @property
    def pixel_frames(self) -> int:
        return sum(shot.render.pixel_frames for shot in self.shots)

    @property
    def model_calls(self) -> int:
        """Forward passes of the denoiser, guidance counted, if none is skipped."""
        total = 0
        for shot in self.shots:
            branches = 2 if self.geometry.has_two_branches(shot.render.guidance) else 1
            total += branches * sum(len(stage.windows) * stage.steps for stage in shot.stages)
        return total


def _start(window: Window) -> int:
    return window.start


def lay_shot(
    render: ShotRender,
    *,
    window: int,
    overlap: int,
    first_pixel_frame: int,
    first_alone: bool = True,
    one_piece: bool = False,
    piece_border: int = 1,
    whole_first_stage: bool = False,
) -> ShotPlan:
    """Lay one shot out as overlapping windows of every stage. A coarse stage has few frames, so
    that a window holds much of the shot; all of it with ``whole_first_stage``. ``one_piece``: it is
    decoded all at once; ``piece_border``: pieces begin at borders of batches of so many."""
    strides = stage_strides(len(render.stage_steps))
    stages = []
    for number, (stride, steps) in enumerate(zip(strides, render.stage_steps, strict=True)):
        frames = stage_frames(render.latent_frames, stride, first_alone=first_alone)
        longest = max(window, frames) if whole_first_stage and number == 0 else window
        windows = lay_windows(frames, longest, overlap)
        stages.append(StagePlan(stride=stride, steps=steps, windows=windows))
    pieces = lay_pieces(stages[-1].windows, render.latent_frames, piece_border)
    return ShotPlan(
        render=render,
        stages=tuple(stages),
        pieces=((0, render.latent_frames),) if one_piece else pieces,
        first_pixel_frame=first_pixel_frame,
    )
