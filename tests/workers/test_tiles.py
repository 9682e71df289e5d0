"""Blending: weights that sum to one, the same bits for every window, one part untouched."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.units import Window
from workers.tiles import DENOMINATOR, assemble, blend, frame_weights


@st.composite
def layouts(draw: st.DrawFn) -> list[Window]:
    """Windows that cover a shot without holes; any number may lie over one place."""
    windows = [Window(0, 0, draw(st.integers(1, 8)))]
    for index in range(1, draw(st.integers(1, 6))):
        last = windows[-1]
        start = draw(st.integers(last.start, last.stop))
        stop = draw(st.integers(max(start, last.stop) + 1, max(start, last.stop) + 8))
        windows.append(Window(index, start, stop))
    return windows


def predictions_of(windows: list[Window], dtype=torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, 2, w.latent_frames, 3, 3).to(dtype) for w in windows]


def overlapping(windows: list[Window], window: Window) -> list[Window]:
    return [w for w in windows if w.overlaps(window)]


def reference_weights(windows: list[Window], frame: int) -> dict[int, Fraction]:
    """The rule as one would say it: take over an overlap linearly, from nothing on its first
    frame; share in proportion."""
    covering = [w for w in windows if w.start <= frame < w.stop]
    claims = {}
    for w in covering:
        claims[w.index] = Fraction(1)
        for other in covering:
            a, b = max(w.start, other.start), min(w.stop, other.stop)
            if (other.start, other.index) < (w.start, w.index):
                claims[w.index] *= Fraction(frame - a, b - a)
            elif (other.start, other.index) > (w.start, w.index):
                claims[w.index] *= Fraction(b - frame, b - a)
    total = sum(claims.values())
    return {index: claim / total for index, claim in claims.items()}


def reference_blend(windows: list[Window], frame: int, predictions: list[torch.Tensor]):
    """In exact arithmetic up to float64's rounding."""
    total = 0.0
    for index, weight in reference_weights(windows, frame).items():
        values = predictions[index][:, :, frame - windows[index].start]
        total = total + values.double().numpy() * float(weight)
    return total


@settings(max_examples=200, deadline=None)
@given(layouts())
def test_weights_sum_to_one_everywhere(windows: list[Window]) -> None:
    for frame in range(windows[-1].stop):
        parts = frame_weights(windows, frame)
        weights = [np.float32(weight) for _, weight in parts]
        assert all(weight > 0 for weight in weights)
        assert [w.index for w, _ in parts] == sorted(w.index for w, _ in parts)
        for order in itertools.islice(itertools.permutations(weights), 24):
            total = np.float32(0)
            for weight in order:
                total += weight
            assert total == 1, "exactly, in float32, in every order"


@settings(max_examples=200, deadline=None)
@given(layouts())
def test_weights_are_the_reference(windows: list[Window]) -> None:
    for frame in range(windows[-1].stop):
        ours = {w.index: weight for w, weight in frame_weights(windows, frame)}
        for index, weight in reference_weights(windows, frame).items():
            assert abs(ours.get(index, 0.0) - weight) <= Fraction(1, DENOMINATOR)


@settings(max_examples=200, deadline=None)
@given(layouts())
def test_a_first_frame_counts_only_where_nothing_else_does(windows: list[Window]) -> None:
    for window in windows:
        parts = frame_weights(windows, window.start)
        others = [w for w in windows if w.start <= window.start < w.stop and w != window]
        earlier = [w for w in others if w.start < window.start]
        if window.start > 0 and earlier:
            assert window not in [w for w, _ in parts]
        if not others:
            assert parts == [(window, 1.0)]


@settings(max_examples=60, deadline=None)
@given(layouts(), st.sampled_from([torch.float32, torch.bfloat16]), st.randoms())
def test_every_window_and_order_of_arrival_gives_the_same_bits(windows, dtype, random) -> None:
    predictions = predictions_of(windows, dtype)
    everywhere = Window(99, 0, windows[-1].stop)
    whole = blend(everywhere, windows, predictions)
    assert whole.dtype == dtype
    for window in windows:
        near = overlapping(windows, window)
        random.shuffle(near)
        blended = blend(window, near, [predictions[w.index] for w in near])
        assert torch.equal(blended, whole[:, :, window.start : window.stop])


@settings(max_examples=60, deadline=None)
@given(layouts())
def test_blend_is_the_reference(windows: list[Window]) -> None:
    predictions = predictions_of(windows)
    whole = blend(Window(99, 0, windows[-1].stop), windows, predictions)
    for frame in range(windows[-1].stop):
        expected = reference_blend(windows, frame, predictions)
        np.testing.assert_allclose(whole[:, :, frame].numpy(), expected, atol=2e-4)


def test_low_precision_is_blended_in_float32() -> None:
    windows = [Window(0, 0, 6), Window(1, 2, 8), Window(2, 4, 10)]
    low = predictions_of(windows, torch.bfloat16)
    ours = blend(Window(9, 0, 10), windows, low)
    in_float = blend(Window(9, 0, 10), windows, [tensor.float() for tensor in low])
    assert torch.equal(ours, in_float.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_part_passes_untouched(dtype: torch.dtype) -> None:
    windows = [Window(0, 0, 4), Window(1, 3, 8)]  # one frame of overlap: the later one's first
    first, second = predictions_of(windows, dtype)
    first[0, 0, 0, 0, 0] = -0.0  # which any arithmetic would turn into 0.0
    second[:, :, 0] = torch.nan  # without weight, so it must not be read at all
    whole = blend(Window(9, 0, 8), windows, [first, second])
    expected = torch.cat([first, second[:, :, 1:]], dim=2)
    assert whole.dtype == dtype
    assert torch.equal(whole.view(torch.uint8), expected.view(torch.uint8))


def test_three_windows_share_a_frame() -> None:
    windows = [Window(0, 0, 6), Window(1, 2, 8), Window(2, 4, 10)]
    parts = frame_weights(windows, 5)
    assert [w.index for w, _ in parts] == [0, 1, 2]
    # claims: 1/4 * 1/2, 3/4 * 3/4, 1/2 * 1/4
    assert [weight for _, weight in parts] == pytest.approx([2 / 13, 9 / 13, 2 / 13], abs=1e-4)


def test_assemble_joins_what_each_owns() -> None:
    film = torch.arange(10.0).reshape(1, 1, 10, 1, 1)
    pieces = [(0, film[:, :, 0:6]), (4, film[:, :, 4:10])]
    assert torch.equal(assemble(pieces, [(2, 5), (5, 10)]), film[:, :, 2:])
    with pytest.raises(AssertionError, match="join"):
        assemble(pieces, [(2, 4), (5, 10)])
    with pytest.raises(AssertionError, match="hold"):
        assemble(pieces, [(2, 7), (7, 10)])
