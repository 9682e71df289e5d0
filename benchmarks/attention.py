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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from accel import fast_attention
from accel.attention_cost import Attention, full_flops, kept_bytes, plan_flops
from accel.attention_models import video_transformer
from accel.fast_attention import FastAttention
from accel.handle import TileStep
from accel.windowed import Geometry, block_size, dense_flops, window_flops, window_of, windowed
from benchmarks.common import write_result
from jobs.attention_plan import AttentionPlan, Extent
from jobs.model_folder import inspect_model, resolve_model
from jobs.units import ShotRender, Unit
from workers.calibration import CalibrationSample, find_plan
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


def measure(compute: Callable[[], torch.Tensor], repeats: int) -> dict[str, float]:
    """The best of several calls; CPU time beside wall time, since the machine may be shared."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        compute()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {"wall_s": round(min(walls), 4), "cpu_s": round(min(cpus), 4)}


@torch.inference_mode()
def kernel(grid: Extent, heads: int, repeats: int) -> dict[str, Any]:
    geometry = Geometry(grid, window_of(grid))
    tokens = geometry.tokens
    # As models have them: heads in the inner dimension.
    q, k, v = torch.randn(3, 1, tokens, heads, HEAD_DIM).transpose(2, 3).unbind()
    window = measure(lambda: windowed(q, k, v, geometry), repeats)
    dense = measure(lambda: F.scaled_dot_product_attention(q, k, v), repeats)
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
) -> tuple[torch.Tensor, float]:
    """Finished latents, and the wall time of all steps."""
    config = FastAttention(stages=(plan,)) if plan else None
    handle = fast_attention.apply(family.denoiser, config) if config else None
    carried: dict[str, torch.Tensor] = {}
    began = time.perf_counter()
    for step in range(steps):
        tile = TileStep(unit=Unit("step", 0, step=step), steps=steps, carried=carried)
        branch = partial(handle.run, tile) if handle else lambda name: nullcontext()
        sample.advance(sample.predict(branch))
        carried = tile.kept
    elapsed_s = time.perf_counter() - began
    if handle:
        handle.remove()
    return sample.latents, elapsed_s


def render(
    family: ModelFamily, shots: Sequence[ShotRender], plan: AttentionPlan | None
) -> tuple[list[torch.Tensor], list[np.ndarray], float]:
    """Latents and frames of every shot, and the seconds of all their steps."""
    samples = [CalibrationSample(family, shot) for shot in shots]
    done = [denoise(family, s, shot.steps, plan) for s, shot in zip(samples, shots, strict=True)]
    frames = [
        family.decode(number, shot, latents, 0, 0)
        for number, (shot, (latents, _)) in enumerate(zip(shots, done, strict=True))
    ]
    return [latents for latents, _ in done], frames, sum(seconds for _, seconds in done)


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
            plan, _ = find_plan(family, identity, calibration, delta=delta, folder=Path(plans))
        searched_s = time.perf_counter() - began
        row = {"delta": delta, "search_s": round(searched_s, 1)}
        rows.append(row | against_full(family, shots, plan, full))
    return {"prompts": len(PROMPTS), "full_s": round(full[2], 2), "plans": rows}


def against_full(
    family: ModelFamily, shots: Sequence[ShotRender], plan: AttentionPlan, full: Any
) -> dict[str, Any]:
    latents, frames, seconds = render(family, shots, plan)
    size = size_of(family, plan, shots[0])
    flops = [sum(count(plan, size, guided=True)) for count in (plan_flops, full_flops)]
    fidelity = compare(np.concatenate(frames), np.concatenate(full[1])).summary()
    return {
        "window": plan.window,
        "strategies": dict(Counter(s for row in plan.rows for s in row)),
        "attention_flops_share": round(flops[0] / flops[1], 4),
        "time_share": round(seconds / full[2], 3),
        "most_kept_bytes": max(kept_bytes(plan, size, 4, guided=True)),
        "latents_psnr_db": psnr_db(torch.cat(latents), torch.cat(full[0])),
        "frames": {name: fidelity[name] for name in ("psnr_db", "worst_psnr_db", "ssim")},
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
        "threads": options.threads,
        "heads": options.heads,
        "head_dim": HEAD_DIM,
        "kernels": kernels,
        "demo_model": model_figures(DELTAS[:1] if options.quick else DELTAS),
    }
    write_result("attention", figures, keep=not options.quick)


if __name__ == "__main__":
    main()
