"""Speed of the engine itself: two workers against one, what orchestration and checkpoints cost,
and one window against plain WanPipeline. Ratios and medians; every baseline in the same run.
"""

from __future__ import annotations

import argparse
import time
from multiprocessing import get_context
from statistics import median
from threading import Barrier
from typing import Any

import torch

from benchmarks.common import Rendered, render, write_result
from jobs.model_folder import inspect_model, resolve_model
from jobs.units import Unit
from orchestrator.roster import Policy
from orchestrator.simulator import Simulation

PROMPT = "a red circle bounces on a blue background"


def long_job(**changes: Any) -> dict[str, Any]:
    """One shot of forty overlapping windows."""
    base = {"model": "demo", "pyramid": "off", "steps": 14, "prompt": PROMPT, "seconds": 40.0}
    return {**base, **changes}


def ideal_s(run: Rendered, workers: int) -> float:
    """Wall time of the same units, as long as they really took, with no overhead at all."""
    simulation = Simulation(
        run.plan, Policy(workers=workers), cost=lambda unit: run.elapsed_s[unit]
    )
    return simulation.run().wall_s


#: Seconds in which the bare processes count their model calls.
COUNTED_S = 12.0


def count_calls(size: list[int], ready: Barrier, counts: Any) -> None:
    """In a process that does nothing else, on one thread: model calls in a common interval."""
    from diffusers import WanTransformer3DModel

    torch.set_num_threads(1)
    folder = resolve_model("demo")
    geometry = inspect_model(folder).geometry
    model = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer").eval()
    height, width = (pixels // geometry.spatial_scale for pixels in size[::-1])
    frames = geometry.window_latent_frames
    latents = torch.randn(1, geometry.latent_channels, frames, height, width)
    text = torch.randn(1, geometry.text_tokens, geometry.text_dim)

    def call() -> None:
        with torch.inference_mode():
            model(latents, torch.tensor([500.0]), text)

    for _ in range(5):
        call()
    ready.wait()
    begun, ends = time.perf_counter(), []
    while not ends or ends[-1] < begun + COUNTED_S:
        call()
        ends.append(time.perf_counter())
    counts.put(len(ends) / (ends[-1] - begun))


def calls_per_s(processes: int, size: list[int]) -> float:
    """Model calls a second of so many processes together."""
    context = get_context("spawn")
    ready, counts = context.Barrier(processes), context.Queue()
    started = [
        context.Process(target=count_calls, args=(size, ready, counts)) for _ in range(processes)
    ]
    for process in started:
        process.start()
    total = sum(float(counts.get()) for _ in started)
    for process in started:
        process.join()
    return total


def ceiling(repeats: int, size: list[int]) -> dict[str, Any]:
    """What two processes that share nothing but this machine gain over one."""
    gains = [calls_per_s(2, size) / calls_per_s(1, size) for _ in range(repeats)]
    return {"gains": gains, "gain": median(gains)}


def scaling(repeats: int, size: list[int]) -> dict[str, Any]:
    """Two one-thread workers against one, and the share that orchestration takes."""
    spans: dict[int, list[float]] = {1: [], 2: []}
    shares = []
    steps: dict[int, list[float]] = {1: [], 2: []}
    for repeat in range(repeats):
        for workers in (1, 2) if repeat % 2 else (2, 1):
            run = render(long_job(size=size), workers=workers)
            spans[workers].append(run.span_s)
            steps[workers].append(run.median_step_s())
            if workers == 2:
                shares.append(1 - ideal_s(run, 2) / run.span_s)
    return {
        "windows": len(run.plan.shots[0].stages[0].windows),
        "one_worker_step_s": median(steps[1]),
        "two_workers_step_s": median(steps[2]),
        "one_worker_s": spans[1],
        "two_workers_s": spans[2],
        "speedup": median(spans[1]) / median(spans[2]),
        "orchestration_share": median(shares),
        "orchestration_shares": shares,
    }


def checkpoints(repeats: int, size: list[int]) -> dict[str, Any]:
    """Checkpoints at the default interval against none."""
    spans: dict[str, list[float]] = {"default": [], "none": []}
    intervals = [("default", 5), ("none", 1000)]
    for repeat in range(repeats):
        for name, every in intervals if repeat % 2 else intervals[::-1]:
            job = long_job(size=size, checkpoint_every=every, steps=20, seconds=10.0)
            spans[name].append(render(job, workers=2).span_s)
    cost = median(spans["default"]) / median(spans["none"]) - 1
    return {"checkpointing_cost": cost, **{f"{name}_s": s for name, s in spans.items()}}


def one_window(repeats: int, size: list[int]) -> dict[str, Any]:
    """A film of one window through ``render`` against ``WanPipeline``, one thread each."""
    ours, theirs = [], []
    job = {
        "model": "demo", "pyramid": "off", "size": size, "steps": 20, "prompt": PROMPT,
        "pixel_frames": 17,
    }  # fmt: skip
    pipeline = _pipeline()
    for _ in range(repeats):
        run = render(job, workers=1)
        ends = [end for unit, end in run.ended_s.items() if unit.kind == "step"]
        first = Unit("step", 0, step=0)
        ours.append(max(ends) - run.ended_s[first] + run.elapsed_s[first])
        theirs.append(_time_pipeline(pipeline, size))
    return {
        "ours_s": ours,
        "pipeline_s": theirs,
        "slowdown": median(ours) / median(theirs) - 1,
    }


def _pipeline() -> Any:
    from diffusers import WanPipeline

    torch.set_num_threads(1)
    pipeline = WanPipeline.from_pretrained(resolve_model("demo"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _time_pipeline(pipeline: Any, size: list[int]) -> float:
    """Seconds of the denoising loop alone: prompts are encoded before."""
    defaults = inspect_model(resolve_model("demo")).defaults
    cond, uncond = pipeline.encode_prompt(PROMPT, "", max_sequence_length=defaults.text_tokens)
    begun = time.perf_counter()
    pipeline(
        prompt_embeds=cond,
        negative_prompt_embeds=uncond,
        width=size[0],
        height=size[1],
        num_frames=17,
        num_inference_steps=20,
        guidance_scale=defaults.guidance[0],
        output_type="latent",
    )
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=[160, 160])
    options = parser.parse_args()
    figures = {
        "size": options.size,
        "ceiling": ceiling(options.repeats, options.size),
        "scaling": scaling(options.repeats, options.size),
        "checkpoints": checkpoints(options.repeats, options.size),
        "one_window": one_window(options.repeats, options.size),
    }
    width, height = options.size
    write_result(f"speed_{width}x{height}", figures, models=["demo"])


if __name__ == "__main__":
    main()
