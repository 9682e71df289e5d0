"""What each strategy of fast attention saves of a whole step of a large model, at 16 k tokens.

    python -m benchmarks.attention_step

One block of Wan 2.1 1.3B (its real width, random weights), a clip of 16 x 32 x 32 tokens, both
guidance branches. A plan computes its first step in full and its second by one strategy; the time
of the second is compared with that of the model without the technique, by turns. What goes
before the block and after it (patches, times, the projection) is part of a step here, and less than
a hundredth of it. Nothing is said of quality: weights are random.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any, get_args

import torch
from diffusers import WanTransformer3DModel

from accel import fast_attention
from accel.attention_cost import Attention, full_flops, plan_flops
from accel.fast_attention import FastAttention
from accel.handle import TileStep
from accel.windowed import Geometry, window_of
from benchmarks.attention import timed
from benchmarks.common import write_result
from jobs.attention_plan import AttentionPlan, Extent, Strategy
from jobs.units import Unit

GRID: Extent = (16, 32, 32)
TEXT_TOKENS = 512
#: Of Wan 2.1 1.3B, but for the number of its blocks, which are thirty.
WIDTH = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 1}
STRATEGIES: tuple[Strategy, ...] = tuple(s for s in get_args(Strategy) if s != "full")


def new_model() -> Any:
    torch.manual_seed(0)
    model: Any = WanTransformer3DModel
    return model(**WIDTH, text_dim=4096).eval().requires_grad_(False)


def step_times(model: Any, grid: Extent, strategy: Strategy | None) -> Iterator[float]:
    """Seconds of a plan's step of this strategy, after a full one; of a step without the technique
    if it is None."""
    plan = plan_of(grid, strategy) if strategy else None
    handle = fast_attention.apply(model, FastAttention(stages=(plan,))) if plan else None
    latents = torch.randn(1, 16, *(n * p for n, p in zip(grid, (1, 2, 2), strict=True)))
    carried: dict[str, torch.Tensor] = {}
    for step in range(plan.steps if plan else 1):
        tile = TileStep(unit=Unit("step", 0, step=step), steps=plan.steps if plan else 1,
                        carried=carried)  # fmt: skip
        _, times = timed(partial(one_step, model, latents, handle, tile))
        carried = tile.kept
        if step or not plan:
            yield times["wall_s"]
    if handle:
        handle.remove()


@torch.inference_mode()
def one_step(model: Any, latents: torch.Tensor, handle: Any, tile: TileStep) -> None:
    text = torch.randn(1, TEXT_TOKENS, 4096)
    for branch in ("cond", "uncond"):
        call = {"timestep": torch.tensor([500]), "encoder_hidden_states": text}
        if handle is None:
            model(latents, **call)
            continue
        with handle.run(tile, branch):
            model(latents, **call)


def plan_of(grid: Extent, strategy: Strategy) -> AttentionPlan:
    full: Strategy = "full"
    layers = WIDTH["num_layers"]
    return AttentionPlan(rows=((full,) * layers, (strategy,) * layers), window=window_of(grid))


def flops_share(grid: Extent, strategy: Strategy) -> float:
    """Of a step's attention between tokens, counted."""
    plan = plan_of(grid, strategy)
    size = Attention(
        Geometry(grid, plan.window), WIDTH["num_attention_heads"], WIDTH["attention_head_dim"]
    )
    return plan_flops(plan, size, guided=True)[1] / full_flops(plan, size, guided=True)[1]


def figures(grid: Extent, repeats: int) -> dict[str, Any]:
    model = new_model()
    ways: tuple[Strategy | None, ...] = (None, *STRATEGIES)
    seconds: dict[Strategy | None, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):  # by turns, so that all meet the same machine
        for way in ways:
            seconds[way] += step_times(model, grid, way)
    median_s = {way: statistics.median(found) for way, found in seconds.items()}
    return {"without": {"step_s": median_s[None]}} | {
        way: {
            "step_s": median_s[way],
            "times_faster": median_s[None] / median_s[way],
            "attention_flops": flops_share(grid, way),
        }
        for way in STRATEGIES
    }


def main() -> None:
    """Command line of the figures of a whole step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a small clip; writes no result")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    grid = (4, 8, 8) if options.quick else GRID
    said = {
        "weights": "one block of Wan 2.1 1.3B in width, random, float32",
        "threads": options.threads,
        "grid": grid,
        "window": window_of(grid),
        "strategies": figures(grid, options.repeats),
    }
    write_result("attention_step", said, keep=not options.quick)


if __name__ == "__main__":
    main()
