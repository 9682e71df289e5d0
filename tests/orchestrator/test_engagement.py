"""What accelerations did is told, and doing nothing is an error."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.accelerations import Accelerations, Adaptive, FastAttention, Rehash, Slicing
from jobs.presets import combined
from jobs.units import Unit
from orchestrator.engagement import (
    LETTERS,
    all_counted,
    engaged,
    engagement,
    idle_message,
    is_told,
    proof_lines,
    proofs,
    tile_steps,
)
from tests.orchestrator.plans import make_plan

ASKED = Accelerations(adaptive=Adaptive())


def test_a_unit_that_was_computed_again_counts_once() -> None:
    one, other = Unit("step", 0, index=1, step=4), Unit("step", 0, index=2, step=4)
    records = [
        engagement(one, {"adaptive.skipped": 1}),
        {"type": "stored", "key": "x"},
        engagement(other, {"adaptive.computed": 1}),
        engagement(one, {"adaptive.skipped": 1}),
    ]
    assert engaged(records) == {"adaptive.skipped": 1, "adaptive.computed": 1}
    assert records[0] | {"type": ""} == {
        "type": "", "key": "shot 1 window 2 step 4", "kind": "step",
        "counts": {"adaptive.skipped": 1}, "shot": 0, "stage": 0, "index": 1, "step": 4,
    }  # fmt: skip


def told(
    asked: Accelerations, *, complete: bool = True, preset: str = "exact", **counts: int
) -> tuple[list[str], str]:
    """What is said of those that engaged, and what is wrong."""
    named = {name.replace("__", "."): count for name, count in counts.items()}
    plan = replace(make_plan(8), accelerations=asked, preset=preset)
    found = proofs(plan, named, complete=complete)
    return proof_lines(found), idle_message(found)


def test_what_was_asked_for_tells_what_it_did() -> None:
    said = "adaptive: skipped the model in 3 of 10 steps of tiles"
    assert told(ASKED, adaptive__skipped=3, adaptive__computed=7) == ([said], "")
    lines, wrong = told(ASKED, adaptive__computed=7)
    assert lines == [] and wrong.startswith("adaptive did nothing: skipped the model in 0 of 7")
    assert "a higher threshold than 0.1 skips more" in wrong
    rehash = Accelerations(rehash=Rehash(every=2))
    said = "rehash: reused features in 4 of 10 passes of the model"
    assert told(rehash, rehash__key=6, rehash__reused=4) == ([said], "")
    assert "rehash did nothing: reused features in 0 of 6" in told(rehash, rehash__key=6)[1]
    assert told(Accelerations(), adaptive__computed=7) == ([], "")


def test_where_no_step_was_left_to_compute_nothing_is_known() -> None:
    said = "adaptive: no step was left to compute: other jobs had rendered them all"
    assert told(ASKED, complete=False) == ([said], "")
    assert told(ASKED, complete=False, rehash__key=6) == ([said], "")


def test_a_technique_that_was_never_called_did_nothing() -> None:
    for counts in ({}, {"rehash__key": 6}):
        lines, wrong = told(ASKED, **counts)
        assert lines == [] and wrong.startswith("adaptive did nothing: it was never called")


def test_an_accelerated_step_is_told_though_nothing_was_counted() -> None:
    """So that a technique which was never called is not taken for one that had nothing to do."""
    plan = make_plan(9, 5, stage_steps=(3,))
    asked = replace(plan, accelerations=ASKED)
    predicts, ends = Unit("step", 0), Unit("step", 0, step=3)
    assert is_told(predicts, {}, asked)
    assert not is_told(ends, {}, asked), "it calls no model"
    assert not is_told(Unit("encode", 0), {}, asked)
    assert not is_told(predicts, {}, plan), "nothing was asked for"
    assert is_told(Unit("decode", 0), {"slicing.decoder": 3}, asked)


def test_of_some_steps_nobody_can_say_that_nothing_was_done() -> None:
    """A killed session's last records are lost; what other jobs rendered has none here."""
    lines, wrong = told(ASKED, complete=False, adaptive__computed=7)
    assert (lines, wrong) == ([
        "adaptive: skipped the model in 0 of 7 steps of tiles; whether it did anything is not "
        "known, for other renders or a killed session computed some steps"
    ], "")  # fmt: skip
    counts = {"adaptive__skipped": 3, "adaptive__computed": 7}
    assert told(ASKED, complete=False, **counts) == told(ASKED, **counts), "enough is known"


def test_all_steps_that_predict_are_to_be_counted() -> None:
    """The last step of a stage calls no model: nothing is counted there."""
    plan = make_plan(9, 5, stage_steps=(2, 3))
    predict = [u for u in plan.units() if u.kind == "step" and u.step < (2, 3)[u.stage]]
    records = [engagement(unit, {"adaptive.computed": 1}) for unit in predict]
    assert all_counted([{"type": "out", "key": "out"}, *records], plan)
    assert not any(all_counted(records[:n] + records[n + 1 :], plan) for n in range(len(records)))


def test_what_every_tile_did_step_by_step() -> None:
    done = {
        Unit("step", 0, 1, 0, 0, 0): {"adaptive.computed": 1, "rehash.key": 2},
        Unit("step", 0, 1, 0, 0, 1): {"adaptive.computed": 1, "rehash.reused": 2},
        Unit("step", 0, 1, 0, 0, 3): {"adaptive.skipped": 1},
        Unit("step", 0, 0, 2, 0, 0): {"adaptive.computed": 1},
    }
    done[Unit("decode", 0)] = {"slicing.decoder": 5}  # is none of a tile's steps
    rows = tile_steps([{"type": "out"}, *(engagement(unit, each) for unit, each in done.items())])
    assert rows == [
        {"shot": 0, "stage": 0, "window": 2, "steps": "x"},
        {"shot": 0, "stage": 1, "window": 0, "steps": "xr ."},
    ]


@pytest.mark.parametrize(
    ("letter", "counts"),
    [
        ("x", {}),
        ("x", {"layers": 8}),
        ("w", {"layers": 8, "window": 1}),
        ("w", {"window": 3, "share_steps": 1, "share_branches": 1}),
        ("s", {"window": 2, "share_steps": 1, "share_branches": 1}),
        ("s", {"share_branches": 1}),
        ("s", {"share_steps": 1}),
    ],
)
def test_a_step_has_the_letter_of_what_most_of_its_attention_did(
    letter: str, counts: dict[str, int]
) -> None:
    def steps(**more: int) -> str:
        told = {f"fast_attention.{name}": count for name, count in counts.items()}
        told |= {name.replace("__", "."): count for name, count in more.items()}
        (row,) = tile_steps([engagement(Unit("step", 0), told)])
        return row["steps"]

    assert steps() == steps(adaptive__computed=1) == letter and letter in LETTERS
    assert steps(adaptive__skipped=1) == "."
    assert steps(rehash__reused=2) == "r"


def test_whatever_did_nothing_is_named_in_one_message() -> None:
    both = Accelerations(slicing=Slicing(slices=2), adaptive=Adaptive())
    lines, wrong = told(both, slicing=0, adaptive__computed=4)
    assert lines == [] and wrong.startswith("adaptive and slicing did nothing: ")
    assert "ran 0 groups of operators in slices (the model is too small" in wrong
    lines, wrong = told(both, slicing=7, adaptive__computed=4)
    assert lines == ["slicing: ran 7 groups of operators in slices"]
    lines, _ = told(both, slicing=0, slicing__decoder=2, adaptive__skipped=4)
    assert lines[1] == "slicing: ran 0 groups of operators in slices and 2 of the decoder"
    assert wrong.startswith("adaptive did nothing: ")
    attention = Accelerations(fast_attention=FastAttention())
    wrong = told(attention, fast_attention__layers=8)[1]
    assert wrong.startswith("fast_attention did nothing: of 8 calls of layers 0 windowed, 0 shared")
    (line,) = told(attention, fast_attention__layers=8, fast_attention__window=2)[0]
    assert line.startswith("fast_attention: of 8 calls of layers 2 windowed")


def test_nothing_done_is_counted_too() -> None:
    """Counters that are added up leave out zeros: then nothing would be known."""
    records = [engagement(Unit("step", 0, step=step), {"slicing": 0}) for step in range(2)]
    counts = engaged(records)
    assert dict(counts) == {"slicing": 0}
    sliced = replace(make_plan(8), accelerations=Accelerations(slicing=Slicing(slices=2)))
    assert idle_message(proofs(sliced, counts, complete=True)).startswith("slicing did nothing")


def test_what_a_preset_chose_is_told_by_the_presets_name() -> None:
    """But not what the job says itself beside one."""
    chosen = combined("fast", Accelerations(slicing=Slicing(slices=2)), "wan")
    wrong = told(chosen, preset="fast", slicing=0)[1]
    assert wrong.startswith("preset fast: adaptive and slicing did nothing: it was never called")
    assert wrong.endswith("or remove slicing; give more steps, or preset exact")
    balanced = combined("balanced", Accelerations(), "wan")
    wrong = told(balanced, preset="balanced", adaptive__computed=7)[1]
    assert wrong.endswith("; give more steps, or preset fast or exact")
    assert "(its first 1 and last 1 steps always run)" in wrong, "its threshold is the preset's"
    assert "preset" not in told(ASKED, preset="fast")[1]
