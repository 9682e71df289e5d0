"""What a tile remembers travels by itself, and comes back to where it belongs."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.arrays import Bundle
from jobs.units import MUCH_MEMORY, Window
from tests.workers.tiny import step_task, tiny_shot
from workers.carrying import apart, remembers, together, with_memory

OUTPUT = Bundle.of(
    {"latents": np.ones(3), "history.x": np.zeros(2), "accel.rehash.deep": np.arange(4)},
    meta={"a": "b"},
)


def test_an_output_comes_apart_and_together_again() -> None:
    shown, memory = apart(OUTPUT)
    assert memory is not None
    assert set(shown.arrays) == {"latents", "history.x"} and shown.meta == {"a": "b"}
    assert set(memory.arrays) == {"accel.rehash.deep"} == set(memory.dtypes)
    again = together(shown, memory)
    assert (again.arrays, again.dtypes, again.meta) == (OUTPUT.arrays, OUTPUT.dtypes, OUTPUT.meta)


def test_what_remembers_nothing_stays_as_it_is() -> None:
    plain = Bundle.of({"latents": np.ones(3)})
    assert apart(plain) == (plain, None)
    assert together(plain, None) is plain


def test_features_are_much_and_latents_are_not() -> None:
    big = np.zeros(MUCH_MEMORY, dtype=np.uint8)
    assert remembers(Bundle.of({"accel.rehash.cond.deep": big}))
    assert not remembers(Bundle.of({"accel.rehash.cond.deep": big[1:]}))
    assert not remembers(Bundle.of({"accel.adaptive.latest": big, "latents": big}))


@pytest.mark.parametrize("step", [1, 6])
def test_memory_joins_its_own_tile(step: int) -> None:
    """With the embeddings before the tiles, and without them at a stage's last step."""
    windows = [Window(0, 0, 5), Window(1, 3, 8), Window(2, 6, 9)]
    task = step_task(tiny_shot(), windows, 1, step)
    shown, memory = apart(OUTPUT)
    inputs = ([shown] if step < 6 else []) + [shown] * 3
    joined = with_memory(task, inputs, memory)
    assert ["accel.rehash.deep" in each.arrays for each in joined[-3:]] == [False, True, False]
    assert len(joined) == len(inputs)
