"""What window attention saves, and what a plan of fast attention costs in fidelity.

    python -m benchmarks.attention

The kernels: attention between all tokens against a window of an eighth of them, on random numbers.
The model: the demo model's first window, searched on one prompt and rendered from others by the
plan. It attends over 324 tokens, where attention is a small part of a step: its times say what the
technique costs there, its FLOPs and fidelity what a plan does.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from accel import fast_attention
from accel.attention_cost import Attention, full_flops, kept_bytes, plan_flops
from accel.fast_attention import FastAttention
from accel.handle import TileStep
from accel.video_transformers import video_transformer
from accel.windowed import Geometry, block_size, dense_flops, window_flops, window_of, windowed
from benchmarks.common import write_result
from jobs.attention_plan import AttentionPlan, Extent
from jobs.model_folder import inspect_model, resolve_model
from jobs.units import DecodeTask, ShotRender, Unit
from workers.calibration import CalibrationSample, find_plans
from workers.families import ModelFamily, open_family
from workers.fidelity import compare

GRIDS: dict[str, Extent] = {"4k": (16, 16, 16), "16k": (16, 32, 32)}
HEAD_DIM = 128
DELTAS = (0.05, 0.15, 0.5)
CALIBRATION = ("a big red star bounces on a blue striped background",)
PROMPTS = (
    "a small yellow circle moves right on a plain gray background",
    "a red star stays still and a blue ring bounces on pink dots",
)


# -- the kernels


Times = dict[str, float]


def timed(compute: Callable[[], Any]) -> tuple[Any, Times]:
    """CPU time beside wall time, since the machine may be shared."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = compute()
    return result, {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def best(measured: Sequence[Times]) -> Times:
    return {name: round(min(each[name] for each in measured), 4) for name in measured[0]}


@torch.inference_mode()
def kernel(grid: Extent, heads: int, repeats: int) -> dict[str, Any]:
    geometry = Geometry(grid, window_of(grid))
    tokens = geometry.tokens
    # As models have them: heads in the inner dimension.
    q, k, v = torch.randn(3, 1, tokens, heads, HEAD_DIM).transpose(2, 3).unbind()
    times: list[tuple[Times, Times]] = []
    for _ in range(repeats):  # by turns, so that both meet the same machine
        _, dense = timed(lambda: F.scaled_dot_product_attention(q, k, v))
        _, window = timed(lambda: windowed(q, k, v, geometry))
        times.append((dense, window))
    dense, window = map(best, zip(*times, strict=True))
    flops = dense_flops(tokens, heads, HEAD_DIM), window_flops(geometry, heads, HEAD_DIM)
    return {
        "grid": grid,
        "tokens": tokens,
        "window": geometry.window,
        "window_share": round(math.prod(geometry.window) / tokens, 4),
        "block": block_size(geometry),
        "dense": dense | {"gflop": round(flops[0] / 1e9, 2)},
        "windowed": window | {"gflop": round(flops[1] / 1e9, 2)},
        "flops_share": round(flops[1] / flops[0], 4),
        "times_faster": {name: round(dense[name] / window[name], 2) for name in dense},
    }


# -- the model


def shot_of(prompt: str, seed: int) -> ShotRender:
    """The demo model's first window by its own defaults."""
    return ShotRender(
        prompt=prompt, negative_prompt="", seed=seed, guidance=(4.0,), stage_steps=(14,),
        stage_positions=False, scheduler="auto", flow_shift=3.0, text_tokens=64, latent_frames=9,
        latent_height=24, latent_width=24, pixel_frames=17, fps=12,
    )  # fmt: skip


def denoise(
    family: ModelFamily, sample: CalibrationSample, steps: int, plan: AttentionPlan | None
) -> torch.Tensor:
    """Finished latents."""
    config = FastAttention(stages=(plan,)) if plan else None
    handle = fast_attention.apply(family.denoiser, config) if config else None
    carried: dict[str, torch.Tensor] = {}
    for step in range(steps):
        tile = TileStep(unit=Unit("step", 0, step=step), steps=steps, carried=carried)
        branch = partial(handle.run, tile) if handle else lambda name: nullcontext()
        sample.advance(sample.predict(branch))
        carried = tile.kept
    if handle:
        handle.remove()
    return sample.latents


@dataclass(frozen=True)
class Rendered:
    """Finished latents and frames of every shot, and the time of all their steps."""

    latents: torch.Tensor
    frames: np.ndarray
    times: Times


def render(
    family: ModelFamily, shots: Sequence[ShotRender], plan: AttentionPlan | None
) -> Rendered:
    samples = [CalibrationSample(family, shot) for shot in shots]
    pairs = list(zip(samples, shots, strict=True))
    latents, times = timed(lambda: [denoise(family, s, shot.steps, plan) for s, shot in pairs])
    frames = [
        family.decode(whole_shot(n, shot), z)
        for n, (shot, z) in enumerate(zip(shots, latents, strict=True))
    ]
    return Rendered(torch.cat(latents), np.concatenate(frames), times)


def whole_shot(number: int, shot: ShotRender) -> DecodeTask:
    """To decode a shot in one piece."""
    return DecodeTask(
        unit=Unit("decode", number), attempt=1, shot=shot, start=0, stop=shot.latent_frames,
        warm_start=0, windows=(), owned=(), codec="ffv1", quality=0,
    )  # fmt: skip


def psnr_db(ours: torch.Tensor, reference: torch.Tensor) -> float | None:
    """Over all latents, the peak being the reference's range; None if they are equal."""
    error = float(((ours - reference) ** 2).mean())
    peak = float(reference.max() - reference.min())
    return round(10 * math.log10(peak**2 / error), 2) if error else None


def size_of(family: ModelFamily, plan: AttentionPlan, shot: ShotRender) -> Attention:
    model: Any = family.denoiser
    size = (shot.latent_frames, shot.latent_height, shot.latent_width)
    latents = torch.empty(1, family.latent_channels, *size)
    grid = video_transformer(model).grid(model, {"hidden_states": latents})
    config = model.config
    return Attention(
        Geometry(grid, plan.window), config.num_attention_heads, config.attention_head_dim
    )


def model_figures(deltas: Sequence[float]) -> dict[str, Any]:
    folder = resolve_model("demo")
    family = open_family("wan", str(folder), "float32", "cpu")
    shots = [shot_of(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    render(family, shots[:1], None)  # warm
    full = render(family, shots, None)
    rows = []
    for delta in deltas:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as plans:
            calibration = [shot_of(prompt, 100 + n) for n, prompt in enumerate(CALIBRATION)]
            identity = inspect_model(folder).identity
            (found,) = find_plans(family, identity, calibration, delta=delta, folder=Path(plans))
        searched_s = time.perf_counter() - began
        row = {"delta": delta, "search_s": round(searched_s, 1)}
        rows.append(row | against_full(family, shots, found.plan, full))
    return {"prompts": len(PROMPTS), "full": best([full.times]), "plans": rows}


def against_full(
    family: ModelFamily, shots: Sequence[ShotRender], plan: AttentionPlan, full: Rendered
) -> dict[str, Any]:
    ours = render(family, shots, plan)
    size = size_of(family, plan, shots[0])
    flops = [sum(count(plan, size, guided=True)) for count in (plan_flops, full_flops)]
    fidelity = compare(ours.frames, full.frames).summary()
    return {
        "window": plan.window,
        "strategies": dict(Counter(s for row in plan.rows for s in row)),
        "attention_flops_share": round(flops[0] / flops[1], 4),
        "time_share": {name: round(ours.times[name] / full.times[name], 3) for name in ours.times},
        "most_kept_bytes": max(kept_bytes(plan, size, 4, guided=True)),
        "latents_psnr_db": psnr_db(ours.latents, full.latents),
        "frames": {name: round(fidelity[name], 4) for name in ("psnr_db", "worst_psnr_db", "ssim")},
    }


def main() -> None:
    """Command line of the attention figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--heads", type=int, default=4, help="of 128 channels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="print only, write no result")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    kernels = {name: kernel(g, options.heads, options.repeats) for name, g in GRIDS.items()}
    figures = {
        "weights": "of the kernels none: random numbers",
        "threads": options.threads,
        "heads": options.heads,
        "head_dim": HEAD_DIM,
        "kernels": kernels,
        "demo_model": model_figures(DELTAS[:1] if options.quick else DELTAS),
    }
    write_result("attention", figures, models=["demo"], keep=not options.quick)


if __name__ == "__main__":
    main()
