"""What every run of the scheduler must keep, checked from outside.

The rules are the referee's own: it works from the plan's windows and from what the simulated
cluster saw, and asks neither the scheduler's books nor the plan's dependency functions.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace

from jobs.units import Unit
from orchestrator.plan import Plan
from orchestrator.roster import Policy

Key = tuple[Unit, int]  # an output: unit and attempt


#: What may end a render: how its message tells it, the policy's number, and how many more.
_CAUSES = {
    "fault": (" times, the last: ", "max_faults", 0),
    "death": (" died on it", "max_deaths", 0),
    "cluster": ("the cluster failed", "max_cluster_failures", 0),
    "damage": ("was damaged", "max_damages", 1),
    "write": ("writers died", "max_write_failures", 1),
}


class Violation(AssertionError):
    """The scheduler broke a rule."""


def digest(unit: Unit, inputs: list[str]) -> str:
    """The stand-in for a unit's content."""
    return hashlib.blake2b(f"{unit}|{'|'.join(inputs)}".encode(), digest_size=12).hexdigest()


class Referee:
    """Rules over one film, through all the lives of its driver.

    ``results`` is the store's content, which the simulation changes.
    """

    def __init__(self, plan: Plan, results: dict[Unit, str], *, remembers: bool = False) -> None:
        self.plan = plan
        self.remembers = remembers
        self.results = results
        self.completed: Counter[Unit] = Counter()
        self.damaged = False  # a durable result was; then anything may be computed again
        self._this_life: set[Unit] = set()  # finished, and known to the driver, since it began
        self._lost: set[Unit] = set()  # outputs that vanished since they were made
        self._deleted: set[Unit] = set()  # checkpoints that had been stored
        self._allowed_redo: set[Unit] = set()
        self._attempts: set[Key] = set()
        self._struck: dict[str, Counter[Unit]] = {}  # by kind of fault, in this life
        self._barren_losses = 0  # workers lost since a unit was finished
        self._truth: dict[Unit, str] = {}
        self._inputs: dict[Unit, tuple[Unit, ...]] = {}
        self._overlapping: dict[tuple[int, int, int], list[int]] = {}

    # -- what is right

    def inputs(self, unit: Unit) -> tuple[Unit, ...]:
        """What a unit reads, worked out from the windows alone."""
        if unit not in self._inputs:
            self._inputs[unit] = tuple(self._find_inputs(unit))
        return self._inputs[unit]

    def _find_inputs(self, unit: Unit) -> list[Unit]:
        if unit.kind == "encode":
            return []
        shot = self.plan.shots[unit.shot]
        if unit.kind == "decode":
            start, stop = shot.pieces[unit.index]
            warm = self.plan.geometry.decode_border(max(0, start - self.plan.decode_context))
            ahead = stop + self.plan.geometry.decode_ahead_latent_frames
            frames = range(warm, min(ahead, shot.render.latent_frames))
            return self._last_of(unit.shot, len(shot.stages) - 1, frames)
        stage = shot.stages[unit.stage]
        found = [Unit("encode", unit.shot)] if unit.step < stage.steps else []
        if unit.stage and not unit.step:
            window = stage.windows[unit.index]
            above = {self._parent(unit, frame) for frame in range(window.start, window.stop)}
            found += self._last_of(unit.shot, unit.stage - 1, above)
        if unit.step:
            found += [
                Unit("step", unit.shot, unit.stage, index, unit.region, unit.step - 1)
                for index in self._windows_over(unit)
            ]
        return found

    def _last_of(self, shot: int, stage: int, frames: Iterable[int]) -> list[Unit]:
        """The last steps of the windows that hand on some frames of a stage: of those that cover
        one, the last."""
        plan = self.plan.shots[shot].stages[stage]
        starts = [window.start for window in plan.windows]
        owners = sorted({bisect_right(starts, frame) - 1 for frame in frames})
        return [Unit("step", shot, stage, index, 0, plan.steps) for index in owners]

    def _parent(self, unit: Unit, frame: int) -> int:
        """The frame of the stage before that stands for the same latent frames as this one."""
        alone = self.plan.geometry.temporal_scale > 1
        stride = self.plan.shots[unit.shot].stages[unit.stage].stride
        latent = max(0, 1 + (frame - 1) * stride) if alone else frame * stride
        return -(-latent // (2 * stride)) if alone else latent // (2 * stride)

    def _windows_over(self, unit: Unit) -> list[int]:
        tile = unit.shot, unit.stage, unit.index
        if tile not in self._overlapping:
            windows = self.plan.shots[unit.shot].stages[unit.stage].windows
            mine = windows[unit.index]
            self._overlapping[tile] = [
                w.index for w in windows if w.start < mine.stop and mine.start < w.stop
            ]
        return self._overlapping[tile]

    def truth(self, unit: Unit) -> str:
        """What the unit's content must be, computed the slow way."""
        stack = [unit]
        while stack:
            inputs = self.inputs(stack[-1])
            missing = [name for name in inputs if name not in self._truth]
            if missing:
                stack.extend(missing)
                continue
            top = stack.pop()
            self._truth[top] = digest(top, [self._truth[name] for name in inputs])
        return self._truth[unit]

    # -- commands

    def check_run(self, unit: Unit, attempt: int, inputs: tuple[Key, ...]) -> None:
        if (unit, attempt) in self._attempts:
            raise Violation(f"attempt {attempt} of {unit} is used twice")
        self._attempts.add((unit, attempt))
        if tuple(name for name, _ in inputs) != self.inputs(unit):
            raise Violation(f"{unit} reads {inputs}, not {self.inputs(unit)}")
        if unit in self.results:
            raise Violation(f"{unit} is computed, though it is durable")
        for name, _ in inputs:
            is_last = name.kind == "step" and name.step == self.plan.steps(name)
            if is_last and name not in self.results:
                raise Violation(f"{unit} is computed before {name} is durable")

    def check_stitch(self) -> None:
        for goal in self.plan.goals():
            if goal not in self.results:
                raise Violation(f"the film is stitched before {goal} is durable")
            if self.results[goal] != self.truth(goal):
                raise Violation(f"{goal} is wrong in the film")

    def check_delete(self, unit: Unit) -> None:
        """Checkpoints are deleted once every tile near by has a durable state at a later step."""
        if unit not in self.results:
            raise Violation(f"deleted {unit}, which is not stored")
        if unit.kind != "step" or unit.step >= self.plan.steps(unit):
            raise Violation(f"deleted {unit}, which is no checkpoint")
        for index in self._near(unit, self._hops_back(unit)):
            if self._line(unit, index) <= unit.step:
                raise Violation(f"deleted {unit}, to which window {index + 1} may go back")
        self._deleted.add(unit)

    # -- redone work

    def finished(self, unit: Unit) -> None:
        """Note a unit whose end the driver knows. It may have been finished before only if a
        loss explains it: of its own output, or of everything since its line."""
        self.completed[unit] += 1
        self._barren_losses = 0
        again = unit in self._this_life
        self._this_life.add(unit)
        if not self.damaged and self.completed[unit] > 1:
            if again and unit not in self._lost and not self._goes_back(unit):
                raise Violation(f"{unit} was computed twice, and its output was not lost")
            if not again and unit not in self._allowed_redo:
                raise Violation(f"{unit} was computed again, though it is older than its line")
        self._lost.discard(unit)

    def lost(self, unit: Unit) -> None:
        self._lost.add(unit)

    def _goes_back(self, unit: Unit) -> bool:
        """Whether a later output of the tile vanished. What a tile remembers is kept for one step
        only: to make that output again it goes back to its last durable state."""
        if not self.remembers or unit.kind != "step":
            return False
        later = range(unit.step + 1, self.plan.steps(unit) + 1)
        return any(replace(unit, step=step) in self._lost for step in later)

    def new_life(self) -> None:
        """Everything but the store is gone; a new driver resumes."""
        lines: dict[tuple[Unit, int], int] = {}
        self._allowed_redo = {
            unit
            for unit in self.completed
            if unit not in self.results and self._is_recent(unit, lines)
        }
        self._this_life.clear()
        self._attempts.clear()
        self._struck.clear()
        self._barren_losses = 0

    def _is_recent(self, unit: Unit, lines: dict[tuple[Unit, int], int]) -> bool:
        """Whether a unit lies after the last line that all tiles near it have reached."""
        if unit.kind != "step":
            return True
        tile = Unit("step", unit.shot, unit.stage, unit.index)
        if (tile, 0) not in lines:
            near = self._near(unit, self.plan.checkpoint_every)
            lines[tile, 0] = min(self._line(unit, index, gaps=True) for index in near)
        return unit.step > lines[tile, 0] or lines[tile, 0] == 0

    def _hops_back(self, unit: Unit) -> int:
        """How many overlaps away a tile may be and still go back to this checkpoint: one, and
        one more for each step until the next line."""
        return min(self.plan.checkpoint_every, self.plan.steps(unit) - unit.step)

    def _near(self, unit: Unit, hops: int) -> set[int]:
        windows = self.plan.shots[unit.shot].stages[unit.stage].windows
        low = high = unit.index
        for _ in range(hops):
            start, stop = windows[low].start, windows[high].stop
            while low > 0 and windows[low - 1].stop > start:
                low -= 1
            while high + 1 < len(windows) and windows[high + 1].start < stop:
                high += 1
        return set(range(low, high + 1))

    def _line(self, unit: Unit, index: int, *, gaps: bool = False) -> int:
        """The last durable step of a tile of the same stage; with ``gaps``, the last before a
        state that was to be stored and never was: the write of a later one had overtaken its own
        when all was lost."""
        line = 0
        for step in range(1, self.plan.steps(unit) + 1):
            state = Unit("step", unit.shot, unit.stage, index, unit.region, step)
            if state in self.results:
                line = step
            elif gaps and self._never_stored(state):
                return line
        return line

    def _never_stored(self, state: Unit) -> bool:
        """Whether a tile's state was made and to be stored, and was not in time."""
        is_line = state.step % self.plan.checkpoint_every == 0
        return is_line and self.completed[state] > 0 and state not in self._deleted

    # -- the end

    def struck(self, kind: str, unit: Unit) -> None:
        """Note what befell a unit, by the word for it in ``_CAUSES``."""
        self._struck.setdefault(kind, Counter())[unit] += 1

    def lost_worker(self) -> None:
        """The driver counts one as lost."""
        self._barren_losses += 1

    def check_failed(self, message: str, policy: Policy) -> None:
        """A render may fail only by a unit that was struck as often as the policy says, and as its
        message says, or because worker after worker was lost."""
        for kind, (words, limit, more) in _CAUSES.items():
            for unit, times in self._struck.get(kind, Counter()).items():
                is_named = message.startswith((f"{unit} ", f"{unit}:")) and words in message
                if is_named and times >= getattr(policy, limit) + more:
                    return
        if "keep dying" not in message or self._barren_losses <= policy.max_barren_losses:
            raise Violation(f"it failed without a cause: {message}")

    def check_done(self, held: Collection[Key], busy: Collection[Unit]) -> None:
        """Nothing is left in memory or store, but around what is ``busy``, running or being
        written: a state that was lost while it was written may still be made again, or written
        once more, when the film is done."""
        near = {
            (unit.shot, unit.stage, index)
            for unit in busy
            if unit.kind == "step"
            for index in self._near(unit, self.plan.checkpoint_every)
        }
        prompts = {Unit("encode", unit.shot) for unit in busy}
        for unit, attempt in held:
            if unit not in prompts and not (unit.kind == "step" and _tile(unit) in near):
                raise Violation(f"left in memory at the end: {unit}, attempt {attempt}")
        if self.damaged:
            return
        for unit in self.results:
            is_over = unit.kind == "step" and unit.step < self.plan.steps(unit)
            if is_over and _tile(unit) not in near:
                raise Violation(f"a checkpoint is left in the store: {unit}")


def _tile(unit: Unit) -> tuple[int, int, int]:
    return unit.shot, unit.stage, unit.index
