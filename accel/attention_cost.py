"""What an attention plan costs: multiplications, and memory that goes with the tile."""

from __future__ import annotations

from dataclasses import dataclass

from accel.windowed import Geometry, dense_flops, window_flops
from jobs.attention_plan import (
    AttentionPlan,
    branches_of,
    is_full,
    is_windowed,
    shares_branches,
)


@dataclass(frozen=True, slots=True)
class Attention:
    """A model's self-attention: the geometry of its tokens, and its size."""

    geometry: Geometry
    heads: int
    head_dim: int

    @property
    def dense(self) -> int:
        """FLOPs of one layer and branch in full."""
        return dense_flops(self.geometry.tokens, self.heads, self.head_dim)

    @property
    def window(self) -> int:
        """FLOPs of one layer and branch in blocks; what masks hide is in it."""
        return window_flops(self.geometry, self.heads, self.head_dim)


def plan_flops(plan: AttentionPlan, attention: Attention, *, guided: bool) -> list[int]:
    """FLOPs of all layers' attention by step, without their projections. A full step that leaves
    a residual is charged for the window attention that it takes."""
    return [_step_flops(plan, step, attention, guided) for step in range(plan.steps)]


def _step_flops(plan: AttentionPlan, step: int, attention: Attention, guided: bool) -> int:
    kept, flops = plan.kept_after(step), 0
    branches = branches_of(guided=guided)
    for layer, strategy in enumerate(plan.rows[step]):
        for branch in branches:
            if branch == "uncond" and shares_branches(strategy):
                continue
            if is_full(strategy):
                leaves = ("residual", layer, plan.owner(step, layer, branch)) in kept
                flops += attention.dense + (attention.window if leaves else 0)
            elif is_windowed(strategy):
                flops += attention.window
    return flops


def full_flops(plan: AttentionPlan, attention: Attention, *, guided: bool) -> list[int]:
    """The same without the plan."""
    return [attention.dense * plan.layers * (2 if guided else 1)] * plan.steps


def attention_share(plan: AttentionPlan, geometry: Geometry, *, guided: bool) -> float:
    """What a plan's attention multiplies in all steps, over what it does in full."""
    any_size = Attention(geometry, heads=1, head_dim=1)
    ours, full = (each(plan, any_size, guided=guided) for each in (plan_flops, full_flops))
    return sum(ours) / sum(full)


def kept_bytes(
    plan: AttentionPlan, attention: Attention, element_bytes: int, *, guided: bool
) -> list[int]:
    """What a tile carries after each step, for attention that gives as many channels as its heads
    have. Text has outputs and no residuals."""
    channels = attention.heads * attention.head_dim * element_bytes
    tokens = {"residual": attention.geometry.grid_tokens, "output": attention.geometry.tokens}
    branches = branches_of(guided=guided)
    return [
        sum(tokens[kind] * channels for kind, _, _ in plan.carried_after(step, branches))
        for step in range(plan.steps)
    ]
