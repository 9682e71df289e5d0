"""Proves the detectors that judge the model: on clips of the demo world whose truth is known.

    python -m benchmarks.detectors --jobs 2

Each use at the length that it is put to: reading windows, and looking at the seconds of films whose
bodies stay to be seen. Right on the truth, raw and through H.264; at chance on prompts that were
shuffled. No clip is left out: at these lengths every body of the world is to be seen.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from benchmarks import judge
from benchmarks.common import write_result
from training import world
from training.world import Scene
from workers.films import iter_frames
from workers.video import encode_segment

#: A scene, when its clip begins, and the scene of another clip.
Clip = tuple[Scene, float, Scene]
#: What was made of a clip: raw, through H.264, and of another's scene.
WAYS = ("raw", "h264", "shuffled")
Hits = dict[str, dict[str, float]]
Distances = dict[str, dict[str, list[float]]]


def through_h264(frames_FHWC: NDArray[np.uint8], quality: int = 18) -> NDArray[np.uint8]:
    """What a person sees of a clip."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(encode_segment(frames_FHWC, fps=12, codec="h264", quality=quality))
        file.flush()
        return np.stack(list(iter_frames(Path(file.name))))


def shares(hits: list[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """By property: the share that was right, of those that have it, and its 95 % interval
    (Wilson)."""
    totals: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for each in hits:
        totals.update(each)
        counts.update(each.keys())
    said = {}
    for name, right in sorted(totals.items()):
        count = counts[name]
        interval = binomtest(round(right), count).proportion_ci(method="wilson")
        low, high = round(float(interval.low), 3), round(float(interval.high), 3)
        said[name] = {"share": round(right / count, 4), "interval_95": [low, high]}
        said[name] |= {"of": count} if count < len(hits) else {}
    return said


def path_distances(found: list[dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Of `judge.Reading.distances`: mean, median and 95th percentile over all bodies."""
    said = {}
    for name in found[0]:
        every = [distance for each in found for distance in each[name]] or [float("nan")]
        middle, most = np.quantile(every, [0.5, 0.95])
        figures = {"mean": np.mean(every), "median": middle, "percentile_95": most}
        said[name] = {key: round(float(value), 4) for key, value in figures.items()}
    return said


def draw_clips(count: int, seed: int, wanted: Callable[[Scene], bool]) -> list[Clip]:
    """Half of the scenes are of combinations that are kept from training."""
    rng = np.random.default_rng((seed, 8))
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = world.sample_scene(rng, held_out=bool(len(scenes) % 2))
        scenes += [scene] if wanted(scene) else []
    others = [scenes[place] for place in rng.permutation(count)]
    return list(zip(scenes, rng.uniform(0, 10, count).tolist(), others, strict=True))


def read_window(clip: Clip) -> tuple[Hits, Distances]:
    """What the judge of windows says of a clip."""
    scene, start_s, other = clip
    frames = _draw(scene, start_s, judge.WINDOW_PIXEL_FRAMES)
    raw, coded = judge.read(frames), judge.read(through_h264(frames))
    pairs = dict(zip(WAYS, ((raw, scene), (coded, scene), (raw, other)), strict=True))
    hits = {way: reading.matches(truth) for way, (reading, truth) in pairs.items()}
    return hits, {way: reading.distances(truth) for way, (reading, truth) in pairs.items()}


def look_at_second(clip: Clip) -> Hits:
    """What the judge of seconds says of a clip."""
    scene, start_s, other = clip
    frames = _draw(scene, start_s, judge.FPS)
    raw, coded = judge.look(frames), judge.look(through_h264(frames))
    pairs = zip(WAYS, ((raw, scene), (coded, scene), (raw, other)), strict=True)
    return {way: judge.best_match(seen, s.bodies, judge.LOOKS) for way, (seen, s) in pairs}


def _draw(scene: Scene, start_s: float, pixel_frames: int) -> NDArray[np.uint8]:
    return world.render(scene, world.frame_times(pixel_frames, judge.FPS, start_s))


def prove(clips: int, seed: int, jobs: int) -> dict[str, Any]:
    """Both uses' figures."""
    anything, steady = (draw_clips(clips, seed, ok) for ok in (lambda _: True, judge.is_steady))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        windows = list(pool.map(read_window, anything))
        seconds = list(pool.map(look_at_second, steady))
    of_windows: dict[str, Any] = {"clips": clips, "pixel_frames": judge.WINDOW_PIXEL_FRAMES}
    for way in WAYS:
        apart = path_distances([distances[way] for _, distances in windows])
        of_windows[way] = shares([hits[way] for hits, _ in windows]) | {"apart": apart}
    of_seconds: dict[str, Any] = {"clips": clips, "pixel_frames": judge.FPS}
    of_seconds |= {way: shares([hits[way] for hits in seconds]) for way in WAYS}
    return {"windows": of_windows, "seconds": of_seconds}


def main() -> None:
    """Command line of the proof."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=800, help="of each use")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--quick", action="store_true", help="print only, write no result")
    options = parser.parse_args()
    weights = {"weights": "none: the world's own clips"}
    figures = weights | {"seed": options.seed} | prove(options.clips, options.seed, options.jobs)
    write_result("detectors", figures, keep=not options.quick)


if __name__ == "__main__":
    main()
