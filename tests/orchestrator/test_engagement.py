"""What accelerations did is told, and doing nothing is a warning."""

from __future__ import annotations

from jobs.accelerations import Accelerations, Adaptive, FastAttention, Rehash, Slicing
from jobs.units import Unit
from orchestrator.engagement import engaged, engaged_lines, engagement, tile_steps

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
        "type": "", "key": "shot 1 window 2 step 4", "counts": {"adaptive.skipped": 1},
        "shot": 0, "stage": 0, "index": 1, "step": 4,
    }  # fmt: skip


def test_what_was_asked_for_tells_what_it_did() -> None:
    counts = {"adaptive.skipped": 3, "adaptive.computed": 7}
    assert engaged_lines(ASKED, counts) == ["adaptive: skipped the model in 3 of 10 steps of tiles"]
    (line,) = engaged_lines(ASKED, {"adaptive.computed": 7})
    assert line.startswith("warning: adaptive: skipped the model in 0 of 7 steps")
    rehash = Accelerations(rehash=Rehash(every=2))
    assert engaged_lines(rehash, {"rehash.key": 6, "rehash.reused": 4}) == [
        "rehash: reused features in 4 of 10 passes of the model"
    ]
    assert engaged_lines(rehash, {"rehash.key": 6})[0].startswith("warning: rehash: reused")
    assert engaged_lines(Accelerations(), counts) == []
    assert engaged_lines(ASKED, {}) == [], "all of it was finished before"


def test_what_every_tile_did_step_by_step() -> None:
    done = {
        Unit("step", 0, 1, 0, 0, 0): {"adaptive.computed": 1, "rehash.key": 2},
        Unit("step", 0, 1, 0, 0, 1): {"adaptive.computed": 1, "rehash.reused": 2},
        Unit("step", 0, 1, 0, 0, 3): {"adaptive.skipped": 1},
        Unit("step", 0, 0, 2, 0, 0): {"adaptive.computed": 1},
    }
    rows = tile_steps([{"type": "out"}, *(engagement(unit, each) for unit, each in done.items())])
    assert rows == [
        {"shot": 0, "stage": 0, "window": 2, "steps": "x"},
        {"shot": 0, "stage": 1, "window": 0, "steps": "xr ."},
    ]


def test_whatever_did_nothing_warns() -> None:
    sliced = Accelerations(slicing=Slicing(slices=2))
    (line,) = engaged_lines(sliced, {"slicing": 0})
    assert line.startswith("warning: slicing: ran 0 groups")
    assert engaged_lines(sliced, {"slicing": 7}) == ["slicing: ran 7 groups of operators in slices"]
    attention = Accelerations(fast_attention=FastAttention())
    (line,) = engaged_lines(attention, {"fast_attention.layers": 8})
    assert line.startswith("warning: fast_attention: of 8 calls of layers 0 windowed, 0 shared")
    (line,) = engaged_lines(attention, {"fast_attention.layers": 8, "fast_attention.window": 2})
    assert line.startswith("fast_attention: of 8 calls of layers 2 windowed")
