"""Fast attention on a tiny Wan: what it computes, what it remembers, and what it refuses."""

from __future__ import annotations

import random

import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend

from accel.fast_attention import NAME, FastAttention, apply
from accel.handle import LostState, TileStep
from jobs.attention_plan import STRATEGIES, AttentionPlan
from jobs.errors import BadJob, CannotRunHere
from jobs.units import Unit
from tests.accel.fast_attention_helpers import (
    GRID,
    LAYERS,
    WINDOW,
    advance,
    forward,
    plain_processors,
    run_plainly,
    run_plan,
    start,
    tiny_wan,
)
from tests.marks import few
from workers.bundles import to_bundle, to_tensors

F, FB, W, WB, S = (
    "full", "full+share_branches", "window", "window+share_branches", "share_steps",
)  # fmt: skip

#: Norms run in float32 whatever the model's dtype: this is their rounding.
ROUNDING = 2e-5


def plan(*columns: tuple[str, ...], window=WINDOW) -> AttentionPlan:
    """Strategies of each layer, by step; a single one stands for all layers."""
    columns = columns * LAYERS if len(columns) == 1 else columns
    return AttentionPlan(tuple(zip(*columns, strict=True)), window)


def random_plan(seed: int, steps: int = 7) -> AttentionPlan:
    rng = random.Random(seed)
    columns = [("full", *rng.choices(STRATEGIES, k=steps - 1)) for _ in range(LAYERS)]
    return plan(*(tuple(column) for column in columns))


def apart(ours, theirs) -> float:
    return max(
        float((a - b).abs().max())
        for pair in zip(ours.outputs, theirs.outputs, strict=True)
        for a, b in zip(*pair, strict=True)
    )


def assert_same_bits(ours, theirs) -> None:
    for step, pairs in enumerate(zip(ours.outputs, theirs.outputs, strict=True)):
        for a, b in zip(*pairs, strict=True):
            assert torch.equal(a, b), step


# -- what it computes


def test_full_everywhere_is_the_model_bit_for_bit() -> None:
    model = tiny_wan()
    ours = run_plan(model, plan((F,) * 4))
    x = start()
    for step, (cond, uncond) in enumerate(ours.outputs):
        assert torch.equal(cond, forward(model, x, step, "cond"))
        assert torch.equal(uncond, forward(model, x, step, "uncond"))
        assert not torch.equal(cond, uncond)
        x = advance(x, cond, uncond)
    assert all(not tile.kept for tile in ours.tiles)
    assert all(set(tile.engaged) == {"fast_attention.layers"} for tile in ours.tiles)


def test_keeping_a_residual_changes_no_bit_of_its_own_step() -> None:
    model = tiny_wan()
    kept, plain = run_plan(model, plan((F, W))), run_plan(model, plan((F, F)))
    assert kept.tiles[0].kept and not plain.tiles[0].kept
    assert torch.equal(kept.outputs[0][0], plain.outputs[0][0])


@pytest.mark.parametrize("seed", few(range(12), 0, 1, 2, 3))
def test_any_plan_is_what_the_paper_says(seed: int) -> None:
    model, chosen = tiny_wan(), random_plan(seed)
    ours, theirs = run_plan(model, chosen), run_plainly(model, chosen.rows)
    assert apart(ours, theirs) < ROUNDING
    assert apart(ours, run_plan(model, plan((F,) * 7))) > 100 * ROUNDING, "it changes something"


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != F])
def test_each_strategy_differs_from_full(strategy: str) -> None:
    """So that agreement with the paper's words is none of two runs that do nothing."""
    model = tiny_wan()
    full = run_plan(model, plan((F, F)))
    assert apart(run_plan(model, plan((F, strategy))), full) > 100 * ROUNDING


def test_a_window_over_everything_is_dense() -> None:
    model = tiny_wan()
    wide = tuple(2 * n - 1 for n in GRID)
    ours = run_plan(model, plan((F, W, W, F, W), window=wide))
    assert apart(ours, run_plan(model, plan((F,) * 5))) < ROUNDING


def test_branches_as_one_batch_are_the_branches_one_by_one() -> None:
    model = tiny_wan()
    for chosen in (plan((F, W, FB, W, WB, S, W, F, WB, S)), random_plan(3), random_plan(5)):
        one_by_one, batched = run_plan(model, chosen), run_plan(model, chosen, batched=True)
        assert apart(batched, one_by_one) < ROUNDING
        for tile, other in zip(batched.tiles, one_by_one.tiles, strict=True):
            assert bool(tile.kept) == bool(other.kept)


# -- steps that another technique skips


@pytest.mark.parametrize("seed", few(range(12), 0, 1, 2, 3))
def test_where_steps_are_skipped_the_last_that_ran_serves(seed: int) -> None:
    """The slow twin's caches hold whatever was computed last."""
    model, chosen = tiny_wan(), random_plan(seed, steps=9)
    skipped = set(random.Random(100 + seed).sample(range(1, 9), k=3))
    ours, theirs = (
        run_plan(model, chosen, through_bytes, skipped=skipped),
        run_plainly(model, chosen.rows, skipped),
    )
    assert apart(ours, theirs) < ROUNDING
    assert apart(run_plan(model, chosen, batched=True, skipped=skipped), theirs) < ROUNDING


@pytest.mark.parametrize("skipped_one", [F, FB, W, WB])
@pytest.mark.parametrize("reader", [S, W, WB])
@pytest.mark.parametrize("before", [F, FB])
def test_a_skip_in_front_of_a_step_that_reads(before: str, skipped_one: str, reader: str) -> None:
    model, chosen = tiny_wan(), plan((before, F, before, skipped_one, reader, reader))
    ours = run_plan(model, chosen, through_bytes, skipped={3})
    assert apart(ours, run_plainly(model, chosen.rows, {3})) < ROUNDING
    assert apart(ours, run_plan(model, chosen)) > 100 * ROUNDING


@pytest.mark.parametrize("seed", range(4))
def test_steps_that_may_be_skipped_and_are_not_change_no_bit(seed: int) -> None:
    model, chosen = tiny_wan(), random_plan(seed)
    assert_same_bits(run_plan(model, chosen, skipped={99}), run_plan(model, chosen))


# -- what it remembers


@pytest.mark.parametrize("seed", range(4))
def test_it_keeps_what_the_plan_will_read_and_nothing_else(seed: int) -> None:
    chosen = random_plan(seed)
    for step, tile in enumerate(run_plan(tiny_wan(), chosen).tiles):
        expected = {
            f"{NAME}.{owner}.{kind}.{layer}.0"
            for kind, layer, owner in chosen.kept_after(step)
            if owner != "both"
        }
        assert set(tile.kept) == expected
        assert not tile.shared, "nothing is left of what the branches shared"


def through_bytes(kept: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    bundle = to_bundle(kept)
    copies = {name: array.tobytes() for name, array in bundle.arrays.items()}
    found = to_tensors(bundle)
    assert {name: to_bundle(found).arrays[name].tobytes() for name in found} == copies
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", few(range(3), 0))
def test_a_tile_may_move_between_any_two_steps(seed: int, dtype: torch.dtype, monkeypatch) -> None:
    """Another copy of the model, and only bytes on the way: no bit of any step changes."""
    model, chosen = tiny_wan().to(dtype), random_plan(seed)
    monkeypatch.setattr("tests.accel.fast_attention_helpers.start", lambda: start().to(dtype))
    monkeypatch.setattr(
        "tests.accel.fast_attention_helpers.text", lambda branch: text_of(branch).to(dtype)
    )
    assert_same_bits(run_plan(model, chosen, move=through_bytes), run_plan(model, chosen))


def text_of(branch: str) -> torch.Tensor:
    return torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(len(branch)))


def test_what_was_used_is_counted() -> None:
    tiles = run_plan(tiny_wan(), plan((F, W, FB, S), (F, F, WB, S), (FB, F, F, F))).tiles
    counted = [{name.split(".")[1]: n for name, n in tile.engaged.items()} for tile in tiles]
    assert {each.pop("layers") for each in counted} == {6}, "three layers, two branches"
    assert counted == [
        {"share_branches": 1},
        {"window": 2},
        {"window": 1, "share_branches": 2},
        {"share_steps": 4},
    ]


# -- sharing over branches


def tile_at(step: int, steps: int, carried=None) -> TileStep:
    return TileStep(unit=Unit("step", 0, step=step), steps=steps, carried=carried or {})


def test_the_unconditional_branch_reads_this_steps_conditional_one() -> None:
    """Two tiles at the same step: each unconditional pass has its own tile's, and once alone."""
    model = tiny_wan()
    handle = apply(model, FastAttention(stages=(plan((FB, FB)),)))
    x, y = start(), start().flip(2)
    tiles = {"x": tile_at(1, 2), "y": tile_at(1, 2)}
    for latents, tile in ((x, tiles["x"]), (y, tiles["y"])):
        with handle.run(tile, "cond"):
            forward(model, latents, 1, "cond")
    with handle.run(tiles["x"], "uncond"):
        ours = forward(model, x, 1, "uncond")
    handle.remove()
    with plain_processors(model) as processors:
        for branch in ("cond", "uncond"):
            for processor in processors:
                processor.strategy, processor.branch = FB, branch
            expected = forward(model, x, 1, branch)
    assert float((ours - expected).abs().max()) < ROUNDING
    assert not tiles["x"].shared, "used up"
    assert not tiles["x"].kept, "and never handed to a later step"


def test_without_the_conditional_branch_of_the_same_step_it_is_refused() -> None:
    model = tiny_wan()
    handle = apply(model, FastAttention(stages=(plan((F, FB)),)))
    before = tile_at(0, 2)
    for branch in ("cond", "uncond"):
        with handle.run(before, branch):
            forward(model, start(), 0, branch)
    with (
        pytest.raises(CannotRunHere, match="layer 0: the conditional branch of this step is to"),
        handle.run(tile_at(1, 2, before.kept), "uncond"),
    ):
        forward(model, start(), 1, "uncond")
    with handle.run(tile_at(1, 2, before.kept), "cond"):  # an error leaves nothing behind
        forward(model, start(), 1, "cond")


# -- what it refuses, and that it leaves


def test_it_leaves_the_model_as_it_was() -> None:
    model, x = tiny_wan(), start()
    held = model.blocks[1].attn1
    held.forward = marked = held.forward  # as another technique before this one may have done
    before = [(name, dict(vars(m))) for name, m in model.named_modules()]
    expected = forward(model, x, 0, "cond")
    handle = apply(model, FastAttention(stages=(plan((F, W)),)))
    assert "forward" in vars(model.blocks[0].attn1)
    handle.remove()
    assert vars(held)["forward"] is marked
    assert [(name, dict(vars(m))) for name, m in model.named_modules()] == before
    assert torch.equal(forward(model, x, 0, "cond"), expected)
    handle.remove()


def test_outside_a_tile_it_does_not_compute() -> None:
    model = tiny_wan()
    apply(model, FastAttention(stages=(plan((F, F)),)))
    with pytest.raises(CannotRunHere, match="runs outside a tile"):
        forward(model, start(), 0, "cond")


def test_a_model_that_is_not_known_is_refused() -> None:
    with pytest.raises(CannotRunHere, match=r"does not know Linear; it runs in .*WanTransformer3D"):
        apply(torch.nn.Linear(2, 2), FastAttention(stages=(plan((F, F)),)))


def test_a_plan_for_other_layers_is_refused() -> None:
    model = tiny_wan(layers=2)
    with pytest.raises(CannotRunHere, match="has 3 layers, this WanTransformer3DModel has 2"):
        apply(model, FastAttention(stages=(plan((F, F)),)))
    assert "forward" not in vars(model.blocks[0].attn1)


@pytest.mark.parametrize(
    ("tile", "said"),
    [
        (tile_at(0, 3), "has 2 steps, the job 3"),
        (TileStep(unit=Unit("step", 0, stage=1), steps=2), "attention plans for 1 stages"),
    ],
)
def test_a_plan_for_other_steps_or_stages_is_refused(tile: TileStep, said: str) -> None:
    handle = apply(tiny_wan(), FastAttention(stages=(plan((F, F)),)))
    with pytest.raises(CannotRunHere, match=said), handle.run(tile, "cond"):
        pass


def test_a_tile_without_its_state_is_refused() -> None:
    model = tiny_wan()
    handle = apply(model, FastAttention(stages=(plan((F, W)),)))
    with (
        pytest.raises(LostState, match=r"step 1 came without 'fast_attention.cond.residual.0"),
        handle.run(tile_at(1, 2), "cond"),
    ):
        forward(model, start(), 1, "cond")


def test_an_attention_that_is_not_torchs_is_refused() -> None:
    model = tiny_wan()
    handle = apply(model, FastAttention(stages=(plan((F, W)),)))
    with (
        pytest.raises(CannotRunHere, match="layer 0: its attention did not go through torch's"),
        attention_backend("flex"),
        handle.run(tile_at(0, 2), "cond"),
    ):
        forward(model, start(), 0, "cond")
    handle.remove()
    model.blocks[1].attn1.processor._attention_backend = "flash"
    with pytest.raises(CannotRunHere, match=r"layer 1 runs attention backend 'flash'; use one of"):
        apply(model, FastAttention(stages=(plan((F, W)),)))


@pytest.mark.parametrize("strategy", [F, W])
def test_a_layer_that_gives_more_than_is_known_is_refused(strategy: str) -> None:
    """Whether the plan changes it or leaves it alone."""
    model = tiny_wan()
    attention = model.blocks[1].attn1
    plain = attention.forward
    attention.forward = lambda *args, **kwargs: (plain(*args, **kwargs),) * 2
    handle = apply(model, FastAttention(stages=(plan((F, strategy)),)))
    with (
        pytest.raises(CannotRunHere, match="layer 1: its attention gave 2 tensors, and fast"),
        handle.run(tile_at(0, 2), "cond"),
    ):
        forward(model, start(), 0, "cond")


def test_a_layer_that_was_left_out_is_seen() -> None:
    model = tiny_wan()
    handle = apply(model, FastAttention(stages=(plan((F, F)),)))
    layers = model.blocks
    model.blocks = model.blocks[:2]
    with (
        pytest.raises(CannotRunHere, match=r"of 3 layers with fast attention the model called"),
        handle.run(tile_at(0, 2), "cond"),
    ):
        forward(model, start(), 0, "cond")
    model.blocks = layers


def test_a_plan_is_checked_before_it_is_a_plan() -> None:
    with pytest.raises(BadJob, match="reads the residual"):
        plan((W, W))
