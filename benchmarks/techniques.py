"""Speed and fidelity of the accelerations on a trained model, each against the full computation.

    python -m benchmarks.techniques --model demo --steps 30 --prompts 6 --plot docs/techniques.png

Every setting renders the same held-out prompts, one window each, from the same noise as the full
render. A point is a setting: how much of the full render's time and passes it took, and how near
its frames are (PSNR; the mean over prompts, and the worst prompt).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

from diffusers import FirstBlockCacheConfig

from benchmarks.common import write_result
from benchmarks.here import Here, Tune, render_here
from benchmarks.judge import WINDOW_PIXEL_FRAMES
from benchmarks.model import draw_prompts
from jobs.spec import JobSpec
from orchestrator.calibrate import find_key_steps
from orchestrator.prepare import prepare
from workers.fidelity import compare

Settings = dict[str, Any]

#: No more than this much of the latents' pace is asked of any change: never the model, that is.
NEVER = 100.0


def adaptive(job: Mapping[str, Any]) -> dict[str, Settings]:
    """AdaptiveDiffusion in both forms, and a stride that looks at nothing for its baseline."""
    forms = {"tensor": (0.1, 0.2, 0.4, 0.8, 1.6), "scalar": (0.005, 0.01, 0.02, 0.05, 0.1)}
    found: dict[str, Settings] = {
        f"adaptive {form} {threshold}": {"adaptive": {"form": form, "threshold": threshold}}
        for form, thresholds in forms.items()
        for threshold in thresholds
    }
    strides = {
        f"every {most + 1}": {"adaptive": {"threshold": NEVER, "most_skips": most}}
        for most in (1, 2, 3, 4)
    }
    return found | strides


def rehash(job: Mapping[str, Any]) -> dict[str, Settings]:
    """Every so many steps, and key steps that two other prompts' features were found to need."""
    fixed = {f"rehash every {every}": {"rehash": {"every": every}} for every in (2, 3)}
    told = [{"prompt": said, "pixel_frames": WINDOW_PIXEL_FRAMES} for _, said in draw_prompts(2, 5)]
    prepared = prepare(JobSpec.model_validate({"version": 1, **job, "shots": told}))
    found = {}
    for threshold in (0.998, 0.995, 0.99, 0.98, 0.96):
        keys = find_key_steps(prepared, "cpu", threshold)["key_steps"]
        found[f"rehash profile {threshold}"] = {"rehash": {"key_steps": keys}}
    return fixed | found


KINDS = {"adaptive": adaptive, "rehash": rehash}


# -- what a user would pick instead, on the same model


@contextmanager
def cached(model: Any, config: Any) -> Iterator[None]:
    """With one of diffusers' own caches."""
    model.enable_cache(config)
    try:
        yield
    finally:
        model.disable_cache()


def first_block(job: Mapping[str, Any]) -> dict[str, Tune]:
    return {
        f"FirstBlockCache {threshold}": partial(
            cached, config=FirstBlockCacheConfig(threshold=threshold)
        )
        for threshold in (0.03, 0.06, 0.1, 0.15, 0.25)
    }


PEERS = {"first_block": first_block}


def measure(
    job: Mapping[str, Any],
    prompts: list[str],
    settings: Mapping[str, Settings],
    peers: Mapping[str, Tune],
) -> list[dict[str, Any]]:
    """A row for each setting. Prompts go round the settings, so that a disturbed minute hits all
    of them alike."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in (*settings, *peers)}
    for prompt in prompts:
        told = {**job, "prompt": prompt, "pixel_frames": WINDOW_PIXEL_FRAMES}
        full = render_here(told)
        for name, each in settings.items():
            runs[name].append(_against(full, render_here({**told, "accelerations": each})))
        for name, tune in peers.items():
            runs[name].append(_against(full, render_here(told, tune)))
    return [{"setting": name, **_summary(rows)} for name, rows in runs.items()]


def _against(full: Here, fast: Here) -> dict[str, float]:
    found = compare(fast.frames, full.frames)
    return {
        "speed": full.steps_s / fast.steps_s,
        "fewer_passes": full.passes / fast.passes,
        "squared_error": float(found.squared_error_F.mean()),
        "psnr_db": found.summary()["psnr_db"] or float("inf"),
        "ssim": found.summary()["ssim"],
    }


def _summary(rows: list[dict[str, float]]) -> dict[str, float]:
    return {
        "speed": median(row["speed"] for row in rows),
        "fewer_passes": mean(row["fewer_passes"] for row in rows),
        "psnr_db": mean(row["psnr_db"] for row in rows),
        "worst_psnr_db": min(row["psnr_db"] for row in rows),
        "ssim": mean(row["ssim"] for row in rows),
    }


def plot(rows: list[dict[str, Any]], out: Path) -> None:
    """Fidelity over speed; a line for each kind of setting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for kind in dict.fromkeys(row["setting"].rpartition(" ")[0] for row in rows):
        mine = sorted(
            (row for row in rows if row["setting"].rpartition(" ")[0] == kind),
            key=lambda row: row["speed"],
        )
        axes.plot(
            [row["speed"] for row in mine], [row["psnr_db"] for row in mine], "o-",
            label=kind,
        )  # fmt: skip
    axes.set(xlabel="full render's time over this one's", ylabel="PSNR to it, dB")
    axes.legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def _chosen(
    table: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]],
    kinds: list[str],
    job: Mapping[str, Any],
) -> dict[str, Any]:
    chosen = (table[kind](job) for kind in kinds if kind in table)
    return {name: each for settings in chosen for name, each in settings.items()}


def main() -> None:
    """Command line of the accelerations' figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--pyramid", default="off")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, *PEERS], default=[*KINDS, *PEERS])
    parser.add_argument("--plot", type=Path, help="a picture of fidelity over speed")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="print only, write no result")
    options = parser.parse_args()
    prompts = [said for _, said in draw_prompts(options.prompts, options.seed)]
    job = {"model": options.model, "steps": options.steps, "pyramid": options.pyramid}
    settings = _chosen(KINDS, options.kinds, job)
    peers = _chosen(PEERS, options.kinds, job)
    rows = measure(job, prompts, settings, peers)
    if options.plot:
        plot(rows, options.plot)
    name = "techniques" if options.model == "demo" else f"techniques_{options.model}"
    write_result(name, {**job, "prompts": prompts, "rows": rows}, keep=not options.quick)


if __name__ == "__main__":
    main()
