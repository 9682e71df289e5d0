"""The driver's link to the store keeper: writes, reads and stitching on the store's host.

A keeper that dies, or does not answer, is replaced, once for all that it had in hand; one that
does so again and again without finishing anything ends the render.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.units import Unit
from orchestrator import actors
from orchestrator.cluster import Cluster
from orchestrator.events import (
    Event,
    FilmStitched,
    LoadFailed,
    OutputLoaded,
    OutputLost,
    OutputStored,
    StitchFailed,
    StopRequested,
    StoreFailed,
)
from orchestrator.plan import Plan
from orchestrator.ray_errors import in_words, meaning
from orchestrator.recipes import Recipes

#: Keepers that may die one after the other without finishing anything.
MAX_BARREN_KEEPERS = 5

#: Keepers that may die while they read one and the same result.
MAX_DEADLY_LOADS = 3

#: How long a keeper may be silent while it is asked something. Disks are slow; shares hang.
ANSWER_LIMIT_S = 600.0

#: Registers what is to be done when a reference is ready.
Watch = Callable[[Any, Callable[[Any], Event | None]], None]


@dataclass(frozen=True, slots=True)
class Output:
    """References to a unit's output: what everybody reads of it, and what only its tile's next
    step does (``workers.carrying``)."""

    shown: Any
    memory: Any  # None where it is forgotten, or on the shelf of a worker
    stays_with: str | None = None  # that worker

    def names(self) -> list[str]:
        """Of the objects, as Ray's errors have them."""
        return [ref.hex() for ref in (self.shown, self.memory) if ref is not None]


class KeeperLink:
    """``watch`` is the driver's; ``note`` takes journal records; ``hold`` takes loaded outputs."""

    def __init__(
        self,
        root: str,
        store_uri: str,
        cluster: Cluster,
        plan: Plan,
        recipes: Recipes,
        watch: Watch,
        note: Callable[[dict[str, Any]], None],
        hold: Callable[[Unit, Output], None],
    ) -> None:
        self._root, self._store_uri, self._cluster = root, store_uri, cluster
        self._plan, self._recipes = plan, recipes
        self._watch, self._note, self._hold = watch, note, hold
        self._deaths = 0
        self._deadly: Counter[Unit] = Counter()  # loads that keepers died of
        self._unanswered = 0
        self._heard_s = time.monotonic()  # when it answered last, or was first asked since
        self._silent = ""  # why a keeper is being killed
        self._process: int | None = None
        self._keeper = self._start()

    def _start(self) -> Any:
        here = NodeAffinitySchedulingStrategy(self._cluster.node_id, soft=False)
        shell: Any = ray.remote(actors.keeper_shell())
        keeper = shell.options(num_cpus=0, scheduling_strategy=here).remote(
            self._root, self._store_uri
        )
        self._process = None
        self._watch(keeper.process.remote(), self._on_started)
        return keeper

    def _on_started(self, ref: Any) -> None:
        with contextlib.suppress(RayError):  # what it was asked beside this will tell
            self._process = ray.get(ref, timeout=0)
            self._cluster.note_process(self._process)

    def _ask(self, ref: Any, handler: Callable[[Any], Event | None]) -> None:
        if not self._unanswered:
            self._heard_s = time.monotonic()
        self._unanswered += 1
        self._watch(ref, partial(self._on_answer, handler))

    def _on_answer(self, handler: Callable[[Any], Event | None], ref: Any) -> Event | None:
        self._unanswered -= 1
        self._heard_s = time.monotonic()
        return handler(ref)

    def check(self) -> None:
        """Kill a keeper that does not answer: what it was asked then fails, and is asked again."""
        now_s = time.monotonic()
        if not self._unanswered or now_s - self._heard_s <= ANSWER_LIMIT_S:
            return
        self._heard_s = now_s
        self._silent = f"it did not answer for {ANSWER_LIMIT_S:.0f} s; is the store's disk stuck?"
        ray.kill(self._keeper, no_restart=True)
        if self._process is not None:  # one that is stopped does not hear Ray
            with contextlib.suppress(psutil.Error):
                psutil.Process(self._process).kill()

    def _replace(self, dead: Any, error: Exception) -> StopRequested | None:
        """Start a new keeper, unless the dead one has been replaced already."""
        self._cluster.check()
        why, self._silent = self._silent or in_words(error), ""
        if self._keeper is dead:
            self._deaths += 1
            ray.kill(dead, no_restart=True)
            self._keeper = self._start()
        if self._deaths <= MAX_BARREN_KEEPERS:
            return None
        return StopRequested(
            at_s=time.monotonic(),
            outcome="store_failed",
            message=f"the store keeper dies again and again: {why}",
        )

    # -- writing

    def store(self, unit: Unit, attempt: int, output: Output, numerics: str, writer: str) -> None:
        keeper = self._keeper
        pinned = self._plan.numerics == "pinned"
        ref = keeper.store.remote(
            self._recipes.key(unit), unit.kind, numerics, writer, pinned,
            output.shown, output.memory,
        )  # fmt: skip
        self._ask(ref, partial(self._on_stored, unit, attempt, keeper))

    def _on_stored(self, unit: Unit, attempt: int, keeper: Any, ref: Any) -> Event:
        now_s = time.monotonic()
        try:
            what, answer = ray.get(ref, timeout=0)
        except RayError as error:
            if meaning(error) == "object":
                return OutputLost(at_s=now_s, unit=unit, attempt=attempt)
            return self._replace(keeper, error) or StoreFailed(
                at_s=now_s, unit=unit, attempt=attempt, message=in_words(error), transient=True
            )
        self._deaths = 0
        if what == "refused":
            return StoreFailed(at_s=now_s, unit=unit, attempt=attempt, message=answer)
        record, warnings = answer
        self._note(
            {
                "type": "stored",
                "key": record.recipe,
                "unit": str(unit),
                "kind": unit.kind,
                "sha256": record.sha256,
                "length": record.length,
                "numerics": record.numerics,
                "writer": record.writer,
            }
        )
        for warning in warnings:
            self._note({"type": "disagreement", "unit": str(unit), "message": warning})
        return OutputStored(at_s=now_s, unit=unit, attempt=attempt, warnings=tuple(warnings))

    def delete(self, unit: Unit) -> None:
        """Delete a settled checkpoint; if that fails, a later resume tries again."""
        keeper = self._keeper
        ref = keeper.delete.remote([self._recipes.key(unit)])
        self._ask(ref, partial(self._on_deleted, keeper))

    def _on_deleted(self, keeper: Any, ref: Any) -> Event | None:
        try:
            ray.get(ref, timeout=0)
        except RayError as error:
            if meaning(error) != "task":
                return self._replace(keeper, error)
        return None

    # -- reading

    def load(self, unit: Unit) -> None:
        keeper = self._keeper
        status, *refs = keeper.load.options(num_returns=3).remote(self._recipes.key(unit))
        self._ask(status, partial(self._on_loaded, unit, Output(*refs), keeper))

    def _on_loaded(self, unit: Unit, output: Output, keeper: Any, ref: Any) -> Event | None:
        now_s = time.monotonic()
        try:
            what, answer = ray.get(ref, timeout=0)
        except RayError as error:
            if meaning(error) != "task":  # the keeper itself is gone
                return self._load_again(unit, keeper, error)
            what, answer = "damaged", in_words(error)
        self._deaths = 0
        if what == "damaged":
            self._note({"type": "damaged", "unit": str(unit), "message": answer})
            return LoadFailed(at_s=now_s, unit=unit, message=answer)
        self._hold(unit, output)
        return OutputLoaded(at_s=now_s, unit=unit, remembers=answer)

    def _load_again(self, unit: Unit, keeper: Any, error: Exception) -> Event | None:
        """With another keeper; a result that kills every one of them counts as damaged."""
        stop = self._replace(keeper, error)
        self._deadly[unit] += 1
        if stop is None and self._deadly[unit] >= MAX_DEADLY_LOADS:
            message = f"{self._deadly[unit]} store keepers died reading it: {in_words(error)}"
            return LoadFailed(at_s=time.monotonic(), unit=unit, message=message)
        if stop is None:
            self.load(unit)
        return stop

    # -- the film

    def stitch(self, out: str, provenance: dict[str, Any]) -> None:
        goals = {self._recipes.key(goal): goal for goal in self._plan.goals()}
        recipes = [self._recipes.key(goal) for goal in self._plan.goals()]
        keeper = self._keeper
        ref = keeper.stitch.remote(recipes, out, self._plan.fps, self._plan.codec, provenance)
        # Not asked with a deadline: a film of hours takes as long as its disk does.
        self._watch(ref, partial(self._on_stitched, goals, out, provenance, keeper))

    def _on_stitched(
        self, goals: dict[str, Unit], out: str, provenance: dict[str, Any], keeper: Any, ref: Any
    ) -> Event | None:
        now_s = time.monotonic()
        try:
            what, answer = ray.get(ref, timeout=0)
        except RayError as error:
            if meaning(error) == "task":
                return StitchFailed(at_s=now_s, message=in_words(error))
            stop = self._replace(keeper, error)
            if stop is None:
                self.stitch(out, provenance)
            return stop
        if what == "damaged":
            lost = tuple(goals[recipe] for recipe in dict.fromkeys(answer))
            return StitchFailed(at_s=now_s, message="its stored result is damaged", lost=lost)
        if what == "failed":
            return StitchFailed(at_s=now_s, message=answer)
        sha256, kept = answer
        record = {"type": "film", "key": "film", "path": out, "sha256": sha256, "kept": kept}
        self._note(record)
        return FilmStitched(at_s=now_s, path=out, kept=kept)
