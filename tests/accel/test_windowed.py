"""Window attention: the fast computations agree with the slow one, and cost what they say."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.windowed import (
    Geometry,
    block_size,
    blocked_windowed,
    dense_flops,
    dense_windowed,
    sees,
    window_flops,
    window_of,
    windowed,
)
from accel.windowed_flex import BLOCK_TOKENS, block_mask, box_order, flex_flops, flex_windowed

GEOMETRIES = [
    Geometry((5, 6, 7), (3, 3, 3)),
    Geometry((4, 5, 3), (3, 1, 5)),
    Geometry((1, 9, 4), (1, 3, 1)),
    Geometry((3, 4, 4), (3, 3, 3), text_tokens=5),
    Geometry((3, 4, 4), (1, 3, 5), text_tokens=4, text_first=True),
]


def qkv(geometry: Geometry, batch: int = 2, heads: int = 3, head_dim: int = 8):
    generator = torch.Generator().manual_seed(5)
    shape = (3, batch, geometry.tokens, heads, head_dim)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x.transpose(2, 3).unbind()  # as models have them: heads in the inner dimension


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max())


def test_a_token_sees_the_box_around_it() -> None:
    """Counted by hand: distances along each axis, cut off at the edges."""
    mask = sees(Geometry((2, 3, 4), (1, 3, 5), text_tokens=1))
    at = {place: n for n, place in enumerate((t, r, c) for t in (0, 1) for r in range(3)
                                             for c in range(4))}  # fmt: skip
    for query, row in at.items():
        for key, column in at.items():
            near = (
                query[0] == key[0] and abs(query[1] - key[1]) <= 1 and abs(query[2] - key[2]) <= 2
            )
            assert mask[row, column] == near, (query, key)
    assert mask[24].all() and mask[:, 24].all(), "text sees all and is seen by all"


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(
    "fast",
    [blocked_windowed, windowed, pytest.param(flex_windowed, marks=pytest.mark.slow)],
)
def test_fast_is_slow(geometry: Geometry, fast) -> None:
    q, k, v = qkv(geometry)
    for scale in (None, 0.7):
        expected = dense_windowed(q, k, v, geometry, scale)
        assert apart(fast(q, k, v, geometry, scale), expected) < 1e-10
    assert apart(F.scaled_dot_product_attention(q, k, v), expected) > 1e-2, "the window hides some"


extents = st.integers(1, 5)


@settings(max_examples=40, deadline=None)
@given(
    grid=st.tuples(extents, extents, extents),
    reach=st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)),
    text=st.integers(0, 2),
    first=st.booleans(),
)
def test_blocks_are_slow_for_any_geometry(grid, reach, text: int, first: bool) -> None:
    geometry = Geometry(grid, tuple(2 * r + 1 for r in reach), text, first)
    q, k, v = qkv(geometry, batch=1, heads=1)
    ours = blocked_windowed(q, k, v, geometry)
    assert apart(ours, dense_windowed(q, k, v, geometry)) < 1e-10


def test_several_blocks_were_compared() -> None:
    geometry = Geometry((8, 16, 16), (3, 5, 5), text_tokens=3)
    assert block_size(geometry) != geometry.grid
    q, k, v = qkv(geometry, batch=1, heads=1)
    ours = blocked_windowed(q, k, v, geometry)
    assert apart(ours, dense_windowed(q, k, v, geometry)) < 1e-10


@pytest.mark.parametrize("text_tokens", [0, 3])
def test_a_window_over_everything_is_dense(text_tokens: int) -> None:
    geometry = Geometry((3, 4, 5), (5, 7, 9), text_tokens)
    q, k, v = qkv(geometry)
    dense = F.scaled_dot_product_attention(q, k, v)
    assert apart(blocked_windowed(q, k, v, geometry), dense) < 1e-10
    if not text_tokens:
        assert torch.equal(blocked_windowed(q, k, v, geometry), dense)
        assert window_flops(geometry, 2, 8) == dense_flops(geometry.tokens, 2, 8)


def test_flops_are_the_pairs_that_were_multiplied(monkeypatch) -> None:
    """Text and padding of the blocks included: counted at every call that multiplies."""
    geometry = Geometry((8, 16, 16), (3, 5, 5), text_tokens=3)
    plain, pairs = F.scaled_dot_product_attention, []

    def counting(q, k, v, **more):
        pairs.append(q.shape[2] * k.shape[2])
        return plain(q, k, v, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    blocked_windowed(*qkv(geometry, batch=1), geometry)
    assert len(pairs) > 2
    assert window_flops(geometry, heads=3, head_dim=8) == 4 * 3 * 8 * sum(pairs)
    least = int(sees(geometry).sum())
    assert least < sum(pairs) < geometry.tokens**2, "more than the windows hold, fewer than all"


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry((8, 16, 16), (3, 5, 5)),
        Geometry((8, 16, 16), (5, 31, 31)),
        Geometry((7, 13, 9), (3, 5, 5), text_tokens=3),
        Geometry((4, 16, 24), (3, 31, 17), text_tokens=150, text_first=True),
    ],
)
def test_flex_looks_at_every_block_with_a_seen_pair(geometry: Geometry) -> None:
    """And calls whole only blocks of which all pairs are seen: no mask is asked there."""
    order, back = box_order(geometry, torch.device("cpu"))
    assert torch.equal(order[back], torch.arange(geometry.tokens))
    seen = sees(geometry)[order][:, order]
    rest = -geometry.tokens % BLOCK_TOKENS
    tiles = F.pad(seen, (0, rest, 0, rest)).unflatten(1, (-1, BLOCK_TOKENS))
    tiles = tiles.unflatten(0, (-1, BLOCK_TOKENS)).transpose(1, 2).flatten(2)
    mask = block_mask(geometry, torch.device("cpu"))
    whole = _dense(mask.full_kv_num_blocks, mask.full_kv_indices)
    partly = _dense(mask.kv_num_blocks, mask.kv_indices)
    assert not (whole & partly).any()
    assert not (tiles.any(-1) & ~whole & ~partly).any()
    assert not (whole & ~tiles.all(-1)).any()
    assert int((whole | partly).sum()) * 4 * BLOCK_TOKENS**2 == flex_flops(geometry, 1, 1)


def _dense(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Bool [Q, K] of lists of blocks."""
    found = torch.zeros(indices.shape[2:], dtype=torch.bool)
    for row, (count, columns) in enumerate(zip(counts[0, 0], indices[0, 0], strict=True)):
        found[row, columns[:count].long()] = True
    return found


def test_flex_leaves_blocks_out() -> None:
    geometry = Geometry((16, 32, 32), (7, 17, 17))
    share = flex_flops(geometry, 1, 1) / dense_flops(geometry.tokens, 1, 1)
    assert 2023 / 16384 < share < 0.45
    everything = Geometry((8, 16, 16), (15, 31, 31))
    assert flex_flops(everything, 1, 1) == dense_flops(everything.tokens, 1, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("geometry", [*GEOMETRIES, Geometry((6, 16, 16), (3, 5, 7), text_tokens=3)])
def test_the_compiled_kernel_is_the_slow_one(geometry: Geometry) -> None:
    q, k, v = (x.float().cuda() for x in qkv(geometry, head_dim=64))
    assert apart(windowed(q, k, v, geometry), dense_windowed(q, k, v, geometry)) < 5e-3


@pytest.mark.parametrize("grid", [(16, 32, 32), (9, 6, 6), (21, 30, 52), (1, 64, 64), (2, 2, 2)])
def test_an_eighth_of_the_tokens(grid) -> None:
    window = window_of(grid)
    assert all(extent % 2 == 1 for extent in window)
    share = math.prod(window) / math.prod(grid)
    assert share <= 1 / 8
    assert share > 1 / 25, "rounding to odd numbers of tokens loses no more than this here"
    assert window_of(grid, share=8.0) >= tuple(n | 1 for n in grid)


@pytest.mark.parametrize("window", [(2, 3, 3), (0, 1, 1), (3, 3, -1)])
def test_windows_are_odd(window) -> None:
    with pytest.raises(ValueError, match="odd and at least 1"):
        Geometry((4, 4, 4), window)
