"""Whether ``training.tpdiff`` teaches a model a temporal pyramid, as a person would run it.

    python -m benchmarks.tpdiff --steps 300

Draws a folder of captioned clips of the demo world, trains an adapter of the plain model ``demo``
on it by the real command, and judges renders of held-out prompts: of the plain model without a
pyramid, of the plain model with the pyramid, which it does not know, and of the same pyramid with
the adapter. Half of a step or more encodes the clips: the trainer keeps no latents.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from accel.pyramid import FlowPath, lay_stages
from benchmarks.common import write_result
from benchmarks.model import draw_prompts
from benchmarks.twins import MEASURES, quality
from benchmarks.twins_training import WINDOWS
from jobs.model_folder import ModelInfo, inspect_model, resolve_model
from training import world
from training.captions import caption
from training.tpdiff.batches import frames_in, whole_windows_s
from training.tpdiff.settings import Settings
from training.tpdiff.trainer import LOSSES
from workers.video import encode_segment

MODEL = "demo"
STAGES = 3
#: Of h264: detectors and eyes see no difference.
CLIP_QUALITY = 12
LOSS_POINTS = 20


def draw_clips(folder: Path, clips: int, info: ModelInfo, seed: int) -> float:
    """Write videos and their captions; returns how many seconds each lasts: as long as whole
    windows of all stages take."""
    fps, geometry = info.defaults.fps, info.geometry
    window = geometry.pixel_frames(geometry.window_latent_frames)
    settings = replace(Settings(), stages=STAGES, pixel_frames=window, fps=fps)
    seconds = max(whole_windows_s(settings, geometry, lay_stages(FlowPath(), STAGES)))
    times_s = world.frame_times(frames_in(seconds, fps), fps)
    rng = np.random.default_rng((seed, 11))
    folder.mkdir()
    for number in range(clips):
        scene = world.sample_scene(rng)
        film = world.render(scene, times_s, info.defaults.size[0])
        path = folder / f"{number:04}.mp4"
        path.write_bytes(encode_segment(film, fps=fps, codec="h264", quality=CLIP_QUALITY))
        path.with_suffix(".txt").write_text(caption(scene, rng))
    return seconds


def train(data: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The real command, in a process of its own; its loss and its time."""
    said = ("steps", "batch", "rate", "warmup-steps", "lora-rank", "precision", "seed")
    command = ["-m", "training.tpdiff", "--model", MODEL, "--stages", str(STAGES)]
    command += [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in said]
    begun = time.monotonic()
    where = ["--data", str(data), "--out", str(out)]
    subprocess.run([sys.executable, *command, *where], check=True)
    losses = [json.loads(line)["loss"] for line in (out / LOSSES).read_text().splitlines()]
    return {"command": " ".join(["python", *command]), "seconds": time.monotonic() - begun,
            "loss": averaged(losses, LOSS_POINTS)}  # fmt: skip


def averaged(losses: Sequence[float], points: int) -> list[dict[str, float]]:
    """Means of equal runs of steps, each by its last step: stages differ, so that a step's own
    loss says little."""
    runs = np.array_split(np.asarray(losses), min(points, len(losses)))
    ends = np.cumsum([len(run) for run in runs])
    return [{"step": int(e), "loss": float(run.mean())} for e, run in zip(ends, runs, strict=True)]


def overall(judged: dict[str, Any]) -> dict[str, float]:
    """The share of each property that was right, of both kinds of window, and their mean."""
    said = {name: mean(judged[w]["all"][name]["share"] for w in WINDOWS) for name in MEASURES}
    return said | {"mean": mean(said.values())}


def main() -> None:
    """Command line of the proof that stage-wise training teaches."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--warmup-steps", type=int, default=20)
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="print only, write no result")
    options = parser.parse_args()
    if options.quick:
        options.clips, options.steps, options.prompts = 6, 4, 2
    drawn = draw_prompts(options.prompts, options.seed)
    with tempfile.TemporaryDirectory(prefix="longtake-tpdiff-") as folder:
        data, out = Path(folder) / "videos", Path(folder) / "trained"
        seconds = draw_clips(data, options.clips, inspect_model(resolve_model(MODEL)), options.seed)
        training = train(data, out, options)
        adapter = [{"path": str(out / "lora")}]
        judged = {
            "plain": quality(MODEL, drawn, pyramid="off"),
            "before": quality(MODEL, drawn, pyramid=STAGES),
            "after": quality(MODEL, drawn, loras=adapter),
        }
    shares = {name: overall(each) for name, each in judged.items()}
    figures = {
        "clips": options.clips,
        "clip_seconds": seconds,
        "training": training,
        "prompts": options.prompts,
        "shares": shares,
        "judged": judged,
    }
    write_result("tpdiff", figures, models=[MODEL], keep=not options.quick)


if __name__ == "__main__":
    main()
