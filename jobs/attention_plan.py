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
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
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
            if _reads(strategy, kind) and self.source(kind, step, layer) is None:
                raise BadJob(f"{where}: '{strategy}' reads the {kind} of a step before; there is "
                             "none: let an earlier step be 'full'")  # fmt: skip

    @property
    def steps(self) -> int:
        return len(self.rows)

    @property
    def layers(self) -> int:
        return len(self.rows[0])

    def source(self, kind: Kind, step: int, layer: int) -> int | None:
        """The last step before ``step`` that can leave a residual or an output."""
        return next(
            (at for at in reversed(range(step)) if _writes(self.rows[at][layer], kind)), None
        )

    def owner(self, source: int, layer: int, branch: Branch) -> Branch:
        """Under which branch's name lies what a step left for this branch."""
        shared = branch == "uncond" and shares_branches(self.rows[source][layer])
        return "cond" if shared else branch

    def reads(self, kind: Kind, step: int, layer: int, branch: Branch) -> Branch | None:
        """The branch under whose name a step finds what it reads; None if it reads nothing of the
        kind, or has it from the conditional branch of the same step."""
        strategy = self.rows[step][layer]
        from_cond = branch == "uncond" and shares_branches(strategy)
        source = self.source(kind, step, layer)
        if not _reads(strategy, kind) or from_cond or source is None:
            return None
        return self.owner(source, layer, branch)

    def kept_after(self, step: int) -> frozenset[tuple[Kind, int, Branch]]:
        """The look-ahead: (kind, layer, owner) of all that steps after this one read, and that was
        left at this step or before. ``both`` stands for runs that take the branches as a batch."""
        return _kept_after(self)[step]


@functools.lru_cache(maxsize=64)
def _kept_after(plan: AttentionPlan) -> tuple[frozenset[tuple[Kind, int, Branch]], ...]:
    kept: list[set[tuple[Kind, int, Branch]]] = [set() for _ in plan.rows]
    for reader in range(plan.steps):
        for layer in range(plan.layers):
            for kind in get_args(Kind):
                source = plan.source(kind, reader, layer)
                for branch in get_args(Branch):
                    owner = plan.reads(kind, reader, layer, branch)
                    for step in range(source or 0, reader) if owner else ():
                        kept[step].add((kind, layer, owner))  # type: ignore[arg-type]
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
        raise CannotRunHere(f"{path} has {plan.steps} steps, its key says {key.steps}")
    return plan
