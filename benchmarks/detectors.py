"""Proves the detectors that judge the model: on clips of the demo world whose truth is known.

    python -m benchmarks.detectors --clips 400

Right on the truth, raw and through H.264; at chance on prompts that were shuffled.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from benchmarks import judge
from benchmarks.common import write_result
from training import world
from training.world import Scene
from workers.video import encode_segment, iter_frames


def through_h264(frames_FHWC: NDArray[np.uint8], quality: int = 18) -> NDArray[np.uint8]:
    """What a person sees of a clip."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(encode_segment(frames_FHWC, fps=12, codec="h264", quality=quality))
        file.flush()
        return np.stack(list(iter_frames(Path(file.name))))


def shares(hits: list[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """By property: the share that was right, and its 95 % interval (Wilson)."""
    totals: Counter[str] = Counter()
    for each in hits:
        totals.update(each)
    said = {}
    for name, right in sorted(totals.items()):
        interval = binomtest(round(right), len(hits)).proportion_ci(method="wilson")
        low, high = round(float(interval.low), 3), round(float(interval.high), 3)
        said[name] = {"share": round(right / len(hits), 4), "interval_95": [low, high]}
    return said


def main() -> None:
    """Command line of the proof."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--pixel-frames", type=int, default=29)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng((options.seed, 8))
    scenes = [world.sample_scene(rng, held_out=bool(n % 2)) for n in range(options.clips)]
    clips = [_clip(scene, rng, options.pixel_frames) for scene in scenes]
    raw = [judge.read(frames) for frames in clips]
    coded = [judge.read(through_h264(frames)) for frames in clips]
    others = [scenes[place] for place in rng.permutation(len(scenes))]
    figures = {
        "clips": options.clips,
        "pixel_frames": options.pixel_frames,
        "raw": shares([r.matches(s) for r, s in zip(raw, scenes, strict=True)]),
        "h264": shares([r.matches(s) for r, s in zip(coded, scenes, strict=True)]),
        "shuffled": shares([r.matches(s) for r, s in zip(raw, others, strict=True)]),
    }
    write_result("detectors", figures)


def _clip(scene: Scene, rng: np.random.Generator, pixel_frames: int) -> NDArray[np.uint8]:
    return world.render(scene, world.frame_times(pixel_frames, start_s=float(rng.uniform(0, 10))))


if __name__ == "__main__":
    main()
