"""Window attention through torch's FlexAttention, which leaves out blocks of keys that no query of
a block sees. Compiled where it runs on a GPU; uncompiled it multiplies all pairs, with the same
result.

FlexAttention leaves out square blocks of consecutive tokens. In raster order such a block is a thin
strip that sees a great part of the grid; so the grid's tokens are put in order of small boxes, one
a block. A box that does not fill its block leaves places empty, which nobody sees: where boxes ran
on across blocks, a block would see what two boxes see.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from accel.windowed import FLOPS_PER_PAIR_AND_CHANNEL, Geometry, block_sizes
from jobs.attention_plan import Extent

BLOCK_TOKENS = 128

#: Shapes that a process compiles the kernel for: windows of stages, sizes, lengths of text; torch
#: raises at the next. By itself it gives up after eight, and computes all pairs of those that
#: come, slowly and in other bits: a tile would depend on what its worker met before.
MOST_SHAPES = 1024


@functools.lru_cache(maxsize=1)
def compiled() -> Any:
    """FlexAttention as a kernel; compiled at its first call for each shape."""
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def runs_compiled(device: torch.device) -> bool:
    return device.type == "cuda"


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: Any) -> torch.Tensor:
    """FlexAttention [B, H, P, D] on any device."""
    if not runs_compiled(q.device):
        return flex_attention(q, k, v, **how)
    config: Any = torch._dynamo.config
    limits = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), MOST_SHAPES)
    with config.patch(**limits):
        return compiled()(q, k, v, **how)


def flex_windowed(
    q_BHSD: torch.Tensor,
    k_BHSD: torch.Tensor,
    v_BHSD: torch.Tensor,
    geometry: Geometry,
    scale: float | None = None,
    hidden: tuple[int, ...] = (),
) -> torch.Tensor:
    """Window attention [B, H, S, D] of queries, keys and values [B, H, S, D]. ``hidden``: tokens
    of the text that nobody sees. They change no shape, so that nothing is compiled anew for them.
    """
    device = q_BHSD.device
    laid = lay_out(geometry, device)
    mask = block_mask(geometry, device, hidden)
    q, k, v = (x.index_select(2, laid.token_P) for x in (q_BHSD, k_BHSD, v_BHSD))
    out = attend(q, k, v, block_mask=mask, scale=scale)
    del q, k, v  # before there is another of their size
    return out.index_select(2, laid.place_S)


@functools.lru_cache(maxsize=64)
def box_size(geometry: Geometry) -> Extent:
    """Tokens along frames, rows and columns of the boxes, a block or less, with the fewest pairs of
    blocks to multiply.

    Key insight: which boxes see each other is separable. The number of pairs over all boxes is the
    product over the axes of the number along one.
    """
    axes = [
        [(size, *_along(n, reach, size)) for size in block_sizes(n) if size <= BLOCK_TOKENS]
        for n, reach in zip(geometry.grid, geometry.reach, strict=True)
    ]
    texts = -(-geometry.text_tokens // BLOCK_TOKENS)

    def pairs(choice: tuple[tuple[int, int, int], ...]) -> tuple[int, int]:
        boxes, seen = (math.prod(axis[i] for axis in choice) for i in (1, 2))
        return seen + 2 * texts * boxes, boxes

    fitting = (
        choice
        for choice in itertools.product(*axes)
        if math.prod(axis[0] for axis in choice) <= BLOCK_TOKENS
    )
    best = min(fitting, key=pairs)
    return best[0][0], best[1][0], best[2][0]


def _along(n: int, reach: int, size: int) -> tuple[int, int]:
    """Of one axis in boxes of ``size``: how many there are, and how many pairs of them in which one
    sees some of the other."""
    starts = range(0, n, size)
    seen = sum(
        min(a + size, n) - 1 + reach >= b and min(b + size, n) - 1 + reach >= a
        for a, b in itertools.product(starts, starts)
    )
    return len(starts), seen


@dataclass(frozen=True, slots=True)
class Layout:
    """P places in blocks: those of the text first, then a block a box."""

    token_P: torch.Tensor  # which token stands at a place; any at one that is empty
    place_S: torch.Tensor  # where a token stands
    filled_P: torch.Tensor  # bool
    grid_3P: torch.Tensor  # int32: frame, row and column of a token of the grid
    is_text_P: torch.Tensor  # bool


@functools.lru_cache(maxsize=16)
def lay_out(geometry: Geometry, device: torch.device) -> Layout:
    axes = [torch.arange(n) for n in geometry.grid]
    grid_3N = torch.stack([a.flatten() for a in torch.meshgrid(*axes, indexing="ij")])
    size = torch.tensor(box_size(geometry))[:, None]
    boxes = [-(-n // s) for n, s in zip(geometry.grid, box_size(geometry), strict=True)]
    box_N = _raster(grid_3N // size, boxes)
    inside_N = _raster(grid_3N % size, box_size(geometry))
    text_places = -(-geometry.text_tokens // BLOCK_TOKENS) * BLOCK_TOKENS
    places = text_places + math.prod(boxes) * BLOCK_TOKENS
    place_S = torch.empty(geometry.tokens, dtype=torch.long)
    place_S[geometry.text] = torch.arange(geometry.text_tokens)
    place_S[geometry.video] = text_places + box_N * BLOCK_TOKENS + inside_N
    token_P = torch.zeros(places, dtype=torch.long)
    token_P[place_S] = torch.arange(geometry.tokens)
    filled_P = torch.zeros(places, dtype=torch.bool)
    filled_P[place_S] = True
    grid_3P = torch.zeros(3, places, dtype=torch.int32)
    grid_3P[:, place_S[geometry.video]] = grid_3N.int()
    is_text_P = torch.arange(places) < geometry.text_tokens
    tensors = (token_P, place_S, filled_P, grid_3P, is_text_P)
    return Layout(*(tensor.to(device) for tensor in tensors))


def _raster(places_3N: torch.Tensor, extent: Any) -> torch.Tensor:
    frame, row, column = places_3N
    _, rows, columns = extent
    return (frame * rows + row) * columns + column


@functools.lru_cache(maxsize=64)
def block_mask(geometry: Geometry, device: torch.device, hidden: tuple[int, ...] = ()) -> BlockMask:
    """Which blocks of keys a block of queries sees.

    Made of the blocks' bounds, since a mask of all pairs is what must not be made: a block that is
    looked at for nothing costs time, not truth."""
    laid = lay_out(geometry, device)
    seen_P = _seen(geometry, device, hidden)
    reach_3 = torch.tensor(geometry.reach, device=device, dtype=torch.int32)
    is_text, grid = laid.is_text_P, laid.grid_3P

    def sees(b: Any, h: Any, q: Any, k: Any) -> Any:
        near = is_text[q] | is_text[k]
        box = (grid[0, q] - grid[0, k]).abs() <= reach_3[0]
        for axis in (1, 2):
            box = box & ((grid[axis, q] - grid[axis, k]).abs() <= reach_3[axis])
        return seen_P[k] & (near | box)

    some, whole = _seen_blocks(geometry, device, hidden)
    lists = [_listed(blocks) for blocks in (some & ~whole, whole)]
    places = len(laid.token_P)
    return BlockMask.from_kv_blocks(
        *lists[0], *lists[1], BLOCK_SIZE=BLOCK_TOKENS, mask_mod=sees, seq_lengths=(places, places),
    )  # fmt: skip


def _seen(geometry: Geometry, device: torch.device, hidden: tuple[int, ...]) -> torch.Tensor:
    """Bool [P]: the places that somebody sees."""
    laid = lay_out(geometry, device)
    seen_P = laid.filled_P.clone()
    seen_P[laid.place_S[list(hidden)]] = False
    return seen_P


def _seen_blocks(
    geometry: Geometry, device: torch.device, hidden: tuple[int, ...] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bool [Q, K] over blocks: whether some of a block's queries may see some of a block's keys,
    and whether all see all."""
    laid = lay_out(geometry, device)
    seen_KT = _seen(geometry, device, hidden).unflatten(0, (-1, BLOCK_TOKENS))
    filled_BT = laid.filled_P.unflatten(0, (-1, BLOCK_TOKENS))
    grid_3BT = laid.grid_3P.unflatten(1, (-1, BLOCK_TOKENS))
    far = max(geometry.grid)
    low_3B = grid_3BT.masked_fill(~filled_BT, far).amin(2)
    high_3B = grid_3BT.masked_fill(~filled_BT, -1).amax(2)
    nearest = torch.maximum(
        low_3B[:, None] - high_3B[:, :, None], low_3B[:, :, None] - high_3B[:, None]
    )
    farthest = torch.maximum(
        high_3B[:, None] - low_3B[:, :, None], high_3B[:, :, None] - low_3B[:, None]
    )
    reach = torch.tensor(geometry.reach, device=device)[:, None, None]
    text_B = laid.is_text_P.unflatten(0, (-1, BLOCK_TOKENS)).any(1)  # text has blocks of its own
    near = text_B[:, None] | text_B
    some = (near | (nearest <= reach).all(0)) & seen_KT.any(1)
    whole = (near | (farthest <= reach).all(0)) & seen_KT.all(1)
    return some, whole


def _listed(blocks_QK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As FlexAttention takes them: how many blocks of keys each row has, and which come first."""
    counts = blocks_QK.sum(-1, dtype=torch.int32)
    first = blocks_QK.int().argsort(dim=-1, descending=True, stable=True).int()
    return counts[None, None].contiguous(), first[None, None].contiguous()


def flex_flops(geometry: Geometry, heads: int, head_dim: int) -> int:
    """Of the blocks that the kernel multiplies, each as a whole."""
    some, _ = _seen_blocks(geometry, torch.device("cpu"))
    return FLOPS_PER_PAIR_AND_CHANNEL * heads * head_dim * int(some.sum()) * BLOCK_TOKENS**2
