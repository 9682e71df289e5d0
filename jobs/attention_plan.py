"""The plan of DiTFastAttn (arXiv 2406.08552): how each layer's self-attention is computed at each
step. Plain data, saved as JSON and found again by what it was made for.

A strategy is one of ``STRATEGIES``. In the paper's words: ``share_steps`` is AST, ``window`` is
WA-RS, ``+share_branches`` is ASC.

``full``             attention between all tokens
``window``           window attention, plus the residual (full - window) of the last full step
``share_steps``      the output of the step before it that computed one, of the same branch
``+share_branches``  computed for the conditional branch, used for the unconditional one as well

From these follows what must be remembered when: a full step is asked for its residual only where a
window step reads it, a computed output is kept only where a later step shares it.

The words "last" and "before" count the steps that ran. Where another technique skips a step (the
whole model, as ``adaptive`` does, or layers of it, as ``rehash``), nothing in it was computed: a
later step reads what the last step that did run has left. That is what the paper's caches would do,
which a step that is left out does not touch. So the residual of an older full step serves where a
newer one was skipped, and the look-ahead keeps it until then. The plan itself does not move: each
step that runs goes by its own row.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from jobs import calibration
from jobs.calibration import CalibrationKey
from jobs.errors import BadJob, CannotRunHere

#: Frames, rows and columns of a video's tokens.
Extent = tuple[int, int, int]

Strategy = Literal["share_steps", "window+share_branches", "window", "full+share_branches", "full"]

#: Cheapest first: the order in which a search tries them.
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

#: What a step may leave for later ones.
Kind = Literal["residual", "output"]

#: A guidance branch, or both as one batch, unconditional first. A cache of one is never read by
#: another, unless the technique is to share between branches and its plan says so.
Branch = Literal["cond", "uncond", "both"]

#: Under whose name a step leaves something: its branch's, or, computed for one and used for the
#: other as well, that of both.
Owner = Literal["cond", "uncond", "both", "shared"]

#: Under whose names a branch finds what steps before it left. No more than one of them holds
#: something: a step that makes it anew drops what was there.
FINDS: dict[Branch, tuple[Owner, ...]] = {
    "cond": ("cond", "shared"),
    "uncond": ("uncond", "shared"),
    "both": ("both",),
}

#: Steps of a stage.
Steps = frozenset[int]

#: Every step runs.
NONE_SKIPPED: Steps = frozenset()


def branches_of(*, guided: bool, batched: bool = False) -> tuple[Branch, ...]:
    """What a step takes through the model: one branch after the other, or both ``batched``."""
    if not guided:
        return ("cond",)
    return ("both",) if batched else ("cond", "uncond")


def shares_branches(strategy: Strategy) -> bool:
    return strategy.endswith("+share_branches")


def is_full(strategy: Strategy) -> bool:
    return strategy.startswith("full")


def is_windowed(strategy: Strategy) -> bool:
    return strategy.startswith("window")


def _writes(strategy: Strategy, kind: Kind) -> bool:
    return is_full(strategy) if kind == "residual" else strategy != "share_steps"


def _reads(strategy: Strategy, kind: Kind) -> bool:
    return is_windowed(strategy) if kind == "residual" else strategy == "share_steps"


def strategy_shares(rows: Sequence[Sequence[str]]) -> dict[str, float]:
    """How much of all layers and steps each strategy has: of a plan's ``rows``."""
    every = [strategy for row in rows for strategy in row]
    return {name: every.count(name) / len(every) for name in STRATEGIES}


@dataclass(frozen=True)
class AttentionPlan:
    """Strategies ``rows[step][layer]``, and the window in tokens (frames, rows, columns; odd).

    Raises BadJob where a step reads what no step before it has left.
    """

    rows: tuple[tuple[Strategy, ...], ...]
    window: Extent

    def __post_init__(self) -> None:
        if not self.rows or len({len(row) for row in self.rows}) != 1:
            raise BadJob("an attention plan needs steps, each with a strategy for every layer")
        for step, row in enumerate(self.rows):
            for layer, strategy in enumerate(row):
                self._check(step, layer, strategy)

    def _check(self, step: int, layer: int, strategy: Strategy) -> None:
        where = f"attention plan, step {step}, layer {layer}"
        if strategy not in STRATEGIES:
            raise BadJob(f"{where}: unknown strategy '{strategy}'; valid: {', '.join(STRATEGIES)}")
        for kind in get_args(Kind):
            if _reads(strategy, kind) and not self.sources(kind, step, layer):
                raise BadJob(f"{where}: '{strategy}' reads the {kind} of a step before; there is "
                             "none: let an earlier step be 'full'")  # fmt: skip

    @property
    def steps(self) -> int:
        return len(self.rows)

    @property
    def layers(self) -> int:
        return len(self.rows[0])

    def writes(self, kind: Kind, step: int, layer: int) -> bool:
        """Whether a step makes anew what later ones may read."""
        return _writes(self.rows[step][layer], kind)

    def sources(
        self, kind: Kind, step: int, layer: int, may_skip: Steps = NONE_SKIPPED
    ) -> tuple[int, ...]:
        """The steps before ``step`` that may have left the newest residual or output, newest first:
        the last one that is sure to run, and those after it that may be skipped."""
        found: list[int] = []
        for at in reversed(range(step)):
            if self.writes(kind, at, layer):
                found.append(at)
                if at not in may_skip:
                    break
        return tuple(found)

    def owner(self, step: int, layer: int, branch: Branch) -> Owner:
        """Under whose name lies what a step left for this branch."""
        shares = branch != "both" and shares_branches(self.rows[step][layer])
        return "shared" if shares else branch

    def reads(self, kind: Kind, step: int, layer: int, branch: Branch) -> bool:
        """Whether a step reads what one before it left. What the unconditional branch has from the
        conditional one of the same step is not read."""
        strategy = self.rows[step][layer]
        from_cond = branch == "uncond" and shares_branches(strategy)
        return _reads(strategy, kind) and not from_cond

    def kept_after(
        self, step: int, may_skip: Steps = NONE_SKIPPED
    ) -> frozenset[tuple[Kind, int, Owner]]:
        """The look-ahead: (kind, layer, owner) of all that steps after this one may read, and that
        was left at this step or before. ``both`` stands for runs that take the branches as a batch.

        Where steps ``may_skip``, what they would make anew is kept until one that is sure to run
        has done so: so more is kept than is read."""
        return _kept_after(self, may_skip)[step]

    def carried_after(
        self, step: int, branches: Collection[Branch], may_skip: Steps = NONE_SKIPPED
    ) -> frozenset[tuple[Kind, int, Owner]]:
        """Of what is kept after a step, what a tile has whose steps take these ``branches``."""
        owners = {owner for branch in branches for owner in FINDS[branch]}
        return frozenset(key for key in self.kept_after(step, may_skip) if key[2] in owners)

    def held_in(
        self, step: int, branches: Collection[Branch], may_skip: Steps = NONE_SKIPPED
    ) -> float:
        """How many residuals and outputs lie with a tile at the end of a step: those that it got,
        those that it made, and outputs that its conditional branch hands to the other. Of branches
        as one batch a residual that they share is half of one."""
        got = self.carried_after(step - 1, branches, may_skip) if step else frozenset()
        kept = self.carried_after(step, branches, may_skip)
        made = {
            (kind, layer, self.owner(step, layer, branch))
            for kind in get_args(Kind)
            for layer in range(self.layers)
            for branch in branches
            if self.writes(kind, step, layer)
        }
        handed = {key for key in made if key[0] == "output" and key[2] == "shared"}
        held = sum(self._part(step, *key, may_skip) for key in got)
        return held + sum(self._part(step + 1, *key, may_skip) for key in made & kept | handed)

    def _part(self, step: int, kind: Kind, layer: int, owner: Owner, may_skip: Steps) -> float:
        """How much of one is what lies there before a step."""
        if owner != "both" or kind == "output":
            return 1
        sources = self.sources(kind, step, layer, may_skip)
        return 0.5 if all(shares_branches(self.rows[at][layer]) for at in sources) else 1


@functools.lru_cache(maxsize=64)
def _kept_after(
    plan: AttentionPlan, may_skip: Steps
) -> tuple[frozenset[tuple[Kind, int, Owner]], ...]:
    kept: list[set[tuple[Kind, int, Owner]]] = [set() for _ in plan.rows]
    readers = itertools.product(
        range(plan.steps), range(plan.layers), get_args(Kind), get_args(Branch)
    )
    for reader, layer, kind, branch in readers:
        if not plan.reads(kind, reader, layer, branch):
            continue
        for source in plan.sources(kind, reader, layer, may_skip):
            for step in range(source, reader):
                kept[step].add((kind, layer, plan.owner(source, layer, branch)))
    return tuple(frozenset(each) for each in kept)


# -- files


def save(folder: Path, key: CalibrationKey, plan: AttentionPlan, how: Mapping[str, Any]) -> Path:
    """Write a plan where ``load`` finds it; ``how`` says how it was found (delta and so on)."""
    found = {"window": plan.window, "rows": plan.rows}
    return calibration.save(folder, "attention plan", key, found, how)


def load(folder: Path, key: CalibrationKey) -> AttentionPlan:
    """The plan that was made for ``key``. Raises CannotRunHere if there is none, or if its rows do
    not fit the key."""
    record, path = calibration.load(folder, "attention plan", key)
    try:
        first, second, third = record["window"]
        plan = AttentionPlan(tuple(map(tuple, record["rows"])), (first, second, third))
    except (BadJob, KeyError, TypeError, ValueError) as error:
        raise CannotRunHere(f"{path} holds no plan ({error}): calibrate again") from error
    if plan.steps != key.steps:
        raise CannotRunHere(
            f"{path} has {plan.steps} steps, its key says {key.steps}: calibrate again"
        )
    return plan
