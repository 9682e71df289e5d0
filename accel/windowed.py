"""Window attention in a video's own geometry: each token sees a box of tokens around it.

A token at (frame, row, column) of the token grid sees the tokens whose distance along every axis
is at most half the window's; the box is cut off at the grid's edges, so it is symmetric elsewhere.
Text tokens of a joint attention see all, and all see them (the arrow of DiTFastAttnV2).

Three computations of the same: ``dense_windowed`` with a mask of all pairs (slow and obvious),
``blocked_windowed`` (blocks of queries, each with the box of all their keys) and, on CUDA,
``accel.windowed_flex``. ``windowed`` takes the fast one for the device.

Shapes: B batch, H heads, S tokens (text and grid), N tokens of the grid alone, D channels. Tokens
of the grid lie in raster order, the frame slowest.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from jobs.attention_plan import Extent

#: A block's keys are copied, and its call is made, whatever its number of queries: what a copied
#: key and a call cost, as a number of query-key pairs. As measured on a CPU; sets only the speed.
PAIRS_PER_KEY = 32
PAIRS_PER_CALL = 20_000

#: What multiplying costs: a query-key pair and a channel take a multiplication and an addition,
#: for the scores and again for the values.
FLOPS_PER_PAIR_AND_CHANNEL = 4

#: Half-open ranges along frames, rows and columns.
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Which token sees which. ``grid`` and ``window`` count tokens (frames, rows, columns);
    windows are odd, and those that reach over the whole grid from everywhere are as good as none.
    Text tokens stand before the grid's or after them."""

    grid: Extent
    window: Extent
    text_tokens: int = 0
    text_first: bool = False

    def __post_init__(self) -> None:
        if min(*self.grid, *self.window) < 1 or any(extent % 2 == 0 for extent in self.window):
            raise ValueError(f"window {self.window} of grid {self.grid}: odd and at least 1 each")

    @property
    def reach(self) -> Extent:
        """How far a token sees along each axis."""
        frames, rows, columns = self.window
        return frames // 2, rows // 2, columns // 2

    @property
    def grid_tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def tokens(self) -> int:
        return self.grid_tokens + self.text_tokens

    @property
    def text(self) -> slice:
        start = 0 if self.text_first else self.grid_tokens
        return slice(start, start + self.text_tokens)

    @property
    def video(self) -> slice:
        start = self.text_tokens if self.text_first else 0
        return slice(start, start + self.grid_tokens)


def window_of(grid: Extent, share: float = 1 / 8) -> Extent:
    """The window with most tokens, at most ``share`` of the grid's, that has about the grid's own
    proportions: the same fraction of every axis, rounded down to odd."""
    scales = sorted({odd / n for n in grid for odd in range(1, n + 2, 2)}, reverse=True)
    for scale in scales:
        window = tuple(max(1, math.floor(scale * n + 1e-9) - 1 | 1) for n in grid)
        if math.prod(window) <= share * math.prod(grid):
            return window[0], window[1], window[2]
    return 1, 1, 1


# -- the slow twin


def sees(geometry: Geometry, device: torch.device | str = "cpu") -> torch.Tensor:
    """Bool [S, S]: whether a query (row) sees a key (column)."""
    places = torch.cartesian_prod(*(torch.arange(n, device=device) for n in geometry.grid))
    places = places.view(-1, 3)
    far = (places[:, None] - places[None]).abs()
    near = (far <= torch.tensor(geometry.reach, device=device)).all(-1)
    mask = torch.ones(geometry.tokens, geometry.tokens, dtype=torch.bool, device=device)
    mask[geometry.video, geometry.video] = near
    return mask


def dense_windowed(
    q_BHSD: torch.Tensor,
    k_BHSD: torch.Tensor,
    v_BHSD: torch.Tensor,
    geometry: Geometry,
    scale: float | None = None,
    seen_S: torch.Tensor | None = None,
) -> torch.Tensor:
    """[B, H, S, D], with a mask over all pairs: for tests and small grids."""
    mask = sees(geometry, q_BHSD.device)
    mask = mask if seen_S is None else mask & seen_S
    return F.scaled_dot_product_attention(q_BHSD, k_BHSD, v_BHSD, attn_mask=mask, scale=scale)


# -- blocks of queries with the box of their keys


def seen_from(queries: Box, geometry: Geometry) -> Box:
    """The box of all tokens that some query of a box sees."""
    first, second, third = (
        (max(0, start - reach), min(n, stop + reach))
        for (start, stop), reach, n in zip(queries, geometry.reach, geometry.grid, strict=True)
    )
    return first, second, third


def box_tokens(box: Box) -> int:
    return math.prod(stop - start for start, stop in box)


def blocks(geometry: Geometry) -> Iterator[tuple[Box, Box]]:
    """The boxes of queries that cover the grid, each with the box of its keys."""
    axes = [
        [(start, min(start + size, n)) for start in range(0, n, size)]
        for n, size in zip(geometry.grid, block_size(geometry), strict=True)
    ]
    for queries in itertools.product(*axes):
        yield queries, seen_from(queries, geometry)


@functools.lru_cache(maxsize=64)
def block_size(geometry: Geometry) -> Extent:
    """The box of queries with the least work: large boxes multiply keys that no window holds,
    small ones copy each key more often.

    Key insight: work is separable. The sum over all blocks of queries times keys is the product
    over the axes of the sums along one, and so are the sum of keys and the number of calls.
    """
    axes = [
        [(size, *_along(n, reach, size)) for size in block_sizes(n)]
        for n, reach in zip(geometry.grid, geometry.reach, strict=True)
    ]

    def work(choice: tuple[tuple[int, ...], ...]) -> int:
        calls, keys, pairs = (math.prod(axis[i] for axis in choice) for i in (1, 2, 3))
        return pairs + PAIRS_PER_KEY * keys + PAIRS_PER_CALL * calls

    best = min(itertools.product(*axes), key=work)
    return best[0][0], best[1][0], best[2][0]


def _along(n: int, reach: int, size: int) -> tuple[int, int, int]:
    """Of one axis in blocks of ``size``: the number of blocks, of their keys, and of pairs."""
    starts = range(0, n, size)
    queries = [min(size, n - start) for start in starts]
    keys = [min(n, start + size + reach) - max(0, start - reach) for start in starts]
    return len(starts), sum(keys), sum(q * k for q, k in zip(queries, keys, strict=True))


def block_sizes(n: int) -> list[int]:
    """Sizes of blocks worth a try: those that divide an axis into that many nearly equal parts."""
    return sorted({-(-n // parts) for parts in range(1, n + 1)})


def blocked_windowed(
    q_BHSD: torch.Tensor,
    k_BHSD: torch.Tensor,
    v_BHSD: torch.Tensor,
    geometry: Geometry,
    scale: float | None = None,
) -> torch.Tensor:
    """[B, H, S, D], block by block; multiplies only what ``window_flops`` counts."""
    out = torch.empty_like(q_BHSD, memory_format=torch.contiguous_format)
    grid_out = out[:, :, geometry.video].unflatten(2, geometry.grid)
    q, k, v = (
        x[:, :, geometry.video].unflatten(2, geometry.grid) for x in (q_BHSD, k_BHSD, v_BHSD)
    )
    text = [x[:, :, geometry.text] for x in (k_BHSD, v_BHSD)]
    for queries, keys in blocks(geometry):
        here = [_cut(x, keys) for x in (k, v)]
        if geometry.text_tokens:
            here = [torch.cat(pair, dim=2) for pair in zip(text, here, strict=True)]
        mask = _mask(queries, keys, geometry, q.device)
        found = F.scaled_dot_product_attention(_cut(q, queries), *here, attn_mask=mask, scale=scale)
        sizes = tuple(stop - start for start, stop in queries)
        _view(grid_out, queries).copy_(found.unflatten(2, sizes))
    if geometry.text_tokens:
        written = q_BHSD[:, :, geometry.text]
        seen = F.scaled_dot_product_attention(written, k_BHSD, v_BHSD, scale=scale)
        out[:, :, geometry.text] = seen
    return out


def _view(x_BHTRCD: torch.Tensor, box: Box) -> torch.Tensor:
    (t0, t1), (r0, r1), (c0, c1) = box
    return x_BHTRCD[:, :, t0:t1, r0:r1, c0:c1]


def _cut(x_BHTRCD: torch.Tensor, box: Box) -> torch.Tensor:
    """The tokens of a box, [B, H, tokens, D]."""
    return _view(x_BHTRCD, box).flatten(2, 4)


def _mask(queries: Box, keys: Box, geometry: Geometry, device: torch.device) -> torch.Tensor | None:
    """Bool [queries, text + keys], or None where every query sees every key."""
    axes = list(zip(queries, keys, geometry.reach, strict=True))
    if all(max(q[1] - k[0], k[1] - q[0]) <= reach + 1 for q, k, reach in axes):
        return None
    t, r, c = (
        (torch.arange(*q, device=device)[:, None] - torch.arange(*k, device=device)).abs() <= reach
        for q, k, reach in axes
    )
    box = t[:, None, None, :, None, None] & r[:, None, None, :, None] & c[:, None, None, :]
    mask = box.reshape(box_tokens(queries), box_tokens(keys))
    return F.pad(mask, (geometry.text_tokens, 0), value=True)


# -- the one for the device


#: Of a head: the compiled kernel takes none that is narrower, which no published model has.
NARROWEST_HEAD = 16


def windowed(
    q_BHSD: torch.Tensor,
    k_BHSD: torch.Tensor,
    v_BHSD: torch.Tensor,
    geometry: Geometry,
    scale: float | None = None,
    seen_S: torch.Tensor | None = None,
) -> torch.Tensor:
    """Window attention [B, H, S, D] of queries, keys and values [B, H, S, D]. ``seen_S``: bool,
    False for tokens of the text that nobody sees; for all is as none."""
    if q_BHSD.device.type == "cuda" and q_BHSD.shape[-1] >= NARROWEST_HEAD:
        from accel.windowed_flex import flex_windowed

        hidden = () if seen_S is None else tuple((~seen_S).nonzero()[:, 0].tolist())
        return flex_windowed(q_BHSD, k_BHSD, v_BHSD, geometry, scale, hidden)
    if seen_S is None:
        return blocked_windowed(q_BHSD, k_BHSD, v_BHSD, geometry, scale)
    return blocked_without_hidden(q_BHSD, k_BHSD, v_BHSD, geometry, scale, seen_S)


def blocked_without_hidden(
    q_BHSD: torch.Tensor,
    k_BHSD: torch.Tensor,
    v_BHSD: torch.Tensor,
    geometry: Geometry,
    scale: float | None,
    seen_S: torch.Tensor,
) -> torch.Tensor:
    """[B, H, S, D] where nobody sees some of the text: as if it were not there. Its own rows are
    whatever a model does with them in full."""
    seen, hidden = seen_S.nonzero()[:, 0], (~seen_S).nonzero()[:, 0]
    keys, values = (x.index_select(2, seen) for x in (k_BHSD, v_BHSD))
    out = torch.empty_like(q_BHSD, memory_format=torch.contiguous_format)
    shorter = replace(geometry, text_tokens=geometry.text_tokens - len(hidden))
    out[:, :, seen] = blocked_windowed(q_BHSD.index_select(2, seen), keys, values, shorter, scale)
    if len(hidden):
        rows = q_BHSD.index_select(2, hidden)
        out[:, :, hidden] = F.scaled_dot_product_attention(rows, keys, values, scale=scale)
    return out


# -- what it costs


def dense_flops(tokens: int, heads: int, head_dim: int) -> int:
    """Of attention between all tokens; the projections around it are not in it."""
    return FLOPS_PER_PAIR_AND_CHANNEL * heads * head_dim * tokens**2


def window_flops(geometry: Geometry, heads: int, head_dim: int) -> int:
    """Of ``blocked_windowed``: every key that is multiplied, those that a mask hides included."""
    pairs = sum(
        box_tokens(queries) * (box_tokens(keys) + geometry.text_tokens)
        for queries, keys in blocks(geometry)
    )
    pairs += geometry.text_tokens * geometry.tokens
    return FLOPS_PER_PAIR_AND_CHANNEL * heads * head_dim * pairs
