"""Window attention: the fast computations agree with the slow one, and cost what they say."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention

from accel import windowed_flex
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
from accel.windowed_flex import (
    BLOCK_TOKENS,
    block_mask,
    box_size,
    flex_flops,
    flex_windowed,
    lay_out,
)
from jobs.attention_plan import Extent

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


FLEX = [
    Geometry((8, 16, 16), (3, 5, 5)),
    Geometry((8, 16, 16), (5, 31, 31)),
    Geometry((7, 13, 9), (3, 5, 5), text_tokens=3),
    Geometry((4, 16, 24), (3, 31, 17), text_tokens=150, text_first=True),
]


@pytest.mark.parametrize("geometry", FLEX)
@pytest.mark.parametrize("share_hidden", [0.0, 0.6])
def test_flex_looks_at_every_block_with_a_seen_pair(
    geometry: Geometry, share_hidden: float
) -> None:
    """And calls whole only blocks of which all pairs are seen: no mask is asked there."""
    cpu = torch.device("cpu")
    laid = lay_out(geometry, cpu)
    assert torch.equal(laid.token_P[laid.place_S], torch.arange(geometry.tokens))
    assert laid.filled_P.sum() == geometry.tokens
    hidden = hidden_text(geometry, share_hidden)
    seen = sees(geometry)
    seen[:, list(hidden)] = False
    placed = seen[laid.token_P][:, laid.token_P] & laid.filled_P
    pairs = (placed | ~laid.filled_P[:, None]).unflatten(1, (-1, BLOCK_TOKENS))
    pairs = pairs.unflatten(0, (-1, BLOCK_TOKENS)).transpose(1, 2).flatten(2)
    real = laid.filled_P.view(-1, 1, BLOCK_TOKENS, 1)
    some = (pairs.unflatten(2, (BLOCK_TOKENS, -1)) & real).flatten(2).any(-1)
    mask = block_mask(geometry, cpu, hidden)
    whole = _dense(mask.full_kv_num_blocks, mask.full_kv_indices)
    partly = _dense(mask.kv_num_blocks, mask.kv_indices)
    assert not (whole & partly).any()
    assert not (some & ~whole & ~partly).any()
    assert not (whole & ~pairs.all(-1)).any()
    if not hidden:
        assert int((whole | partly).sum()) * 4 * BLOCK_TOKENS**2 == flex_flops(geometry, 1, 1)
    every = torch.arange(len(laid.token_P))
    asked = mask.mask_mod(0, 0, every[:, None], every)
    assert torch.equal(asked[laid.filled_P], placed[laid.filled_P])


def hidden_text(geometry: Geometry, share: float) -> tuple[int, ...]:
    """The last tokens of the text, as padding is."""
    text = range(geometry.tokens)[geometry.text]
    return tuple(text[len(text) - round(share * len(text)) :])


@pytest.mark.slow
@pytest.mark.parametrize("geometry", FLEX[2:])
def test_hidden_text_is_as_if_it_were_not_there(geometry: Geometry) -> None:
    q, k, v = qkv(geometry, batch=1)
    hidden = hidden_text(geometry, 0.6)
    assert hidden
    seen_S = torch.ones(geometry.tokens, dtype=torch.bool)
    seen_S[list(hidden)] = False
    mask = sees(geometry) & seen_S
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert apart(windowed(q, k, v, geometry, None, seen_S), expected) < 1e-10
    assert apart(flex_windowed(q, k, v, geometry, None, hidden), expected) < 1e-10
    assert apart(windowed(q, k, v, geometry), expected) > 1e-3


@pytest.mark.long
def test_no_shape_falls_back_to_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself torch compiles eight; the ninth it would compute otherwise, and say nothing that
    anybody sees. What hides other tokens, or sees farther, is no other shape."""
    calls: list[int] = []

    def counted(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        calls.append(len(inputs))
        return graph.forward

    kernel = torch.compile(flex_attention, dynamic=False, fullgraph=True, backend=counted)
    monkeypatch.setattr(windowed_flex, "compiled", lambda: kernel)
    monkeypatch.setattr(windowed_flex, "runs_compiled", lambda device: True)
    torch._dynamo.reset()
    for rows in range(1, 10):
        geometry = Geometry((2, rows, 3), (3, 3, 3), text_tokens=4)
        for hidden in ((), hidden_text(geometry, 0.5)) if rows > 7 else ((),):
            q, k, v = qkv(geometry, batch=1, heads=rows)
            expected = all_pairs(q, k, v, geometry, hidden)
            assert apart(flex_windowed(q, k, v, geometry, None, hidden), expected) < 1e-10
    assert len(calls) == 9, calls
    farther = Geometry((2, 9, 3), (3, 5, 3), text_tokens=4)
    flex_windowed(*qkv(farther, batch=1, heads=9), farther)
    assert len(calls) == 9


def all_pairs(q, k, v, geometry: Geometry, hidden: tuple[int, ...]) -> torch.Tensor:
    mask = sees(geometry)
    mask[:, list(hidden)] = False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _dense(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Bool [Q, K] of lists of blocks."""
    found = torch.zeros(indices.shape[2:], dtype=torch.bool)
    for row, (count, columns) in enumerate(zip(counts[0, 0], indices[0, 0], strict=True)):
        found[row, columns[:count].long()] = True
    return found


@pytest.mark.parametrize(
    ("grid", "text_tokens", "most", "most_on_cpu"),
    [
        ((16, 32, 32), 0, 0.21, 0.17),
        ((21, 30, 52), 0, 0.22, 0.14),
        ((13, 30, 45), 226, 0.25, 0.15),
    ],
)
def test_blocks_are_left_out(
    grid: Extent, text_tokens: int, most: float, most_on_cpu: float
) -> None:
    """Of a square, of Wan and of CogVideoX at 480 rows: an eighth is seen."""
    geometry = Geometry(grid, window_of(grid), text_tokens)
    dense = dense_flops(geometry.tokens, 1, 1)
    share, on_cpu = flex_flops(geometry, 1, 1) / dense, window_flops(geometry, 1, 1) / dense
    assert math.prod(geometry.window) / math.prod(grid) < share < most
    assert on_cpu == pytest.approx(most_on_cpu, abs=0.006)
    assert math.prod(box_size(geometry)) <= BLOCK_TOKENS


def test_flex_looks_at_all_where_all_is_seen() -> None:
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
