"""Step Rehash and a plan of attention together: layers that are left out keep what they had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from accel import compose, fast_attention
from accel.fast_attention import apply
from accel.handle import TileStep
from jobs.accelerations import Accelerations, FastAttention, Rehash
from jobs.arrays import decode_bundle, encode_bundle
from jobs.attention_plan import AttentionPlan, Strategy
from jobs.errors import CannotRunHere
from jobs.units import Unit
from orchestrator.engagement import proofs
from tests.accel.fast_attention_helpers import LAYERS, WINDOW, Run, forward, start, tiny_wan
from tests.accel.test_video_transformers import TINY, Tiny
from tests.orchestrator.plans import make_plan
from workers.bundles import to_bundle, to_tensors

STEPS = 7
KEYS = (0, 3, 5, 6)
REHASH = Rehash(key_steps=(KEYS,))
F: Strategy = "full"
W: Strategy = "window"
S: Strategy = "share_steps"
WB: Strategy = "window+share_branches"
FB: Strategy = "full+share_branches"
#: The first layer is as it is without a plan; of the others some are renewed at steps that reuse.
PLAN = AttentionPlan(
    (
        (F, F, F),
        (F, F, W),
        (F, W, FB),
        (F, W, S),
        (F, FB, W),
        (F, W, WB),
        (F, S, S),
    ),
    WINDOW,
)
BRANCHES = ("cond", "uncond")

Done = tuple[torch.Tensor, TileStep]
Move = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def asked(plan: AttentionPlan, rehash: Rehash | None = REHASH) -> Accelerations:
    return Accelerations(rehash=rehash, fast_attention=FastAttention(stages=(plan,)))


def latents(step: int) -> torch.Tensor:
    """A step's own, whatever the steps before gave."""
    return start().roll(step, 2) * (1 + step / 10)


def run(
    accelerations: Accelerations, steps: Sequence[int] = range(STEPS), move: Move = dict
) -> Run:
    """These steps, counted as a stage of their own, each by another worker's model."""
    found, carried = Run(), dict[str, torch.Tensor]()
    for at, step in enumerate(steps):
        model = tiny_wan()
        applied = compose.apply(model, compose.attached(accelerations))
        tile = TileStep(unit=Unit("step", 0, step=at), steps=len(steps), carried=carried)
        outputs = []
        for branch in BRANCHES:
            with applied.run(tile, branch):
                outputs.append(forward(model, latents(step), step, branch))
        carried = move(tile.kept)
        found.outputs.append((outputs[0], outputs[1]))
        found.tiles.append(tile)
    return found


def through_bytes(kept: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return to_tensors(decode_bundle(encode_bundle(to_bundle(kept))))


#: For any transformer; the first layer is windowed at steps that reuse, too.
ROWS: tuple[tuple[Strategy, ...], ...] = (
    (F, F, F),
    (F, F, W),
    (W, W, F),
    (F, W, S),
    (W, F, W),
    (F, W, W),
    (F, S, S),
)


@torch.no_grad()
def run_tiny(make: Callable[[], Tiny], asked: Accelerations, steps: Sequence[int]) -> list[Done]:
    """As ``run``, of one branch of any transformer, its state carried as bytes."""
    found, carried = [], dict[str, torch.Tensor]()
    for at, step in enumerate(steps):
        tiny = make()
        applied = compose.apply(tiny.model, compose.attached(asked))
        tile = TileStep(unit=Unit("step", 0, step=at), steps=len(steps), carried=carried)
        with applied.run(tile, "cond"):
            output = tiny.model(**tiny.arguments(step, 1), return_dict=False)[0]
        carried = through_bytes(tile.kept)
        found.append((output, tile))
    return found


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_transformer_takes_both(name: str) -> None:
    """Key steps as without the steps between them, whose one layer goes by its row."""
    both = run_tiny(TINY[name], asked(AttentionPlan(ROWS, (3, 1, 3))), range(STEPS))
    plan = AttentionPlan(tuple(ROWS[step] for step in KEYS), (3, 1, 3))
    alone = run_tiny(TINY[name], asked(plan, rehash=None), KEYS)
    for at, step in enumerate(KEYS):
        assert torch.equal(both[step][0], alone[at][0]), step
    between = [step for step in range(STEPS) if step not in KEYS]
    rehash_alone = run_tiny(TINY[name], Accelerations(rehash=REHASH), range(STEPS))
    assert not any(torch.equal(both[s][0], rehash_alone[s][0]) for s in between if s > 1)
    for step, (_, tile) in enumerate(both):
        layers = LAYERS if step in KEYS else 1
        windows = ROWS[step][:layers].count(W)
        assert tile.engaged["fast_attention.layers"] == layers
        assert tile.engaged["fast_attention.window"] == windows
        assert tile.engaged["rehash.reused"] == (step in between)


def equal(one: Run, other: Run, steps: Sequence[int]) -> bool:
    return all(
        torch.equal(a, b)
        for step in steps
        for a, b in zip(one.outputs[step], other.outputs[step], strict=True)
    )


def test_key_steps_are_those_of_a_plan_that_has_no_others() -> None:
    """What steps between leave out was never computed: a key step reads what the one before left,
    whoever computes it."""
    both = run(asked(PLAN))
    rows = tuple(PLAN.rows[step] for step in KEYS)
    alone = run(asked(AttentionPlan(rows, WINDOW), rehash=None), KEYS)
    for at, step in enumerate(KEYS):
        assert torch.equal(torch.stack(both.outputs[step]), torch.stack(alone.outputs[at])), step
    again = run(asked(PLAN), move=through_bytes)
    assert equal(both, again, range(STEPS))
    counts = [tile.engaged for tile in both.tiles]
    assert [each["rehash.reused"] for each in counts] == [
        0 if s in KEYS else 2 for s in range(STEPS)
    ]
    assert [each["fast_attention.layers"] for each in counts] == [
        2 * LAYERS if s in KEYS else 2 for s in range(STEPS)
    ]


def test_a_plan_that_changes_nothing_leaves_rehash_as_it_is() -> None:
    full = AttentionPlan(((F,) * LAYERS,) * STEPS, WINDOW)
    both, alone = run(asked(full)), run(Accelerations(rehash=REHASH))
    assert equal(both, alone, range(STEPS))
    changed = run(asked(PLAN))
    assert not equal(changed, alone, KEYS[1:2]), "or a plan is never seen"


def test_the_layers_that_a_step_runs_go_by_its_row() -> None:
    rows = tuple((W if step in (1, 4) else F, F, F) for step in range(STEPS))
    tiles = run(asked(AttentionPlan(rows, WINDOW))).tiles
    assert [tile.engaged["fast_attention.window"] for tile in tiles] == [0, 2, 0, 0, 2, 0, 0]


def test_a_plan_that_only_changes_what_is_left_out_did_nothing() -> None:
    rows = tuple((F, W if step in (1, 4) else F, F) for step in range(STEPS))
    accelerations = asked(AttentionPlan(rows, WINDOW))
    counts = Counter[str]()
    for tile in run(accelerations).tiles:
        counts.update(tile.engaged)
    plan = replace(make_plan(8), accelerations=accelerations)
    engaged = {proof.name: proof.engaged for proof in proofs(plan, counts, complete=True)}
    assert engaged == {"rehash": True, "fast_attention": False}


def test_it_keeps_no_more_than_is_planned() -> None:
    (may_skip,) = asked(PLAN).may_skip([STEPS])
    assert may_skip == {1, 2, 4}
    for step, tile in enumerate(run(asked(PLAN)).tiles):
        kept = {name for name in tile.kept if name.startswith("fast")}
        planned = {
            f"fast_attention.{owner}.{kind}.{layer}.0"
            for kind, layer, owner in PLAN.carried_after(step, BRANCHES, may_skip)
        }
        assert kept <= planned
    assert kept == set()


@pytest.mark.parametrize(
    ("step", "blocks", "called"), [(0, slice(1), r"\[0\]"), (1, slice(1, 3), r"\[1, 2\]")]
)
def test_layers_are_missed_at_a_key_step_and_the_first_ones_always(
    step: int, blocks: slice, called: str
) -> None:
    model, rows = tiny_wan(), ((F,) * LAYERS,) * 2
    between = (frozenset({1}),)
    handle = apply(
        model,
        fast_attention.FastAttention(
            stages=(AttentionPlan(rows, WINDOW),), may_skip=between, reusing=between
        ),
    )
    model.blocks = model.blocks[blocks]
    tile = TileStep(unit=Unit("step", 0, step=step), steps=2)
    with (
        pytest.raises(CannotRunHere, match=f"the model called {called}"),
        handle.run(tile, "cond"),
    ):
        forward(model, latents(step), step, "cond")
