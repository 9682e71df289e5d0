"""How a long film holds together: identity, seams and colours over 20 s, 60 s and 2 minutes.

    python -m benchmarks.long_films --films 8

Every film is one shot of a held-out prompt, whose bodies neither leave nor hide nor change their
size: each second has a right answer. Half of the films have one body, half have two, unless
``--bodies`` says otherwise. The same measures are taken of the film that the world itself draws,
which shows what they say of a film without fault.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import sem, t

from benchmarks import judge
from benchmarks.common import Rendered, model_name, render, rounded, write_result
from benchmarks.detectors import shares
from benchmarks.judge import FPS, LOOKS
from benchmarks.model import draw_prompts
from orchestrator.borders import borders, interiors, window_ranges
from orchestrator.plan import Plan
from training import world
from training.world import Scene
from workers.colours import AXES, ColourMeter
from workers.contact_sheet import Row, contact_sheet
from workers.films import iter_frames
from workers.seams import PLAIN_SEAM, SeamMeter

#: Of the seconds of a film that has kept its identity, so many show it.
STEADY = 0.9


def draw_films(count: int, seed: int, bodies: int | None = None) -> list[tuple[Scene, str]]:
    """Held-out scenes and wordings whose bodies are always to be seen, and always of one size: half
    with one body, then half with two, or all with as many ``bodies``. Of each number of bodies,
    every motion comes before any comes again."""
    drawn = draw_prompts(60 * (count + 1), seed)
    steady = [each for each in drawn if judge.is_steady(each[0])]
    one, two = ([each for each in steady if len(each[0].bodies) == n] for n in (1, 2))
    twos = {None: count // 2, 1: 0, 2: count}[bodies]
    return _varied(one, count - twos) + _varied(two, twos)


def _varied(drawn: list[tuple[Scene, str]], count: int) -> list[tuple[Scene, str]]:
    """The first of those whose motions came least often, again and again."""
    left, chosen, came = list(drawn), [], Counter[str]()

    def repeats(each: tuple[Scene, str]) -> int:
        mine = Counter(body.motion for body in each[0].bodies)
        return sum(came[motion] * n + n * (n - 1) // 2 for motion, n in mine.items())

    for _ in range(count):
        chosen.append(min(left, key=repeats))
        left.remove(chosen[-1])
        came.update(body.motion for body in chosen[-1][0].bodies)
    return chosen


# -- one film


def measure(plan: Plan, shot: int, frames: NDArray[np.uint8], scene: Scene) -> dict[str, Any]:
    """Identity by second, seams by border and the colours' drift of a shot's frames, FHWC."""
    first = plan.shots[shot].first_pixel_frame
    mine = [{**b, "frame": b["frame"] - first} for b in borders(plan) if b["shot"] == shot]
    inside = {key: [p - first for p in at] for key, at in interiors(plan).items() if key[0] == shot}
    seams = SeamMeter(mine, inside)
    windows = [(start - first, stop - first) for start, stop in window_ranges(plan, shot)]
    colours = ColourMeter()
    for frame in frames:
        seams.add(frame)
        colours.add(frame)
    ratios = seams.ratios()
    return {
        "motions": [body.motion for body in scene.bodies],
        "identity": identity(frames, scene),
        "borders": {
            "at_s": [row["frame"] / FPS for row in ratios],
            "ratio": [row["ratio"] for row in ratios],
        },
        "beat": seams.beat(shot),
        "lab": _by_column(colours.drift(windows, FPS)),
        "comes_again": comes_again(frames),
    }


def comes_again(frames: NDArray[np.uint8], shortest_s: float = 2.0) -> dict[str, float]:
    """How much a film is a loop: the squared difference of frames a lag apart, at the lag where it
    is least, over its median; 1 in a film that never comes again, 0 in a loop or a still. Lags are
    of 2 s (a quarter of a short film) to half of it, frames a quarter as large."""
    small = frames[:, 2::4, 2::4].astype(np.float64).reshape(len(frames), -1)
    small -= small.mean(axis=0)
    size_F, inner_FF = (small**2).sum(1), small @ small.T
    apart_FF = size_F[:, None] + size_F[None] - 2 * inner_FF
    lags = range(min(round(shortest_s * FPS), len(frames) // 4), len(frames) // 2)
    by_lag = {lag: float(np.diagonal(apart_FF, lag).mean()) for lag in lags}
    least = min(by_lag, key=by_lag.__getitem__)
    usual = median(by_lag.values())
    return {"share": by_lag[least] / usual if usual else 0.0, "lag_s": least / FPS}


def _by_column(drift: dict[str, Any]) -> dict[str, Any]:
    """The windows of `ColourMeter.drift` as lists: the middle of each, and means and spreads by
    axis."""
    windows = drift["windows"]
    columns: dict[str, Any] = {"at_s": [(w["start"] + w["stop"]) / 2 / FPS for w in windows]}
    for kind in ("mean", "spread"):
        columns[kind] = {axis: [w[kind][n] for w in windows] for n, axis in enumerate(AXES)}
    return columns | {name: value for name, value in drift.items() if name != "windows"}


def identity(frames: NDArray[np.uint8], scene: Scene) -> dict[str, Any]:
    """What each second's bodies look like: the share of it that is right, by second and overall,
    the share of seconds in which it is what it is most of the time, and whether that is nearly all
    of it and the same in all quarters of the film: of all looks together, and of each alone."""
    seconds = [frames[start : start + FPS] for start in range(0, len(frames) - FPS + 1, FPS)]
    seen = [judge.look(second) for second in seconds]
    told = [judge.best_match(looks, scene.bodies, LOOKS) for looks in seen]
    alone = {name: _kept([_names(looks, (name,)) for looks in seen])[1] for name in LOOKS}
    steady, kept = _kept([_names(looks, LOOKS) for looks in seen])
    return {
        "by_second": {name: [each[name] for each in told] for name in LOOKS},
        "right": {name: mean(each[name] for each in told) for name in LOOKS},
        "steady": steady,
        "kept": kept,
        "kept_alone": alone,
    }


def _names(looks: tuple[judge.Appearance, ...], of: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(sorted(tuple(getattr(body, name) for name in of) for body in looks))


def _kept(names: list[tuple[tuple[str, ...], ...]]) -> tuple[float, float]:
    """The share of seconds that look as most do; 1 if that is nearly all of them and the same in
    every quarter of the film, 0 if not."""
    usual = _usual(names)
    quarters = [_usual([names[n] for n in part]) for part in np.array_split(range(len(names)), 4)]
    steady = names.count(usual) / len(names)
    return steady, float(len(set(quarters)) == 1 and bool(usual) and steady >= STEADY)


def _usual(names: list[tuple[tuple[str, ...], ...]]) -> tuple[tuple[str, ...], ...]:
    return Counter(names).most_common(1)[0][0]


# -- all films of a length


def summaries(films: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all films, and by the number of their bodies."""
    numbers = sorted({len(film["motions"]) for film in films})
    halves = {f"{n}_bodies": [f for f in films if len(f["motions"]) == n] for n in numbers}
    return {name: summary(some) for name, some in ({"all": films} | halves).items()}


def summary(films: list[dict[str, Any]]) -> dict[str, Any]:
    """Over films: identity, seams, spread of colours, and the mean slopes of mean and spread."""
    ratios = [ratio for film in films for ratio in film["borders"]["ratio"]]
    identities = [film["identity"] for film in films]
    labs = [film["lab"] for film in films]
    spread = {axis: mean(mean(lab["spread"][axis]) for lab in labs) for axis in AXES}
    beats = [film["beat"] for film in films if film["beat"] is not None]
    return {
        "right": {name: mean(i["right"][name] for i in identities) for name in LOOKS},
        "steady": mean(i["steady"] for i in identities),
        "films": shares([{"kept": i["kept"], **_alone(i)} for i in identities]),
        "comes_again": median(film["comes_again"]["share"] for film in films),
        "seams": {
            "borders": len(ratios),
            "median": median(ratios) if ratios else None,
            "plain_to_see": sum(ratio > PLAIN_SEAM for ratio in ratios) / max(1, len(ratios)),
            "worst": max(ratios, default=None),
        },
        "beat": median(beats) if beats else None,
        "lab": {
            "spread": spread,
            "mean_per_minute": _mean_slopes(labs, "mean_per_minute"),
            "spread_per_minute": _mean_slopes(labs, "spread_per_minute"),
            "first_to_last": mean(lab["first_to_last"] for lab in labs),
            "farthest_from_first": max(lab["farthest_from_first"] for lab in labs),
        },
    }


def _alone(identity: dict[str, Any]) -> dict[str, float]:
    return {f"kept_{name}": kept for name, kept in identity["kept_alone"].items()}


def _mean_slopes(labs: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """The films' mean slope and its 95 % interval (Student's t), which tell whether all drift one
    way, and the mean of its size."""
    slopes = {axis: [lab[kind][axis]["slope"] for lab in labs] for axis in AXES}
    return {
        axis: {
            "slope": mean(each),
            "interval_95": _interval(each),
            "size": mean(abs(slope) for slope in each),
        }
        for axis, each in slopes.items()
    }


def _interval(slopes: list[float]) -> list[float] | None:
    """None of a single film, or of films that are all alike."""
    if len(set(slopes)) < 2:
        return None
    low, high = t.interval(0.95, len(slopes) - 1, loc=mean(slopes), scale=sem(slopes))
    return [float(low), float(high)]


def of_length(
    seconds: float, drawn: list[tuple[Scene, str]], options: argparse.Namespace
) -> dict[str, Any]:
    shots = [{"prompt": said, "seconds": seconds} for _, said in drawn]
    job = {"model": options.model, "seed": options.seed, "pyramid": options.pyramid}
    job |= {"pyramid_first_stage": options.first_stage, "repeated_noise": options.repeated_noise}
    job |= {"pyramid_steps": options.pyramid_steps}
    run = render(job | {"shots": shots}, workers=2)
    scenes = [scene for scene, _ in drawn]
    if options.sheets:
        _draw_sheet(run, [said for _, said in drawn], seconds, options.sheets)
    rendered, drawn_by_world = [], []
    for number, (frames, scene) in enumerate(zip(_shots(run), scenes, strict=True)):
        rendered.append(measure(run.plan, number, frames, scene))
        truth = world.render(scene, world.frame_times(len(frames), FPS))
        drawn_by_world.append(measure(run.plan, number, truth, scene))
    return {
        "seconds": seconds,
        "films": len(drawn),
        "windows_each": [len(stage.windows) for stage in run.plan.shots[0].stages],
        "render_s_each": run.span_s / len(drawn),
        "rendered": summaries(rendered),
        "drawn_by_the_world": summaries(drawn_by_world),
        "rows": [{"prompt": said} | film for (_, said), film in zip(drawn, rendered, strict=True)],
    }


def _shots(run: Rendered) -> Iterator[NDArray[np.uint8]]:
    frames = iter_frames(run.film)
    for shot in run.plan.shots:
        yield np.stack(list(itertools.islice(frames, shot.render.pixel_frames)))


def _draw_sheet(run: Rendered, captions: list[str], seconds: float, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        Row(said, shot.first_pixel_frame, shot.first_pixel_frame + shot.render.pixel_frames)
        for said, shot in zip(captions, run.plan.shots, strict=True)
    ]
    contact_sheet(run.film, rows, folder / f"{seconds:g}s.png")


def main() -> None:
    """Command line of the long films' figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--films", type=int, default=8, help="of each length")
    parser.add_argument("--seconds", type=float, nargs="+", default=[20.0, 60.0, 120.0])
    parser.add_argument("--pyramid", default="auto", help="off, auto, or a number of stages")
    parser.add_argument(
        "--bodies", type=int, choices=(1, 2), help="of all films; else half of each"
    )
    parser.add_argument("--first-stage", default="windows", choices=("windows", "whole"))
    parser.add_argument(
        "--pyramid-steps", type=int, nargs="+", help="of its stages, coarsest first"
    )
    parser.add_argument("--repeated-noise", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sheets", type=Path, help="write a picture of each length's films here")
    parser.add_argument("--quick", action="store_true", help="print only, write no result")
    options = parser.parse_args()
    options.pyramid = int(options.pyramid) if options.pyramid.isdigit() else options.pyramid
    drawn = draw_films(options.films, options.seed, options.bodies)
    figures = {
        "model": options.model,
        "pyramid": options.pyramid,
        "first_stage": options.first_stage,
        "pyramid_steps": options.pyramid_steps,
        "repeated_noise": options.repeated_noise,
        "bodies": options.bodies or "half 1, half 2",
        "lengths": [rounded(of_length(seconds, drawn, options), 3) for seconds in options.seconds],
    }
    write_result(_result_name(options), figures, keep=not options.quick)


def _result_name(options: argparse.Namespace) -> str:
    """Another one for all that is asked for otherwise, so that no result takes another's place."""
    parts = ["long_films"]
    parts += [] if options.model == "demo" else [model_name(options.model)]
    parts += [] if options.pyramid == "auto" else [f"pyramid_{options.pyramid}"]
    parts += (
        ["-".join(["steps", *map(str, options.pyramid_steps)])] if options.pyramid_steps else []
    )
    parts += ["whole"] if options.first_stage == "whole" else []
    parts += [f"repeated_{options.repeated_noise:g}"] if options.repeated_noise else []
    parts += [f"bodies_{options.bodies}"] if options.bodies else []
    return "_".join(parts)


if __name__ == "__main__":
    main()
