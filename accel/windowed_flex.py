"""Window attention through torch's FlexAttention, which leaves out blocks of keys that no query of
a block sees. Compiled where it runs on a GPU; uncompiled it multiplies all pairs, with the same
result.

FlexAttention leaves out square blocks of consecutive tokens. In raster order such a block is a thin
strip that sees a great part of the grid; so the grid's tokens are put in order of small boxes.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from accel.windowed import FLOPS_PER_PAIR_AND_CHANNEL, Geometry

#: Tokens along frames, rows and columns of a box that stay together: 128, one block.
BOX = (2, 8, 8)
BLOCK_TOKENS = 128


@functools.lru_cache(maxsize=1)
def compiled() -> Any:
    """FlexAttention as a kernel; compiled at its first call for each shape."""
    return torch.compile(flex_attention, dynamic=False)


def flex_windowed(
    q_BHSD: torch.Tensor,
    k_BHSD: torch.Tensor,
    v_BHSD: torch.Tensor,
    geometry: Geometry,
    scale: float | None = None,
) -> torch.Tensor:
    """Window attention [B, H, S, D] of queries, keys and values [B, H, S, D]."""
    device = q_BHSD.device
    order, back = box_order(geometry, device)
    q, k, v = (x.index_select(2, order) for x in (q_BHSD, k_BHSD, v_BHSD))
    attend = compiled() if device.type == "cuda" else flex_attention
    out = attend(q, k, v, block_mask=block_mask(geometry, device), scale=scale)
    return out.index_select(2, back)


@functools.lru_cache(maxsize=16)
def box_order(geometry: Geometry, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the tokens in order of boxes stand in the sequence, [S], and the way back. Text goes
    first."""
    axes = (torch.arange(n, device=device) for n in geometry.grid)
    t, r, c = (axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))
    box = [place // size for place, size in zip((t, r, c), BOX, strict=True)]
    key = torch.zeros_like(t)
    for place, n in zip((*box, t, r, c), (*geometry.grid, *geometry.grid), strict=True):
        key = key * n + place
    tokens = torch.arange(geometry.tokens, device=device)
    order = torch.cat([tokens[geometry.text], tokens[geometry.video][key.argsort()]])
    return order, order.argsort()


@functools.lru_cache(maxsize=16)
def block_mask(geometry: Geometry, device: torch.device) -> BlockMask:
    """Which blocks of keys a block of queries sees, all tokens in order of boxes.

    Made of the blocks' bounds, since a mask of all pairs is what must not be made: a block that is
    looked at for nothing costs time, not truth."""
    places_3S, is_text = _places(geometry, device)
    reach_3 = torch.tensor(geometry.reach, device=device)

    def sees(b: Any, h: Any, q: Any, k: Any) -> Any:
        near = is_text[q] | is_text[k]
        box = (places_3S[0, q] - places_3S[0, k]).abs() <= reach_3[0]
        for axis in (1, 2):
            box = box & ((places_3S[axis, q] - places_3S[axis, k]).abs() <= reach_3[axis])
        return near | box

    some, whole = _seen_blocks(geometry, device)
    lists = [_listed(blocks) for blocks in (some & ~whole, whole)]
    return BlockMask.from_kv_blocks(
        *lists[0], *lists[1], BLOCK_SIZE=BLOCK_TOKENS, mask_mod=sees,
        seq_lengths=(geometry.tokens, geometry.tokens),
    )  # fmt: skip


def _places(geometry: Geometry, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Frame, row and column of each token in order of boxes, [3, S], 0 for text; and bool [S],
    which of them are text."""
    order, _ = box_order(geometry, device)
    raster = order[geometry.text_tokens :] - geometry.video.start
    _, rows, columns = geometry.grid
    axes = (raster // (rows * columns), raster // columns % rows, raster % columns)
    places = torch.zeros(3, geometry.tokens, dtype=torch.long, device=device)
    places[:, geometry.text_tokens :] = torch.stack(axes)
    return places, torch.arange(geometry.tokens, device=device) < geometry.text_tokens


def _seen_blocks(geometry: Geometry, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Bool [Q, K] over blocks: whether some of a block's queries may see some of a block's keys,
    and whether all see all."""
    places, is_text = _places(geometry, device)
    low, high = [], []
    for block in places.split(BLOCK_TOKENS, dim=1):
        low.append(block.amin(1))
        high.append(block.amax(1))
    low_3B, high_3B = torch.stack(low, 1), torch.stack(high, 1)
    nearest = torch.maximum(
        low_3B[:, None] - high_3B[:, :, None], low_3B[:, :, None] - high_3B[:, None]
    )
    farthest = torch.maximum(
        high_3B[:, None] - low_3B[:, :, None], high_3B[:, :, None] - low_3B[:, None]
    )
    reach = torch.tensor(geometry.reach, device=device)[:, None, None]
    texts = is_text.split(BLOCK_TOKENS)
    some_text = torch.stack([block.any() for block in texts])
    all_text = torch.stack([block.all() for block in texts])
    some = (nearest <= reach).all(0) | some_text[:, None] | some_text
    # A block with text has the bounds of its other tokens widened by text's place, 0: so all of
    # its pairs are near where the bounds are.
    whole = (farthest <= reach).all(0) | all_text[:, None] | all_text
    if geometry.tokens % BLOCK_TOKENS:  # the last block's rest holds no tokens
        whole[-1], whole[:, -1] = False, False
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
