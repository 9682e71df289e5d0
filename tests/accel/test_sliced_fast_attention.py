"""Slicing and fast attention together: what fast attention alone gives, in less memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from accel import compose
from accel.handle import TileStep
from accel.memory import TensorAccounting
from accel.video_transformers import VIDEO_TRANSFORMERS
from accel.windowed import window_of
from accel.wrapping import LeftToSlices
from jobs.accelerations import Accelerations, Adaptive, FastAttention, Rehash, Slicing
from jobs.attention_plan import AttentionPlan, Branch, Strategy
from jobs.families.features import feature_bytes
from jobs.families.slicing_memory import sliced_bytes, whole_attention
from jobs.units import Unit
from tests.accel import memory_cases as memory
from tests.accel.test_slicing import structure
from tests.accel.test_video_transformers import TINY, Tiny
from tests.marks import few

F: Strategy = "full"
W: Strategy = "window"
S: Strategy = "share_steps"
WB: Strategy = "window+share_branches"
FB: Strategy = "full+share_branches"
WINDOW = (3, 1, 3)
STEPS = 6
#: Every strategy, after every other that leaves something, and full ones that nobody reads.
PLAN = AttentionPlan(
    ((F, F, FB), (F, W, S), (W, FB, WB), (WB, S, F), (S, WB, W), (F, F, S)), WINDOW
)
FULL = AttentionPlan(((F,) * 3,) * STEPS, WINDOW)
ONE_BY_ONE: tuple[Branch, ...] = ("cond", "uncond")
BATCHED: tuple[Branch, ...] = ("both",)


@pytest.fixture(params=sorted(VIDEO_TRANSFORMERS))
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return TINY[request.param]()


@dataclass
class Steps:
    outputs: list[torch.Tensor] = field(default_factory=list)
    tiles: list[TileStep] = field(default_factory=list)

    def counts(self, name: str) -> list[dict[str, int]]:
        """What a technique did at each step."""
        return [
            {key: n for key, n in tile.engaged.items() if key.startswith(name)}
            for tile in self.tiles
        ]


@torch.no_grad()
def run(
    tiny: Tiny,
    branches: tuple[Branch, ...] = ONE_BY_ONE,
    skipped: Collection[int] = (),
    after: Callable[[], Any] = lambda: None,
    **asked: Any,
) -> Steps:
    """Every step of a tile; those that are ``skipped`` hand on what they got."""
    steps, carried = Steps(), dict[str, torch.Tensor]()
    applied = compose.apply(tiny.model, compose.attached(Accelerations(**asked)))
    for step in range(STEPS):
        tile = TileStep(unit=Unit("step", 0, step=step), steps=STEPS, carried=carried)
        if step in skipped:
            tile.kept.update(carried)
        else:
            for branch in branches:
                with applied.run(tile, branch):
                    steps.outputs.append(forward(tiny, step, branch))
        steps.tiles.append(tile)
        carried = tile.kept
        after()
    applied.remove()
    return steps


def forward(tiny: Tiny, step: int, branch: Branch) -> torch.Tensor:
    """Of two different inputs as one batch, or of one of them."""
    given = tiny.arguments(step, 2 if branch == "both" else 1)
    if branch != "cond":
        given["encoder_hidden_states"] = given["encoder_hidden_states"].flip(1)
    return tiny.model(**given, return_dict=False)[0]


def plan(chosen: AttentionPlan = PLAN) -> FastAttention:
    return FastAttention(stages=(chosen,))


def same(ours: Steps, theirs: Steps) -> None:
    torch.testing.assert_close(ours.outputs, theirs.outputs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("branches", [ONE_BY_ONE, BATCHED])
@pytest.mark.parametrize("slices", [2, 5])
def test_sliced_steps_are_those_of_fast_attention_alone(
    tiny: Tiny, slices: int, branches: tuple[Branch, ...]
) -> None:
    before = structure(tiny.model)
    both = run(tiny, branches, fast_attention=plan(), slicing=Slicing(slices=slices))
    assert structure(tiny.model) == before
    alone = run(tiny, branches, fast_attention=plan())
    same(both, alone)
    for ours, theirs in zip(both.tiles, alone.tiles, strict=True):
        assert {name: each.shape for name, each in ours.kept.items()} == {
            name: each.shape for name, each in theirs.kept.items()
        }
    assert both.counts("fast_attention") == alone.counts("fast_attention")
    assert all(counts["slicing"] > 0 for counts in both.counts("slicing"))
    plain = run(tiny, branches)
    apart = [not torch.allclose(x, y) for x, y in zip(both.outputs, plain.outputs, strict=True)]
    assert sum(apart) > STEPS / 2 * len(branches), "or the plan is never seen"


def test_a_plan_that_changes_nothing_leaves_the_slices_as_they_are(tiny: Tiny) -> None:
    sliced = run(tiny, slicing=Slicing(slices=3))
    both = run(tiny, slicing=Slicing(slices=3), fast_attention=plan(FULL))
    assert all(map(torch.equal, both.outputs, sliced.outputs))
    assert both.counts("slicing") == sliced.counts("slicing")
    assert both.counts("fast_attention") == [{"fast_attention.layers": 6}] * STEPS


@pytest.mark.parametrize("skipped", [{1}, {2, 3}, {1, 4}])
def test_where_steps_are_skipped_the_last_that_ran_serves(tiny: Tiny, skipped: set[int]) -> None:
    asked = {"fast_attention": plan(), "adaptive": Adaptive(form="spectral", first=1)}
    both = run(tiny, ONE_BY_ONE, skipped, slicing=Slicing(slices=3), **asked)
    same(both, run(tiny, ONE_BY_ONE, skipped, **asked))


def test_with_rehash_too() -> None:
    tiny, rehash = TINY["WanTransformer3DModel"](), Rehash(key_steps=((0, 2, 3, 5),))
    both = run(tiny, fast_attention=plan(), rehash=rehash, slicing=Slicing(slices=3))
    alone = run(tiny, fast_attention=plan(), rehash=rehash)
    same(both, alone)
    for name in ("fast_attention", "rehash"):
        assert both.counts(name) == alone.counts(name)
    assert [tile.engaged["rehash.reused"] for tile in both.tiles] == [0, 2, 0, 0, 2, 0]


def test_only_layers_that_a_plan_changes_or_keeps_attend_as_a_whole(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is shared is not computed at all, and a full one that nobody reads is left to slices."""
    calls, whole = [], LeftToSlices.whole

    def watched(self: LeftToSlices, *args: Any) -> Any:
        calls.append(1)
        return whole(self, *args)

    monkeypatch.setattr(LeftToSlices, "whole", watched)
    run(tiny, fast_attention=plan(), slicing=Slicing(slices=3), after=lambda: calls.append(0))
    assert "".join(map(str, calls)).split("0")[:-1] == ["111", "1111", "1111", "111", "111", ""]


#: Of all strategies, and of windows alone, for which a step needs the most beside what it keeps.
ROWS: dict[str, tuple[Strategy, ...]] = {"all": (F, W, FB, S, WB), "windows": (F, W)}
SIZES = ((32, 32, 6, "float16"), (24, 40, 12, "float32"), (64, 96, 2, "float16"))


def tiles() -> Iterator[Any]:
    """Wan's first is quick. Fake tensors do not say what a mask hides, so that HunyuanVideo's are
    real, and few."""
    yield pytest.param(
        "hunyuan video", 16, 16, 8, "float32", id="hunyuan video", marks=pytest.mark.long
    )
    for name in ("wan", "ltx", "cogvideox"):
        for size in SIZES:
            quick = name == "wan" and size == SIZES[0]
            yield pytest.param(name, *size, marks=() if quick else pytest.mark.long)


@pytest.mark.parametrize("rows", few(ROWS, "windows"))
@pytest.mark.parametrize("name, height, width, slices, dtype", tiles())
@torch.no_grad()
def test_a_tile_holds_what_planning_adds_up(
    name: str, height: int, width: int, slices: int, dtype: str, rows: str
) -> None:
    case, before = memory.DENOISERS[name], torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    fake = nullcontext() if name == "hunyuan video" else FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with fake:
            counted, planned = count(case, ROWS[rows], height, width, slices, dtype)
    finally:
        torch.set_default_dtype(before)
    assert planned == pytest.approx(counted, rel=memory.TOLERANCE)


def count(
    case: memory.Case, rows: tuple[Strategy, ...], height: int, width: int, slices: int, dtype: str
) -> tuple[int, int]:
    """The most that a step holds, with what it got from the one before: counted, and planned."""
    model: Any = case.make().eval()
    size = case.size(height, width)
    kind = VIDEO_TRANSFORMERS[type(model).__name__]
    layers = len(kind.layers(model))
    chosen = AttentionPlan(
        tuple((each,) * layers for each in rows), window_of((memory.FRAMES, height, width))
    )
    asked = Accelerations(fast_attention=plan(chosen), slicing=Slicing(slices=slices))
    applied, carried = compose.apply(model, compose.attached(asked)), dict[str, torch.Tensor]()
    branches, peaks = BATCHED if case.branches == 2 else ONE_BY_ONE, []
    for step in range(len(rows)):
        tile = TileStep(unit=Unit("step", 0, step=step), steps=len(rows), carried=carried)
        with TensorAccounting() as counted:
            for branch in branches:
                with applied.run(tile, branch):
                    case.forward(model, size)
        peaks.append(counted.peak_bytes + sum(each.nbytes for each in carried.values()))
        carried = tile.kept
    config = dict(model.config) | {"_class_name": type(model).__name__}
    given = {"branches": case.branches, "text_tokens": case.text_tokens}
    text = 0 if kind.text == "none" else case.text_tokens
    feature = case.branches * feature_bytes(config, size, dtype, text)
    planned = (
        sliced_bytes(
            config, size, dtype, slices, **given, whole=whole_attention(chosen, step, branches)
        )
        + int(chosen.held_in(step, branches) * feature)
        for step in range(len(rows))
    )
    return max(peaks), max(planned)
