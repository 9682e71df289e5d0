"""The plan of fast attention: what it refuses, what it says is remembered when, and its file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from jobs.attention_plan import (
    NONE_SKIPPED,
    STRATEGIES,
    AttentionPlan,
    branches_of,
    load,
    save,
)
from jobs.calibration import CalibrationKey
from jobs.errors import BadJob, CannotRunHere

WINDOW = (3, 5, 5)
F, FB, W, WB, S = (
    "full", "full+share_branches", "window", "window+share_branches", "share_steps",
)  # fmt: skip
KEY = CalibrationKey(
    model="a" * 64,
    latent_size=(9, 12, 12),
    stage_steps=(3, 4),
    stage=0,
    scheduler="unipc",
    flow_shift=None,
    guided=True,
    dtype="bfloat16",
)


def plan(*strategies: str) -> AttentionPlan:
    """Of one layer."""
    return AttentionPlan(tuple((strategy,) for strategy in strategies), WINDOW)


def kept(
    plan: AttentionPlan, guided: bool = True, may_skip: frozenset[int] = NONE_SKIPPED
) -> list[set[str]]:
    """By step: what is remembered after it, of branches that run one after the other."""
    branches = branches_of(guided=guided)
    every = [plan.carried_after(step, branches, may_skip) for step in range(plan.steps)]
    return [{f"{kind}.{owner}" for kind, _, owner in each} for each in every]


def test_cheapest_first() -> None:
    assert STRATEGIES == (S, WB, W, FB, F)


def test_all_full_keeps_nothing() -> None:
    assert kept(plan(F, F, FB, F)) == [set()] * 4


def test_a_residual_is_kept_from_its_full_step_to_its_last_window() -> None:
    both = {"residual.cond", "residual.uncond"}
    assert kept(plan(F, W, F, F, W, W)) == [both, set(), set(), both, both, set()]


def test_an_output_is_kept_from_its_step_to_its_last_share() -> None:
    both = {"output.cond", "output.uncond"}
    assert kept(plan(F, F, S, S, F)) == [set(), both, both, set(), set()]


def test_a_share_reads_the_window_step_before_it_and_not_the_full_one() -> None:
    residual, output = ({f"{kind}.cond"} for kind in ("residual", "output"))
    assert kept(plan(F, W, S, W, F), guided=False) == [
        residual, residual | output, residual, set(), set(),
    ]  # fmt: skip


def test_what_both_branches_share_is_kept_once() -> None:
    residual, output = ({f"{kind}.shared"} for kind in ("residual", "output"))
    assert kept(plan(FB, S, W)) == [residual | output, residual, set()]


def test_a_shared_window_reads_the_conditional_residual_alone() -> None:
    assert kept(plan(F, WB, F)) == [{"residual.cond"}, set(), set()]
    both = {"residual.cond", "residual.uncond"}
    assert kept(plan(F, WB, W)) == [both, both, set()]


def test_what_may_be_skipped_is_kept_from_the_step_before_as_well() -> None:
    both = {"residual.cond", "residual.uncond"}
    chosen = plan(F, W, FB, W, W)
    assert kept(chosen) == [both, set(), {"residual.shared"}, {"residual.shared"}, set()]
    either = both | {"residual.shared"}
    assert kept(chosen, may_skip=frozenset({2})) == [both, both, either, either, set()]
    assert kept(chosen, may_skip=frozenset({3})) == kept(chosen), "a window leaves no residual"
    assert chosen.sources("residual", 4, 0, frozenset({1, 2, 3})) == (2, 0)


def test_each_layer_by_itself() -> None:
    two = AttentionPlan(((F, F), (W, F), (F, S)), WINDOW)
    assert {key for key in two.kept_after(0) if key[2] == "cond"} == {("residual", 0, "cond")}
    assert {key for key in two.kept_after(1) if key[2] == "cond"} == {("output", 1, "cond")}


@pytest.mark.parametrize(
    ("strategies", "said"),
    [
        ((S, F), "step 0, layer 0: 'share_steps' reads the output of a step before"),
        ((W, F), "step 0, layer 0: 'window' reads the residual of a step before"),
        ((F, "dense"), "step 1, layer 0: unknown strategy 'dense'; valid: share_steps, window"),
        ((), "needs steps"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(strategies: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadJob, match=said.replace("+", r"\+")):
        plan(*strategies)


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises(BadJob, match="a strategy for every layer"):
        AttentionPlan(((F, F), (F,)), WINDOW)


# -- its file


def test_a_saved_plan_is_found_by_its_key(tmp_path: Path) -> None:
    other = dataclasses.replace(KEY, latent_size=(9, 16, 16))
    save(tmp_path / "plans", KEY, plan(F, W, S), {"delta": 0.1})
    save(tmp_path / "plans", other, plan(F, F, F), {"delta": 0.1})
    assert load(tmp_path / "plans", KEY) == plan(F, W, S)
    assert load(tmp_path / "plans", other) == plan(F, F, F)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "b" * 64},
        {"latent_size": (9, 12, 16)},
        {"stage_steps": (4, 4)},
        {"stage_steps": (3, 5)},
        {"stage": 1},
        {"scheduler": "euler"},
        {"flow_shift": 3.0},
        {"guided": False},
    ],
)
def test_no_plan_for_another_key(tmp_path: Path, change: dict) -> None:
    save(tmp_path, KEY, plan(F, W, S), {})
    with pytest.raises(CannotRunHere, match="has no attention plan of this model for "):
        load(tmp_path, dataclasses.replace(KEY, **change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 9}, "no attention plan of format 3"),
        ({"rows": [[F]]}, "has 1 steps, its key says 3: calibrate again"),
        ({"key": {}}, r"was made for .*: calibrate again"),
        ({"rows": [[W]] * 3}, "reads the residual"),
        ({"rows": 3}, "holds no plan"),
        ({"window": [3, 3]}, "holds no plan"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, change: dict, said: str) -> None:
    path = save(tmp_path, KEY, plan(F, W, S), {})
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CannotRunHere, match=said):
        load(tmp_path, KEY)
    path.write_text("{")
    with pytest.raises(CannotRunHere, match="is no attention plan"):
        load(tmp_path, KEY)
