"""What a person sees while a film renders: a bar per worker, a bar for the film, an ETA with its
basis. On a terminal the bars move; elsewhere a line is printed now and then. Standard error only.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from jobs.units import Unit
from orchestrator.events import (
    Command,
    Event,
    FilmStitched,
    LoadFailed,
    OutputStored,
    RenderStarted,
    RunUnit,
    StartWorker,
    StitchFailed,
    StitchFilm,
    StopRequested,
    StopWorker,
    UnitFailed,
    UnitFinished,
    WorkerJoined,
    WorkerLost,
    WorkerRefused,
)
from orchestrator.plan import Plan
from orchestrator.state import RenderState

#: Seconds between two lines where there is no terminal; more if nothing has changed in between.
LINE_EVERY_S = 10.0
SAME_LINE_EVERY_S = 300.0

#: How often the bars are drawn; what happens between two drawings costs no output.
DRAWS_PER_S = 4


class Tally:
    """What is done and what is left, per kind of unit. Every change costs the same, however long
    the film is.

    The last step of a tile calls no model: it is a kind of its own, "settle". A tile's steps
    follow each other, so the last one that is done tells of all before it.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.total: Counter[str] = Counter()
        self._step_frames = 0  # that steps compute: of long windows more
        for shot in plan.shots:
            self.total["encode"] += 1
            for stage in shot.stages:
                self.total["step"] += len(stage.windows) * stage.steps
                self.total["settle"] += len(stage.windows)
                self._step_frames += stage.steps * sum(w.latent_frames for w in stage.windows)
            self.total["decode"] += len(shot.pieces)
        self.begin(())

    def begin(self, durable: Iterable[Unit]) -> None:
        """Count anew from what is in the store."""
        self.done: Counter[str] = Counter()
        self._done_frames = 0
        self.playable_frames = 0
        self._reached: dict[tuple[int, int, int, int], int] = {}  # tile -> steps that are done
        self._finished: set[Unit] = set()  # prompts and pieces
        self._stored: set[Unit] = set()  # pieces
        for unit in durable:
            self.finish(unit)
            self.store(unit)

    def kind(self, unit: Unit) -> str:
        return "settle" if self._plan.is_last_step(unit) else unit.kind

    def finish(self, unit: Unit) -> None:
        if unit.kind == "step":
            if unit.step >= self._reached.get(_tile(unit), 0):
                self._reach(unit, unit.step + 1)
        elif unit not in self._finished:
            self._finished.add(unit)
            self.done[unit.kind] += 1

    def store(self, unit: Unit) -> None:
        """The unit's result is durable: a piece can be played from now on."""
        if unit.kind == "decode" and unit not in self._stored:
            self._stored.add(unit)
            self.playable_frames += self._frames(unit)

    def spoil(self, unit: Unit) -> None:
        """The unit's stored result is missing or damaged: it is to be done again."""
        if unit.kind == "step":
            if unit.step < self._reached.get(_tile(unit), 0):
                self._reach(unit, unit.step)
            return
        if unit in self._finished:
            self._finished.discard(unit)
            self.done[unit.kind] -= 1
        if unit in self._stored:
            self._stored.discard(unit)
            self.playable_frames -= self._frames(unit)

    def left(self) -> dict[str, int]:
        return {kind: total - self.done[kind] for kind, total in self.total.items()}

    def work_left(self) -> dict[str, float]:
        """The same, but steps of long windows count as several of the usual length."""
        usual = (self._step_frames - self._done_frames) / self._plan.usual_frames
        return {**self.left(), "step": usual}

    def _reach(self, unit: Unit, steps: int) -> None:
        """The unit's tile has now done so many of its steps."""
        before, calls = self._reached.get(_tile(unit), 0), self._plan.steps(unit)
        self._reached[_tile(unit)] = steps
        called = min(steps, calls) - min(before, calls)
        self.done["step"] += called
        window = self._plan.stage(unit).windows[unit.index]
        self._done_frames += called * window.latent_frames
        self.done["settle"] += (steps > calls) - (before > calls)

    def _frames(self, piece: Unit) -> int:
        shot = self._plan.shots[piece.shot]
        low, high = self._plan.geometry.pixel_range(*shot.pieces[piece.index])
        return min(high, shot.render.pixel_frames) - low


@dataclass(frozen=True, slots=True)
class Eta:
    """Seconds left, how many of what they were measured on, and whether some of it is a guess."""

    left_s: float
    count: int
    kind: str
    rough: bool

    def __str__(self) -> str:
        """``7:03 (from 4 steps)``"""
        what = {"step": "step", "decode": "piece"}[self.kind] + ("" if self.count == 1 else "s")
        return f"{'about ' if self.rough else ''}{clock(self.left_s)} (from {self.count} {what})"


class Estimate:
    """What is left in time, from what was measured since the command was started."""

    def __init__(self) -> None:
        self._spent_s: dict[str, float] = defaultdict(float)
        self._count: Counter[str] = Counter()
        self._work: dict[str, float] = defaultdict(float)

    def finished(self, kind: str, elapsed_s: float, work: float = 1.0) -> None:
        """``work``: in units of the usual length."""
        self._spent_s[kind] += elapsed_s
        self._count[kind] += 1
        self._work[kind] += work

    def eta(self, left: dict[str, float], workers: int) -> Eta | None:
        """None before the first step; where no step is left, before the first piece. What was not
        measured yet is taken to be as dear as that, and a step that only settles as next to
        nothing. A first step alone is rough, too: it warms up. A window's steps follow each other,
        so no more workers help than windows are left."""
        basis = "step" if self._count["step"] or left["step"] else "decode"
        if not self._count[basis]:
            return None
        basis_s = self._mean_s(basis, 0.0)
        guess_s, left_s = {"settle": 0.05 * basis_s}, 0.0
        for kind, count in left.items():
            apart = left["settle"] if kind == "step" else count
            each_s = self._mean_s(kind, guess_s.get(kind, basis_s))
            left_s += count * each_s / max(1, min(workers, apart))
        guessed = any(left[kind] and not self._count[kind] for kind in left if kind != "settle")
        rough = guessed or self._count[basis] < 2
        return Eta(left_s, self._count[basis], basis, rough)

    def _mean_s(self, kind: str, guess_s: float) -> float:
        work = self._work[kind]
        return self._spent_s[kind] / work if work else guess_s


class RenderProgress:
    """A Watcher that shows the render on standard error. It lives as long as the command, and
    sees ``RenderStarted`` again when a render goes on after its cluster died."""

    def __init__(self, plan: Plan, *, console: Console | None = None, quiet: bool = False) -> None:
        self._plan = plan
        self._console = console or Console(stderr=True)
        self._live = self._console.is_interactive and not quiet
        self._quiet = quiet
        self._tally = Tally(plan)
        self._estimate = Estimate()
        self._said, self._said_s = "", float("-inf")  # the last line about the film
        self._rows: dict[str, TaskID] = {}  # of every worker that is there
        self._joined: set[str] = set()
        self._bars = Progress(
            TextColumn("{task.description}", justify="left"),
            BarColumn(bar_width=32),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            refresh_per_second=DRAWS_PER_S,
            redirect_stdout=False,
            disable=not self._live,
        )
        total = self._tally.total.total()
        self._film = self._bars.add_task("film", total=total, note="starting")

    def __enter__(self) -> RenderProgress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        if not self._quiet:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    # -- what it sees

    def did(self, command: Command, state: RenderState) -> None:
        match command:
            case StartWorker(worker):
                self._rows[worker] = self._bars.add_task(worker, total=1, note="loading the model")
            case StopWorker(worker, reason):
                self._gone(worker, f"worker {worker} is stopped: {reason}")
            case RunUnit(unit, _, worker) if len(state.workers[worker].queue) == 1:
                self._show(worker, unit)
            case StitchFilm():
                self._bars.update(self._film, note="joining the pieces")

    def saw(self, event: Event, state: RenderState) -> None:
        """Called before the state has taken the event in."""
        match event:
            case RenderStarted():
                self._begin(state)
            case WorkerJoined() if event.worker in self._rows:
                self._joined.add(event.worker)
                self._note(event.worker, "ready")
            case WorkerRefused():
                self._gone(event.worker, f"worker {event.worker} is refused: {event.message}")
            case WorkerLost():
                self._gone(event.worker, f"worker {event.worker} was lost: {event.message}")
            case StopRequested(outcome="interrupted"):
                self._say_stopping(state)
            case UnitFailed():
                self.say(_what_failed(event))
            case UnitFinished():
                if event.made_do:
                    self.say(f"warning: {event.made_do}")
                self._finished(event, state)
            case OutputStored():
                for warning in event.warnings:
                    self.say(f"warning: {event.unit}: {warning}")
                self._tally.store(event.unit)
                self._show_film()
            case FilmStitched(kept=kept) if kept:
                self.say(f"another file had the film's name; it is kept as {kept}")
            case LoadFailed():
                self._spoiled(event.unit, event.message)
            case StitchFailed():
                for unit in event.lost:
                    self._spoiled(unit, event.message)
        if not self._live and event.at_s - self._said_s >= LINE_EVERY_S:
            self._line(event.at_s)

    def _spoiled(self, unit: Unit, message: str) -> None:
        self.say(f"{unit}: {message}; it is set aside, and computed again")
        self._tally.spoil(unit)

    def _say_stopping(self, state: RenderState) -> None:
        writing = sum(record.writing for record in state.book.records.values())
        if writing:
            what = "result is" if writing == 1 else "results are"
            self.say(f"stopping once {writing} {what} written; Ctrl-C again leaves at once")

    def _begin(self, state: RenderState) -> None:
        """A session begins, with no worker, from what is stored: the rest of the one before is
        lost."""
        for worker in list(self._rows):
            self._remove(worker)
        self._tally.begin(state.book.durable)
        if found := len(state.book.durable):
            said = f"found in the store: {found} {'result' if found == 1 else 'results'}"
            rest = "; only what is missing is computed"
            whole = ", all that the film needs; no step is computed"
            self.say(said + (rest if state.goals_left else whole))
        self._show_film()

    def _finished(self, event: UnitFinished, state: RenderState) -> None:
        worker = state.workers.get(event.worker)
        if worker is None or event.unit not in worker.queue:
            return  # it had been given up: its output does not count
        self._tally.finish(event.unit)
        kind = self._tally.kind(event.unit)
        work = self._plan.length(event.unit) if kind == "step" else 1.0
        self._estimate.finished(kind, event.elapsed_s, work)
        self._show_film()
        if len(worker.queue) > 1:
            self._show(event.worker, worker.queue[1])

    # -- the film

    def _show_film(self) -> None:
        if self._live:
            done = self._tally.done.total()
            self._bars.update(self._film, completed=done, note=self._film_note())

    def _film_note(self) -> str:
        fps = self._plan.fps
        ready_s, film_s = self._tally.playable_frames / fps, self._plan.pixel_frames / fps
        note = f"{ready_s:.1f} of {film_s:.1f} s ready"
        if not any(self._tally.left().values()):
            return note
        if not self._joined:
            return f"{note}, loading the model"
        left = self._tally.work_left()
        eta = self._estimate.eta(left, len(self._joined))
        first = "step" if left["step"] else "piece"
        return note + f", ETA {eta or f'once a {first} is done'}"

    def _line(self, now_s: float) -> None:
        share = 100 * self._tally.done.total() / self._tally.total.total()
        line = f"{share:3.0f} %  {self._film_note()}"
        if line == self._said and now_s - self._said_s < SAME_LINE_EVERY_S:
            return
        self._said, self._said_s = line, now_s
        self.say(f"[{time.strftime('%H:%M:%S')}] {line}")

    # -- the workers

    def _show(self, worker: str, unit: Unit) -> None:
        if worker not in self._rows:
            return
        if unit.kind == "step":
            steps = self._plan.steps(unit)
            note = f"{unit}/{steps}"
            self._bars.update(self._rows[worker], total=steps, completed=unit.step, note=note)
        else:
            self._note(worker, f"{'decoding' if unit.kind == 'decode' else 'encoding'} {unit}")

    def _note(self, worker: str, note: str) -> None:
        if worker in self._rows:
            self._bars.update(self._rows[worker], note=note)

    def _gone(self, worker: str, line: str) -> None:
        """Say it of a worker once: each unit that it had may report its end."""
        if worker in self._rows:
            self.say(line)
            self._remove(worker)

    def _remove(self, worker: str) -> None:
        self._bars.remove_task(self._rows.pop(worker))
        self._joined.discard(worker)


def _what_failed(event: UnitFailed) -> str:
    """Whose fault it was is said, or that it was nobody's (DESIGN 5.7)."""
    if event.kind == "cluster":
        return f"{event.unit} waits again: what it reads was lost with a node, and is made anew"
    return f"{event.unit} failed on {event.worker}: {event.message}"


def _tile(unit: Unit) -> tuple[int, int, int, int]:
    return unit.shot, unit.stage, unit.index, unit.region


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
