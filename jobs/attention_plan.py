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
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from jobs.errors import BadJob, CannotRunHere
from jobs.files import replace_file
from jobs.model_hashes import cache_file

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

FORMAT = 1


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKey:
    """What a plan was made for: it holds for nothing else."""

    model: str  # identity of the model folder, by the hashes of its files
    latent_size: Extent  # latent frames, height and width of a tile
    steps: int
    scheduler: str
    flow_shift: float | None  # None: as the model folder says
    guided: bool  # whether there is an unconditional branch

    @property
    def file(self) -> str:
        """The name of the plan's file."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"attention-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


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


def usual_folder() -> Path:
    """Where plans are kept unless a job or a command names another place."""
    found = os.environ.get("LONGTAKE_PLANS")
    return Path(found) if found else cache_file().parent / "plans"


def save(folder: Path, key: PlanKey, plan: AttentionPlan, how: Mapping[str, Any]) -> Path:
    """Write a plan where ``load`` finds it; ``how`` says how it was found (delta and so on)."""
    path = folder / key.file
    record = {"format": FORMAT, "key": asdict(key), "window": plan.window, "rows": plan.rows}
    text = json.dumps({**record, "how": dict(how)}, indent=1) + "\n"
    try:
        replace_file(path, text)
    except OSError as error:
        raise BadJob(
            f"{path} cannot be written: {error.strerror}; choose another folder"
        ) from error
    return path


def load(folder: Path, key: PlanKey) -> AttentionPlan:
    """The plan that was made for ``key``. Raises CannotRunHere if there is none."""
    path = folder / key.file
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        wanted = ", ".join(f"{name} {value}" for name, value in asdict(key).items())
        raise CannotRunHere(f"no attention plan for {wanted} in {folder}: search one") from None
    except ValueError as error:
        raise CannotRunHere(f"{path} is no attention plan ({error}): search it again") from error
    return read(record, key, str(path))


def read(record: Any, key: PlanKey, where: str) -> AttentionPlan:
    """A plan from its record. Raises CannotRunHere for another format, another key or rows that
    do not fit the key."""
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CannotRunHere(f"{where} is no attention plan of format {FORMAT}: search it again")
    if record.get("key") != json.loads(json.dumps(asdict(key))):
        raise CannotRunHere(f"{where} was made for {record.get('key')}, not for {asdict(key)}")
    try:
        first, second, third = record["window"]
        plan = AttentionPlan(tuple(map(tuple, record["rows"])), (first, second, third))
    except (BadJob, KeyError, TypeError, ValueError) as error:
        raise CannotRunHere(f"{where} holds no plan ({error}): search it again") from error
    if plan.steps != key.steps:
        raise CannotRunHere(f"{where} has {plan.steps} steps, its key says {key.steps}")
    return plan
