"""The frames and steps of a pyramid, for every count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.pyramid import (
    covered,
    parent,
    parents,
    split_steps,
    stage_frames,
    stage_strides,
)

some_frames = st.integers(1, 70)
strides = st.sampled_from([1, 2, 4, 8])


def test_strides() -> None:
    assert [stage_strides(k) for k in (1, 2, 3)] == [(1,), (2, 1), (4, 2, 1)]
    for wrong in (0, 5):
        with pytest.raises(ValueError, match=f"1 to 4 stages, not {wrong}"):
            stage_strides(wrong)


def test_the_first_frame_of_a_causal_autoencoder_stays_alone() -> None:
    told = [covered(n, 4, 9, first_alone=True) for n in range(3)]
    assert told == [(0, 1), (1, 5), (5, 9)]
    told = [covered(n, 4, 9, first_alone=False) for n in range(3)]
    assert told == [(0, 4), (4, 8), (8, 9)], "the last one has no partner"


@given(some_frames, strides, st.booleans())
def test_a_stage_covers_every_frame_once(frames: int, stride: int, alone: bool) -> None:
    count = stage_frames(frames, stride, first_alone=alone)
    ranges = [covered(n, stride, frames, first_alone=alone) for n in range(count)]
    assert [n for start, stop in ranges for n in range(start, stop)] == list(range(frames))
    assert all(0 < stop - start <= stride for start, stop in ranges)


@given(some_frames, strides, st.booleans())
def test_parents_cover_their_children(frames: int, stride: int, alone: bool) -> None:
    count = stage_frames(frames, stride, first_alone=alone)
    coarser = stage_frames(frames, 2 * stride, first_alone=alone)
    assert parents(0, count, first_alone=alone) == (0, coarser)
    for frame in range(count):
        above, is_second = parent(frame, first_alone=alone)
        low, high = covered(above, 2 * stride, frames, first_alone=alone)
        start, stop = covered(frame, stride, frames, first_alone=alone)
        assert low <= start < stop <= high
        assert (start == low) != is_second


@given(st.integers(1, 60), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_steps_are_shared_out(steps: int, shares: list[int]) -> None:
    if steps < len(shares):
        with pytest.raises(ValueError, match="too few"):
            split_steps(steps, shares)
        return
    counts = split_steps(steps, shares)
    assert sum(counts) == steps and min(counts) >= 1
    if min(steps * share / sum(shares) for share in shares) >= 1:
        exact = [steps * share / sum(shares) for share in shares]
        assert max(abs(n - e) for n, e in zip(counts, exact, strict=True)) < 1


def test_known_splits() -> None:
    assert split_steps(20, (1, 1, 1)) == (7, 7, 6)
    assert split_steps(20, (4, 2, 1)) == (11, 6, 3)
    assert split_steps(3, (9, 1, 1)) == (1, 1, 1)
    with pytest.raises(ValueError, match="share of 1 or more"):
        split_steps(5, (1, 0))
