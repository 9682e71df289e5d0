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

from jobs.geometry import ModelGeometry
from jobs.units import DecodeTask, EncodeTask, ShotRender, StepTask, Task, Unit, Window
from jobs.versions import NOISE_VERSION, PLANNER_VERSION

#: A piece is never longer than this, so that no decoding call runs for long.
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


def lay_pieces(windows: tuple[Window, ...], latent_frames: int) -> tuple[tuple[int, int], ...]:
    """Cut the shot where windows start: a piece then needs no window after its own."""
    cuts = [window.start for window in windows] + [latent_frames]
    pieces = []
    for start, stop in itertools.pairwise(cuts):
        parts = -(-(stop - start) // MAX_PIECE_LATENT_FRAMES)
        edges = [start + (stop - start) * i // parts for i in range(parts + 1)]
        pieces += list(itertools.pairwise(edges))
    return tuple(pieces)


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One level of the temporal pyramid: ``stride`` latent frames of the film per frame of it."""

    stride: int
    windows: tuple[Window, ...]

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
        """The latent range that a window hands to decoding: up to the next window's start."""
        window = self.windows[index]
        if index + 1 == len(self.windows):
            return window.start, window.stop
        return window.start, self.windows[index + 1].start

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
    model_identity: str  # sha256 over weights, configs and tokenizer
    geometry: ModelGeometry
    dtype: str
    preset: str
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
    model_bytes: int  # estimated memory that the loaded model needs
    title: str = ""
    planner_version: int = PLANNER_VERSION
    noise_version: int = NOISE_VERSION
    decode_context: int = field(default=0)

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
                    for step in range(plan.render.steps + 1):
                        yield Unit("step", shot, stage, window.index, 0, step)
        yield from self.goals()

    def steps(self, unit: Unit) -> int:
        return self.shots[unit.shot].render.steps

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

    # -- what depends on what

    def inputs(self, unit: Unit) -> tuple[Unit, ...]:
        """The units whose outputs ``unit`` reads, in the order that its task expects."""
        if unit.kind == "encode":
            return ()
        if unit.kind == "decode":
            return tuple(self._last_step(unit.shot, window) for window in self._decoded(unit))
        needs = [] if self.is_last_step(unit) else [Unit("encode", unit.shot)]
        if unit.step > 0:
            for window in self.stage(unit).covering[unit.index]:
                needs.append(
                    Unit("step", unit.shot, unit.stage, window.index, unit.region, unit.step - 1)
                )
        return tuple(needs)

    def stage(self, unit: Unit) -> StagePlan:
        return self.shots[unit.shot].stages[unit.stage]

    def _last_step(self, shot: int, window: Window) -> Unit:
        plan = self.shots[shot]
        return Unit("step", shot, len(plan.stages) - 1, window.index, 0, plan.render.steps)

    def warm_start(self, unit: Unit) -> int:
        """The latent frame from which a decoder without context must start for a piece."""
        start, _ = self.shots[unit.shot].pieces[unit.index]
        return max(0, start - self.decode_context)

    def _decoded(self, unit: Unit) -> tuple[Window, ...]:
        """The windows that own a part of a piece or of its warm-up."""
        plan = self.shots[unit.shot]
        stage = plan.stages[-1]
        warm_start, stop = self.warm_start(unit), plan.pieces[unit.index][1]
        first = bisect_right(stage.windows, warm_start, key=_start) - 1
        return stage.windows[first : bisect_left(stage.windows, stop, key=_start)]

    # -- what a worker is told

    def task(self, unit: Unit, attempt: int) -> Task:
        render = self.shots[unit.shot].render
        if unit.kind == "encode":
            return EncodeTask(unit=unit, attempt=attempt, shot=render)
        stage = self.stage(unit)
        if unit.kind == "step":
            return StepTask(
                unit=unit,
                attempt=attempt,
                shot=render,
                window=stage.windows[unit.index],
                covering=stage.covering[unit.index],
            )
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
            owned=tuple(
                (max(low, warm_start), min(high, stop))
                for low, high in (stage.owned(window.index) for window in windows)
            ),
            codec=self.codec,
            quality=self.quality,
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
            start = self.stage(unit).windows[unit.index].start * self.stage(unit).stride
            rank = 1
        first, _ = self.geometry.pixel_range(start, start + 1)
        return (plan.first_pixel_frame + first, rank, unit.stage, unit.step)

    # -- sums

    @property
    def live_bytes(self) -> int:
        """About what the outputs in flight take: a wavefront is ``steps`` windows long, and each
        keeps the states of two checkpoint intervals. An output is latents, prediction and history
        in float32."""
        largest = max(
            window.latent_frames * shot.render.latent_height * shot.render.latent_width
            for shot in self.shots
            for stage in shot.stages
            for window in stage.windows
        )
        outputs = max(
            min(len(shot.stages[-1].windows), shot.render.steps)
            * min(2 * self.checkpoint_every, shot.render.steps)
            for shot in self.shots
        )
        return largest * self.geometry.latent_channels * 4 * 5 * outputs

    @property
    def pixel_frames(self) -> int:
        return sum(shot.render.pixel_frames for shot in self.shots)

    @property
    def model_calls(self) -> int:
        """Forward passes of the denoiser, guidance counted."""
        total = 0
        for shot in self.shots:
            branches = 2 if max(shot.render.guidance) > 1 else 1
            windows = sum(len(stage.windows) for stage in shot.stages)
            total += windows * shot.render.steps * branches
        return total


def _start(window: Window) -> int:
    return window.start


def lay_shot(render: ShotRender, *, window: int, overlap: int, first_pixel_frame: int) -> ShotPlan:
    """Lay one shot out as overlapping windows of a single stage."""
    windows = lay_windows(render.latent_frames, window, overlap)
    return ShotPlan(
        render=render,
        stages=(StagePlan(stride=1, windows=windows),),
        pieces=lay_pieces(windows, render.latent_frames),
        first_pixel_frame=first_pixel_frame,
    )
