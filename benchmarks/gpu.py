"""What slicing, Step Rehash, window attention and skipped passes save on a GPU, at real shapes,
beside the papers and diffusers' caches.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --part svd

Random weights of the real architectures, so nothing is downloaded and nothing is said of quality:
Wan 2.1 1.3B at 480x832 and 81 frames (one guidance branch), Stable Video Diffusion at 576x1024 and
14, AnimateDiff at 576x1024 and 16 (both branches at once), each in half precision of both kinds. A
pass of a model, or decoding a window, is timed as the median of some after one that is not, and
its peak is the allocator's (``accel.memory``), without weights, with the kernels that a worker
chooses. Each part writes a result of its
own as soon as it is done. Without a GPU there is ``--quick``: small shapes, on the CPU, as a
rehearsal.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from accel import fast_attention, rehash, slicing
from accel.fast_attention import FastAttention
from accel.handle import Branch, Handle, TileStep
from accel.memory import peak_of
from accel.windowed import Geometry, dense_windowed, window_of, windowed
from benchmarks import reused_passes
from benchmarks.attention_step import STRATEGIES
from benchmarks.common import write_result
from benchmarks.rehash_cost import EVERY_OTHER, STEPS, times_less
from benchmarks.slicing import SIZES, Phase, Pipeline, animatediff, svd, wan
from benchmarks.small_models import Forward, small_animatediff, small_svd, small_wan
from jobs.accelerations import Slicing
from jobs.attention_plan import AttentionPlan, Extent, Strategy
from jobs.units import Unit
from workers.machine import choose_kernels

Row = dict[str, float]

DTYPES = ("float16", "bfloat16")
#: Convolutions in float16 take a minute on a CPU.
QUICK_DTYPES = DTYPES[1:]
HEADS, HEAD_DIM = 12, 128  # of Wan 2.1 1.3B


@dataclass(frozen=True)
class Part:
    """A family: how it is built, in the default dtype on the default device, and small; into how
    many slices it is cut; and the papers' figures, by the names of ours."""

    real: Callable[[], Pipeline]
    small: Callable[[], Pipeline]
    slices: int
    branch: Branch
    paper: dict[str, float]


def _small(make: Callable[[], tuple[Any, Forward]], *size: int, branches: int = 2) -> Pipeline:
    model, forward = make()
    model.eval()
    return Pipeline({}, (Phase("denoiser", model, forward, size, branches),))


#: Of Streamlined Inference (arXiv 2411.01171) on an A100: its table's peaks and latencies at
#: 576x1024, pipelined slicing and decoding in both; and what it says of a plain loop over slices.
PARTS = {
    "wan": Part(
        lambda: wan(60, 104), partial(_small, small_wan, 5, 16, 16, branches=1), 8, "cond", {}
    ),
    "svd": Part(
        lambda: svd(*SIZES["576x1024"]), partial(_small, small_svd, 7, 32, 32), 8, "both",
        {"peak_over_stock": 23.42 / 39.49, "rehash_times_faster": 23.29 / 14.24,
         "sliced_time_over_stock": 1.1},
    ),
    "animatediff": Part(
        lambda: animatediff(*SIZES["576x1024"]), partial(_small, small_animatediff, 8, 32, 32), 16,
        "both",
        {"peak_over_stock": 11.07 / 41.71, "rehash_times_faster": 24.38 / 15.15,
         "sliced_time_over_stock": 1.1},
    ),
}  # fmt: skip


@contextmanager
def building(device: torch.device, dtype: str) -> Iterator[None]:
    """Tensors and modules made inside are of this device and dtype."""
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def measured(run: Forward, device: torch.device, repeats: int) -> Row:
    """Seconds of a run, and what it needs on top of what is there. The first one compiles, and
    finds its kernels: it does not count."""
    run()
    with peak_of(device) as peak:
        run()
    return {"seconds": median(_seconds(run, device) for _ in range(repeats)),
            "peak_bytes": peak.peak_bytes}  # fmt: skip


def _seconds(run: Forward, device: torch.device) -> float:
    _wait_for(device)
    begun = time.perf_counter()
    run()
    _wait_for(device)
    return time.perf_counter() - begun


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- a family


def family(part: Part, dtype: str, device: torch.device, quick: bool, repeats: int) -> Any:
    """Rows of each phase, stock and sliced, of a denoiser's key step and reused one, and ratios."""
    with building(device, dtype):
        pipeline = (part.small if quick else part.real)()
    weights, rows = sum(pipeline.weights.values()), {}
    for phase in pipeline.phases:
        phase.model.to(device)  # diffusers makes a weight of SVD's where it was not told to
        rows[phase.name] = {"stock": measured(phase.forward, device, repeats)}
        handle = slicing.apply(phase.model, Slicing(slices=part.slices))
        rows[phase.name]["sliced"] = measured(phase.forward, device, repeats)
        handle.remove()
    denoiser = pipeline.phases[0]
    handle = rehash.apply(denoiser.model, EVERY_OTHER)
    names = ("key", "reused")
    rows[denoiser.name] |= by_step(
        handle, denoiser.forward, part.branch, STEPS, names, device, repeats
    )
    handle.remove()
    estimated = {p.name: p.predicted(part.slices, dtype) for p in pipeline.phases}
    return {
        "weights_bytes": weights,
        "slices": part.slices,
        "rows": rows,
        "ratios": beside(ratios(rows, denoiser.name, weights, estimated), part.paper),
    }


def ratios(
    rows: dict[str, dict[str, Row]], denoiser: str, weights: int, estimated: dict[str, int]
) -> dict[str, float]:
    """Peaks are of the phase that needs most, with all weights; times are the denoiser's."""
    stock, sliced = (
        weights + max(row[way]["peak_bytes"] for row in rows.values())
        for way in ("stock", "sliced")
    )
    seconds = {way: row["seconds"] for way, row in rows[denoiser].items()}
    return {
        "peak_over_stock": sliced / stock,
        "sliced_time_over_stock": seconds["sliced"] / seconds["stock"],
        "rehash_times_faster": times_less(seconds["stock"], seconds["reused"]),
    } | {
        f"estimate_over_peak_{name}": bytes_ / rows[name]["sliced"]["peak_bytes"]
        for name, bytes_ in estimated.items()
    }


def beside(ours: dict[str, float], paper: dict[str, float]) -> dict[str, Row]:
    """Ratios, with the paper's where it has one."""
    return {
        name: {"ours": ratio} | ({"paper": paper[name]} if name in paper else {})
        for name, ratio in ours.items()
    }


def by_step(
    handle: Handle, forward: Forward, branch: Branch, steps: int, names: tuple[str, ...],
    device: torch.device, repeats: int,
) -> dict[str, Row]:  # fmt: skip
    """Rows of a technique's first steps, each with what the one before it left."""
    rows: dict[str, Row] = {}
    carried: dict[str, torch.Tensor] = {}
    for number, name in enumerate(names):

        def step(number: int = number, carried: dict[str, torch.Tensor] = carried) -> TileStep:
            tile = TileStep(unit=Unit("step", 0, step=number), steps=steps, carried=carried)
            with handle.run(tile, branch):
                forward()
            return tile

        rows[name] = measured(step, device, repeats)
        carried = step().kept
    return rows


# -- attention


def attention(dtype: str, device: torch.device, quick: bool, repeats: int) -> dict[str, Any]:
    """The kernels alone, and whole passes of Wan by a plan's strategies."""
    grids: dict[str, Extent] = {"16k": (16, 32, 32), "wan 480p": (21, 30, 52)}
    if quick:
        grids = {"small": (5, 8, 8)}
    found = {name: kernels(grid, dtype, device, repeats) for name, grid in grids.items()}
    with building(device, dtype):
        pipeline = (PARTS["wan"].small if quick else PARTS["wan"].real)()
    (phase,) = pipeline.phases
    # DiTFastAttn's latency (arXiv 2406.08552) of window attention with residual, over dense's.
    paper = {"16k": {"windowed": 0.35}}
    return {
        "largest_error": error((4, 16, 16), dtype, device),
        "kernels": found,
        "ratios": {
            name: beside(
                {way: row["seconds"] / rows["dense"]["seconds"] for way, row in rows.items()},
                paper.get(name, {}),
            )
            for name, rows in found.items()
        },
        "wan": strategies(phase, device, repeats),
    }


def random_heads(tokens: int, dtype: str, device: torch.device) -> Any:
    """Queries, keys and values [1, H, S, D], with heads in the inner dimension as models have."""
    made = torch.randn(
        3, 1, tokens, HEADS, HEAD_DIM, device=device, dtype=getattr(torch, dtype)
    )  # fmt: skip
    return made.transpose(2, 3).unbind()


def kernels(grid: Extent, dtype: str, device: torch.device, repeats: int) -> dict[str, Row]:
    """All tokens; a window of an eighth of them; and, where xformers is there, a run of as many
    tokens in raster order, which is no box of the video."""
    geometry = Geometry(grid, window_of(grid))
    q, k, v = random_heads(geometry.tokens, dtype, device)
    ways: dict[str, Forward] = {
        "dense": lambda: F.scaled_dot_product_attention(q, k, v),
        "windowed": lambda: windowed(q, k, v, geometry),
    }
    if device.type == "cuda" and importlib.util.find_spec("xformers"):
        from xformers.ops import memory_efficient_attention
        from xformers.ops.fmha.attn_bias import LocalAttentionFromBottomRightMask

        reach = geometry.tokens // 16
        bias = LocalAttentionFromBottomRightMask(window_left=reach, window_right=reach)
        theirs = [x.transpose(1, 2) for x in (q, k, v)]
        ways["xformers_local"] = lambda: memory_efficient_attention(*theirs, attn_bias=bias)
    return {name: measured(way, device, repeats) for name, way in ways.items()}


def error(grid: Extent, dtype: str, device: torch.device) -> float:
    """How far the device's window attention is from a plain mask's, both in this dtype."""
    geometry = Geometry(grid, window_of(grid))
    q, k, v = random_heads(geometry.tokens, dtype, device)
    apart = windowed(q, k, v, geometry) - dense_windowed(q, k, v, geometry)
    return float(apart.abs().max())


def strategies(phase: Phase, device: torch.device, repeats: int) -> dict[str, Any]:
    """A pass of the model by a plan's second step, of one strategy in all layers, after a full
    one. Only one branch runs, so that nothing is said of what branches share."""
    patch, full = phase.model.config.patch_size, "full"
    grid = tuple(n // p for n, p in zip(phase.latent_size, patch, strict=True))
    layers = phase.model.config.num_layers
    rows = {"stock": measured(phase.forward, device, repeats)}
    ways: tuple[Strategy, ...] = tuple(way for way in STRATEGIES if "branches" not in way)
    for way in ways:
        plan = AttentionPlan(rows=((full,) * layers, (way,) * layers), window=window_of(grid))
        handle = fast_attention.apply(phase.model, FastAttention(stages=(plan,)))
        names = (f"before {way}", way)
        rows |= by_step(handle, phase.forward, "cond", plan.steps, names, device, repeats)
        handle.remove()
    times = {way: rows["stock"]["seconds"] / rows[way]["seconds"] for way in ways}
    return {"rows": rows, "times_faster": times}


# -- passes that are left out


def left_out(dtype: str, device: torch.device, quick: bool, repeats: int) -> dict[str, Any]:
    """What is left of a pass of Wan by each technique, and by diffusers' caches; and how many times
    faster that makes 25 steps of which 13 run in full."""
    with building(device, dtype):
        (phase,) = (PARTS["wan"].small if quick else PARTS["wan"].real)().phases
        latents = torch.randn(1, phase.model.config.in_channels, *phase.latent_size)
    rows = {"full": measured(phase.forward, device, repeats)}
    for name, way in reused_passes.ways("wan", phase.model, phase.forward, latents).items():
        with way as run:
            rows[name] = measured(run, device, repeats)
    full = rows["full"]["seconds"]
    return {
        "rows": rows,
        "times_faster": {
            name: times_less(full, row["seconds"]) for name, row in rows.items() if name != "full"
        },
    }


def main() -> None:
    """Command line of what is measured on a GPU."""
    others = {"attention": attention, "left_out": left_out}
    names = (*PARTS, *others)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=names, action="append", help="all if not said")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small, on the CPU; no result")
    options = parser.parse_args()
    if not options.quick and not torch.cuda.is_available():
        parser.error("there is no GPU here; --quick rehearses on the CPU")
    choose_kernels()  # stock's too: the same arithmetic, or the times say nothing of slices
    device = torch.device("cpu" if options.quick else "cuda")
    dtypes, repeats = (QUICK_DTYPES, 1) if options.quick else (DTYPES, options.repeats)
    for name in options.part or names:
        part = others[name] if name in others else partial(family, PARTS[name])
        figures: dict[str, Any] = {"weights": "random, of the real architectures", "part": name}
        if device.type == "cuda":
            figures["gpu"] = torch.cuda.get_device_name(device)
        with torch.no_grad():
            figures |= {dtype: part(dtype, device, options.quick, repeats) for dtype in dtypes}
        write_result(f"gpu_{name}", figures, keep=not options.quick, device=device.type)


if __name__ == "__main__":
    main()
