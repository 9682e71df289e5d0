"""Stage-consistent rotary positions (TPDiff, ICLR 2026 version).

A coarse stage's frame n stands where latent frame n * stride of the shot does: so two frames that
are a second apart have the same distance in every stage. The first frame stays at 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def stage_positions(model: torch.nn.Module, stride: int) -> Iterator[None]:
    """Let a Wan transformer count ``stride`` positions for each frame, for a while.

    Raises TypeError for a model whose rotary embedding is of another kind."""
    rope = getattr(model, "rope", None)
    if not all(hasattr(rope, name) for name in ("freqs_cos", "freqs_sin", "t_dim")):
        raise TypeError(f"{type(model).__name__} has no rotary positions that are known here")
    if stride == 1:
        yield
        return
    plain = rope.forward

    def forward(hidden_states: torch.Tensor) -> Any:
        # Only for this call: the tables are buffers, which a distributed model sends to others.
        tables = rope.freqs_cos, rope.freqs_sin
        rope.freqs_cos, rope.freqs_sin = (_strided(table, rope, stride) for table in tables)
        try:
            return plain(hidden_states)
        finally:
            rope.freqs_cos, rope.freqs_sin = tables

    rope.forward = forward
    try:
        yield
    finally:
        del rope.forward


def _strided(table_PD: torch.Tensor, rope: Any, stride: int) -> torch.Tensor:
    """The table of P positions with every ``stride``-th row for time, and all for space. Its end
    repeats the last one: no frame is there, but height and width share the table's length."""
    rows = torch.arange(len(table_PD), device=table_PD.device) * stride
    in_time = table_PD[rows.clamp(max=len(table_PD) - 1), : rope.t_dim]
    return torch.cat([in_time, table_PD[:, rope.t_dim :]], dim=1)
