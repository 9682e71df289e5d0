"""Window borders that shift from step to step: what a long film would gain from them.

    python -m benchmarks.shifting --model demo-pyramid --films 6 --seconds 20

Not built into the renderer, where a window's place is its name and what accelerations keep of it
goes from step to step. This is the slow twin, in one process: all windows of a step, then their
blend, then the scheduler over the whole shot. ``fixed`` is what a render does (a test holds it to
that); ``shifted`` moves the windows at each step by another part of the way to the next window, so
that no border stands still but for the ends of the first window and of the last. Both start from
the same noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.attention import whole_shot
from benchmarks.common import model_name, rounded, write_result
from benchmarks.judge import FPS, LOOKS
from benchmarks.long_films import draw_films, measure
from jobs.pyramid import stage_frames, stage_strides
from jobs.spec import JobSpec
from jobs.units import ShotRender, Window
from orchestrator.plan import Plan, lay_windows
from orchestrator.prepare import prepare
from training import world
from training.world import Scene
from workers.families import ModelFamily, open_family
from workers.families.family import stepper_of
from workers.seams import PLAIN_SEAM, SeamMeter
from workers.stepping import StageSteps
from workers.tiles import blend

#: Of the way to the next window, in turn.
PARTS = (0.0, 0.5, 0.25, 0.75)

Layout = Callable[[int, int, int, int], Sequence[Window]]  # of frames, window, overlap and step


def fixed(frames: int, window: int, overlap: int, step: int) -> Sequence[Window]:
    return lay_windows(frames, window, overlap)


def shifted(frames: int, window: int, overlap: int, step: int) -> Sequence[Window]:
    """One window more than it takes, all of them moved to the left, those at the ends up to there:
    one window begins the shot and one ends it at every step."""
    if frames <= window:
        return lay_windows(frames, window, overlap)
    way = window - overlap
    offset = round(PARTS[step % len(PARTS)] * way)
    moved = (each.start - offset for each in lay_windows(frames + way, window, overlap))
    starts = sorted({min(max(0, start), frames - window) for start in moved})
    return [Window(index, start, start + window) for index, start in enumerate(starts)]


@torch.no_grad()
def sample(
    family: ModelFamily, shot: ShotRender, lay: Layout, window: int, overlap: int
) -> torch.Tensor:
    """Finished latents [1, C, T, H, W] of a shot whose windows stand as ``lay`` says."""
    embeddings, latents = family.encode(shot), torch.empty(0)
    for stage, stride in enumerate(stage_strides(len(shot.stage_steps))):
        count = stage_frames(shot.latent_frames, stride, first_alone=family.first_alone)
        places = min(window, count) * shot.latent_height * shot.latent_width
        stepper = stepper_of(family, shot, stage, places, "cpu")
        steps = StageSteps(family=family, shot=shot, stage=stage, stepper=stepper, device="cpu")
        whole = (0, count)
        latents = steps.jump(whole, latents, 0) if stage else steps.start(whole)
        history: dict[str, torch.Tensor] = {}
        for step in range(shot.stage_steps[stage]):
            windows = lay(count, window, overlap, step)
            made = [
                steps.predict(step, latents[:, :, w.start : w.stop], embeddings, _nothing)
                for w in windows
            ]
            over_all = blend(Window(0, *whole), windows, made)
            latents, history = steps.settle(step, whole, over_all, latents, history)
    return latents


def _nothing(branch: object) -> Any:
    return nullcontext()


def decode(
    family: ModelFamily, number: int, shot: ShotRender, latents: torch.Tensor
) -> NDArray[np.uint8]:
    return family.decode(whole_shot(number, shot), latents)[: shot.pixel_frames]


def changes(frames: NDArray[np.uint8]) -> list[float]:
    """Of every frame over the usual one near by, wherever windows meet."""
    meter = SeamMeter([], {})
    for frame in frames:
        meter.add(frame)
    return meter.changes()


def compared(
    model: str, drawn: list[tuple[Scene, str]], seconds: float, seed: int
) -> dict[str, Any]:
    """Both layouts' films of a length: how they hold together, and their plain jumps."""
    shots = [{"prompt": said, "seconds": seconds} for _, said in drawn]
    asked = {"version": 1, "model": model, "shots": shots, "seed": seed}
    prepared = prepare(JobSpec.model_validate(asked))
    plan, known = prepared.plan, prepared.model.family.name
    family = open_family(known, str(prepared.model.folder), plan.dtype, "cpu")
    geometry, found = prepared.model.geometry, {}
    laid = geometry.window_latent_frames, geometry.overlap_latent_frames
    for lay in (fixed, shifted):
        films, jumps = [], list[float]()
        for number, (each, (scene, _)) in enumerate(zip(plan.shots, drawn, strict=True)):
            latents = sample(family, each.render, lay, *laid)
            frames = decode(family, number, each.render, latents)
            films.append(measure(plan, number, frames, scene))
            jumps += changes(frames)
        found[lay.__name__] = summary(films, jumps)
    return {"seconds": seconds, "films": len(drawn)} | found | {"by_the_world": truth(plan, drawn)}


def truth(plan: Plan, drawn: list[tuple[Scene, str]]) -> dict[str, Any]:
    """The same of the films that the world itself draws."""
    films, jumps = [], list[float]()
    for number, (each, (scene, _)) in enumerate(zip(plan.shots, drawn, strict=True)):
        frames = world.render(scene, world.frame_times(each.render.pixel_frames, FPS))
        films.append(measure(plan, number, frames, scene))
        jumps += changes(frames)
    return summary(films, jumps)


def summary(films: list[dict[str, Any]], jumps: list[float]) -> dict[str, Any]:
    looks = [film["identity"] for film in films]
    borders = [ratio for film in films for ratio in film["borders"]["ratio"]]
    return {
        "steady": mean(each["steady"] for each in looks),
        "kept": sum(each["kept"] for each in looks),
        "right": {name: mean(each["right"][name] for each in looks) for name in LOOKS},
        "at_fixed_borders": median(borders) if borders else None,
        "plain_jumps": mean(ratio > PLAIN_SEAM for ratio in jumps),
        "first_to_last": mean(film["lab"]["first_to_last"] for film in films),
        "farthest_from_first": max(film["lab"]["farthest_from_first"] for film in films),
    }


def main() -> None:
    """Command line of what shifting borders would do."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--films", type=int, default=6, help="of each length")
    parser.add_argument("--seconds", type=float, nargs="+", default=[20.0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="print only, write no result")
    options = parser.parse_args()
    torch.set_num_threads(2)
    drawn = draw_films(options.films, options.seed)
    lengths = [compared(options.model, drawn, seconds, options.seed) for seconds in options.seconds]
    named = f"shifting_{model_name(options.model)}"
    figures = {"lengths": rounded(lengths, 3)}
    write_result(named, figures, models=[options.model], keep=not options.quick)


if __name__ == "__main__":
    main()
