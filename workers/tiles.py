"""Blending of predictions where windows overlap.

A window's weight is a trapezoid: it rises over the overlap with an earlier window and falls over
the overlap with a later one. Over an overlap of L frames the later window has 0/L, 1/L, ...,
(L-1)/L, so the first latent frame of a window that does not start the shot has no weight: the
model treats a window's first position as the start of a film (the VAE packs one pixel frame into
a first latent, r into others), which is wrong in mid-shot. Only where nothing else covers that
frame does it count.

A place's weights depend only on the windows that cover it, so all windows over a place compute
the same bits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import torch

from jobs.units import Window

#: Weights are whole multiples of 1/DENOMINATOR: exact in float32, and so is every sum of them.
DENOMINATOR = 1 << 16


def ramp(window: Window, other: Window, frame: int) -> Fraction:
    """How much of ``frame``, which both windows cover, ``window`` claims against ``other``."""
    a, b = max(window.start, other.start), min(window.stop, other.stop)
    rising = Fraction(frame - a, b - a)
    return rising if (window.start, window.index) > (other.start, other.index) else 1 - rising


def frame_weights(windows: Sequence[Window], frame: int) -> list[tuple[Window, float]]:
    """The windows with a part in ``frame`` by rising index, with weights that sum to exactly 1."""
    covering = sorted((w for w in windows if w.start <= frame < w.stop), key=lambda w: w.index)
    raw = [_claim(window, covering, frame) for window in covering]
    units = _apportion(raw, DENOMINATOR)
    return [(w, n / DENOMINATOR) for w, n in zip(covering, units, strict=True) if n]


def _claim(window: Window, covering: Sequence[Window], frame: int) -> Fraction:
    claim = Fraction(1)
    for other in covering:
        if other.index != window.index:
            claim *= ramp(window, other, frame)
    return claim


def _apportion(claims: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers in proportion to ``claims`` that sum to ``total`` (largest remainder)."""
    whole = sum(claims)
    assert whole > 0, "the earliest window over a frame always has a claim to it"
    exact = [claim * total / whole for claim in claims]
    units = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (units[i] - exact[i], i))
    for i in by_remainder[: total - sum(units)]:
        units[i] += 1
    return units


def blend(
    window: Window, covering: Sequence[Window], predictions: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The prediction over ``window``'s range, [1, C, T, H, W], in the predictions' dtype.

    ``predictions[i]`` covers the range of ``covering[i]``. A frame with a single part passes
    through untouched; others are summed in float32 by rising window index. Product and sum are
    separate operations: a fused one would round differently at the ends of vector loops.
    """
    by_index = {w.index: tensor for w, tensor in zip(covering, predictions, strict=True)}
    frames = []
    for frame in range(window.start, window.stop):
        parts = [
            (by_index[w.index][:, :, frame - w.start], weight)
            for w, weight in frame_weights(covering, frame)
        ]
        assert parts, f"no window covers latent frame {frame}"
        frames.append(_blend_frame(parts))
    return torch.stack(frames, dim=2)


def _blend_frame(parts: Sequence[tuple[torch.Tensor, float]]) -> torch.Tensor:
    first, weight = parts[0]
    if len(parts) == 1:
        return first
    total = first.float() * weight
    for tensor, weight in parts[1:]:
        total = total + tensor.float() * weight
    return total.to(first.dtype)


def assemble(
    pieces: Sequence[tuple[int, torch.Tensor]], owned: Sequence[tuple[int, int]]
) -> torch.Tensor:
    """Join the range that each piece owns: ``pieces`` are (first latent frame, [1, C, T, H, W])."""
    parts = []
    for (first, tensor), (start, stop) in zip(pieces, owned, strict=True):
        assert first <= start <= stop <= first + tensor.shape[2], "a piece must hold what it owns"
        parts.append(tensor[:, :, start - first : stop - first])
    for (_, stop), (start, _) in pairwise(owned):
        assert stop == start, "owned ranges must join"
    return torch.cat(parts, dim=2)
