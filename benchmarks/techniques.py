"""Speed and fidelity of the accelerations on a trained model, and of what a user would pick
instead, each against the full computation.

    python -m benchmarks.techniques --prompts 6 --plot docs/techniques.png
    python -m benchmarks.techniques --results OLD.json --plot docs/techniques.png   # draw alone

Every setting renders the same held-out prompts, one window each, from the same noise as the full
render. A point is a setting: how much of the full render's time, passes and operations it took, and
how near its frames are (PSNR and SSIM; the mean over prompts, and the worst prompt). Each kind of
setting is swept, and compared with others at equal fidelity, on its own line (``curves.py``).

A pyramid is another model: its fidelity is to that model's own full render, of a longer shot, so
that it has tables and panels of its own; its speed is given against that, and against its plain
twin's full render. With ``--pyramid-frames 17``, which one window of the demo models holds, the
twin's is what its pipeline would do.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.common import write_result
from benchmarks.curves import as_table, at_levels, front
from benchmarks.here import Here, render_here
from benchmarks.model import held_out_shots, lengths_of
from benchmarks.peers import PEERS
from benchmarks.sweeps import KINDS, PYRAMID_KINDS, PYRAMIDS, Job, fitting, with_noise
from jobs.families.family import FamilyFacts
from jobs.model_folder import inspect_model, resolve_model
from jobs.model_scheduler import SCHEDULERS
from workers.fidelity import compare

Row = dict[str, Any]
Asked = Mapping[str, str]  # of a shot: its prompt, or its image
Setting = Callable[[Job], Here]

#: What two renders that are equal bit for bit count as in a mean: beyond what 8-bit frames resolve.
EQUAL_DB = 60.0

#: Settings between two full renders.
FULL_EVERY = 12

#: Of a pyramid's shots: five windows of the plain twin.
PYRAMID_PIXEL_FRAMES = 61

#: Held-out prompts that settings are found on, and none is judged by.
CALIBRATION = {"count": 2, "seed": 5}


def ours(chosen: Mapping[str, Any], job: Job) -> dict[tuple[str, str], Setting]:
    return {
        (kind, value): lambda told, each=each: render_here({**told, "accelerations": each})
        for kind, settings in chosen.items()
        for value, each in settings(job).items()
    }


def theirs(kinds: Sequence[str], job: Job) -> dict[tuple[str, str], Setting]:
    return {
        (kind, value): lambda told, tune=tune: render_here(told, tune)
        for kind in kinds
        for value, tune in PEERS[kind](job).items()
    }


def measure(
    job: Job, shots: Sequence[Asked], settings: Mapping[tuple[str, str], Setting]
) -> dict[tuple[str, str], list[Row]]:
    """For each setting what each prompt gave. The settings come in another order with each prompt,
    and the full render again before every few: a machine's slow minutes hit no kind alone."""
    runs: dict[tuple[str, str], list[Row]] = {name: [] for name in settings}
    for number, asked in enumerate(shots):
        told = {**job, **asked}
        for place, name in enumerate(_shuffled([*settings], number)):
            if place % FULL_EVERY == 0:
                full = render_here(told)
            runs[name].append(against(full, settings[name](told)))
        print(f"prompt {number + 1} of {len(shots)} is done", file=sys.stderr)
    return runs


def measure_pyramid(
    job: Job, plain: Job, shots: Sequence[Asked], settings: Mapping[tuple[str, str], Setting]
) -> dict[tuple[str, str], list[Row]]:
    """The same of a pyramid, and how much faster than the plain twin's full render: in its usual
    windows (``over_plain``), and in one of all frames, which repeats none (``over_one_window``)."""
    runs: dict[tuple[str, str], list[Row]] = {name: [] for name in settings}
    for number, asked in enumerate(shots):
        told = {**job, **asked}
        for place, name in enumerate(_shuffled([*settings], number)):
            if place % FULL_EVERY == 0:
                full, twin = render_here(told), render_here({**plain, **asked})
                whole = _in_one_window(plain, asked, twin)
            fast = settings[name](told)
            beside = {
                "over_plain": twin.steps_s / fast.steps_s,
                "over_one_window": whole.steps_s / fast.steps_s,
                "fewer_operations_than_plain": twin.operations / fast.operations,
                "fewer_operations_than_one_window": whole.operations / fast.operations,
            }
            runs[name].append(against(full, fast) | beside)
        print(f"pyramid: prompt {number + 1} of {len(shots)} is done", file=sys.stderr)
    return runs


def _in_one_window(plain: Job, asked: Asked, twin: Here) -> Here:
    """The twin's full render without overlaps: as its pipeline would do."""
    shot = twin.plan.shots[0]
    if len(shot.stages[0].windows) == 1:
        return twin
    return render_here({**plain, **asked, "window_latent_frames": shot.render.latent_frames})


def _shuffled(names: list[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    return random.Random(seed).sample(names, len(names))


def against(full: Here, fast: Here) -> Row:
    """A render beside the full one, of the same noise."""
    found = compare(fast.frames, full.frames).summary()
    return {
        "speed": full.steps_s / fast.steps_s,
        "fewer_passes": full.passes / fast.passes,
        "fewer_operations": full.operations / fast.operations,
        "psnr_db": EQUAL_DB if found["psnr_db"] is None else min(found["psnr_db"], EQUAL_DB),
        "ssim": found["ssim"],
    }


def summaries(runs: Mapping[tuple[str, str], list[Row]], whose: str) -> Iterator[Row]:
    """A row for each setting: times are medians over prompts, all else are means."""
    for (kind, value), rows in runs.items():
        timed = {"speed", "over_plain", "over_one_window"} & rows[0].keys()
        yield {
            "kind": kind,
            "value": value,
            "whose": whose,
            **{name: median(row[name] for row in rows) for name in sorted(timed)},
            **{name: mean(row[name] for row in rows) for name in rows[0] if name not in timed},
            "worst_psnr_db": min(row["psnr_db"] for row in rows),
            "worst_ssim": min(row["ssim"] for row in rows),
        }


def engaged(rows: Sequence[Row]) -> list[Row]:
    """What left something out of at least one prompt's render."""
    return [row for row in rows if row["fewer_operations"] > 1 or row["kind"] == "pyramid"]


def of_pyramid(rows: Sequence[Row]) -> list[Row]:
    """Rows of the pyramid's model: fidelity is to its own full render, so that they are compared
    with each other alone. What the pyramid itself loses, ``benchmarks/twins.py`` says."""
    return [row for row in rows if "over_plain" in row]


def compared(rows: Sequence[Row]) -> dict[str, Any]:
    """The speed of each kind at equal fidelity to the same full render: by time and by operations,
    to the mean prompt's and to the worst one's. What never engaged is no point on a line. With a
    pyramid, the speed over its plain twin's full render, too."""
    pyramid = of_pyramid(rows)
    flat = [row for row in rows if row not in pyramid]
    tables = _tables(flat, ("speed", "fewer_operations")) if flat else {}
    axes = ["speed", "over_plain", "fewer_operations", "fewer_operations_than_plain"]
    axes += ["over_one_window", "fewer_operations_than_one_window"]
    found = _tables(pyramid, axes) if pyramid else {}
    return tables | {f"pyramid: {title}": table for title, table in found.items()}


def _tables(rows: Sequence[Row], axes: Sequence[str]) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for axis in axes:
        for fidelity in ("psnr_db", "worst_psnr_db"):
            sweeps: dict[str, list[tuple[float, float]]] = {}
            for row in engaged(rows):
                sweeps.setdefault(row["kind"], []).append((row[axis], row[fidelity]))
            tables[f"{axis} at {fidelity}"] = at_levels(sweeps)
    return tables


def kept_rows(result: Path) -> list[Row]:
    """The rows that a result's file holds."""
    return list(json.loads(result.read_text(encoding="utf-8"))["rows"])


def plot(rows: Sequence[Row], out: Path) -> None:
    """Fidelity over what is saved, of the mean prompt and of the worst one, without a pyramid and
    with one. By operations, which no other work on the machine disturbs. Ours are solid."""
    from matplotlib.figure import Figure

    pyramid = of_pyramid(engaged(rows))
    flat = [row for row in engaged(rows) if row not in pyramid]
    figure = Figure(figsize=(13, 10 if pyramid else 5.5), layout="constrained")
    grid = figure.subplots(2 if pyramid else 1, 2, sharey=True, squeeze=False)
    for line, mine, said in zip(grid, (flat, pyramid), ("", ", pyramid's model"), strict=False):
        for axes, fidelity, title in zip(
            line, ("psnr_db", "worst_psnr_db"), ("mean over prompts", "worst prompt"), strict=True
        ):
            _lines(axes, mine, fidelity)
            axes.set(xlabel="its full render's operations over this one's", title=title + said)
            axes.grid(alpha=0.3)
        line[0].set_ylabel("PSNR to its full render, dB")
        line[1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), fontsize="small")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


#: What the pages call our kinds. Peers are named as they name themselves.
LABELS = {
    "adaptive": "adaptive, form: tensor",
    "adaptive, most skips 2": "adaptive, form: tensor, most_skips: 2",
    "adaptive scalar": "adaptive, form: scalar",
    "adaptive scalar, last 3": "adaptive, form: scalar, last: 3",
    "adaptive spectral": "adaptive, form: spectral",
    "adaptive spectral, forecast": "adaptive, form: spectral, forecast",
    "every so many steps": "a stride that looks at nothing",
    "rehash every": "rehash, every so many steps",
    "rehash profile": "rehash, key steps found",
    "adaptive scalar, rehash": "adaptive, form: scalar; rehash",
    "fast attention": "fast_attention",
    "adaptive spectral, forecast, fast attention": "form: spectral, forecast; fast_attention",
}


def label(row: Row) -> str:
    """A row's kind, in the words of ``docs/figures.md``."""
    if row["whose"] != "ours":
        return f"peer: {row['kind']}"
    kind = row["kind"].removeprefix("pyramid, ")
    return ("pyramid: " if kind != row["kind"] else "") + LABELS.get(kind, kind)


_MARKERS = "os^vDPX*<>phd8H"


def _lines(axes: Any, rows: Sequence[Row], fidelity: str) -> None:
    """Every setting is a point; a line joins those of a kind that none of its others beats."""
    for number, kind in enumerate(dict.fromkeys(row["kind"] for row in rows)):
        mine = [row for row in rows if row["kind"] == kind]
        points = [(float(row["fewer_operations"]), float(row[fidelity])) for row in mine]
        colour, mark = f"C{number % 10}", _MARKERS[number % len(_MARKERS)]
        solid = mine[0]["whose"] == "ours"
        axes.scatter(*zip(*points, strict=True), color=colour, marker=mark, s=12, alpha=0.4)
        axes.plot(
            *zip(*front(points), strict=True), label=label(mine[0]), color=colour, marker=mark,
            linestyle="-" if solid else "--", linewidth=2 if solid else 1,
            markersize=6 if solid else 4, alpha=1 if solid else 0.75,
        )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument(
        "--pyramid-model", help="'none' leaves it out; default: the one that ships for the family"
    )
    parser.add_argument("--pyramid-frames", type=int, default=PYRAMID_PIXEL_FRAMES)
    parser.add_argument(
        "--pyramid-kinds", nargs="+", choices=PYRAMID_KINDS, default=[*PYRAMID_KINDS]
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument(
        "--kinds", nargs="*", choices=[*KINDS, *PEERS],
        help="none at all: the pyramid alone; default: all that fit the model's family",
    )  # fmt: skip
    parser.add_argument("--plot", type=Path, help="a picture of fidelity over speed")
    parser.add_argument(
        "--results", nargs="+", type=Path, help="only draw --plot, of these results' rows"
    )
    parser.add_argument("--scheduler", help="default: the model's own")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="print only, write no result")
    parser.add_argument("--note", help="part of the name of the result's file, of some kinds alone")
    return parser


def main() -> None:
    """Command line of the accelerations' figures."""
    parser = _parser()
    options = parser.parse_args()
    if options.results:
        if options.plot is None:
            parser.error("--results are drawn: name a --plot")
        plot([row for each in options.results for row in kept_rows(each)], options.plot)
        return
    family = inspect_model(resolve_model(options.model)).family
    kinds = _kinds_of(options, family, parser)
    pyramid_model = options.pyramid_model or PYRAMIDS.get(family.name, "none")
    drawn = held_out_shots(options.model, options.prompts, options.seed)
    prompts, shots = [said for said, _ in drawn], [asked for _, asked in drawn]
    told = [asked for _, asked in held_out_shots(options.model, **CALIBRATION)]
    job = {
        "model": options.model, "steps": options.steps, "pyramid": "off",
        "pixel_frames": lengths_of(options.model).window,
        "scheduler": options.scheduler or "auto",
    }  # fmt: skip
    note = f"_{options.note}" if options.note else ""
    rows = _flat(job, told, shots, kinds) if kinds else []
    if rows:
        _tell(f"techniques{note}", job, [options.model], prompts, rows, keep=not options.quick)
    if pyramid_model != "none":
        models = [options.model, pyramid_model]
        long = {**job, "pixel_frames": options.pyramid_frames}
        found = _pyramid(long, pyramid_model, shots, options.pyramid_kinds)
        frames = options.pyramid_frames
        named = "techniques_pyramid" + f"_{frames}_frames" * (frames != PYRAMID_PIXEL_FRAMES) + note
        _tell(named, long, models, prompts, found, keep=not options.quick)
        rows += found
    if options.plot:
        plot(rows, options.plot)
    if idle := [f"{row['kind']} {row['value']}" for row in rows if row not in engaged(rows)]:
        raise SystemExit(f"these settings left nothing out of any render: {', '.join(idle)}")


def _kinds_of(
    options: argparse.Namespace, family: FamilyFacts, parser: argparse.ArgumentParser
) -> list[str]:
    """Those that were asked for, or all that fit."""
    schedulers = SCHEDULERS[family.diffusion]
    if options.scheduler and options.scheduler not in schedulers:
        parser.error(f"--scheduler {options.scheduler}: valid: {', '.join(schedulers)}")
    noisy = bool(options.scheduler) and schedulers[options.scheduler].adds_noise
    fit = with_noise() if noisy else fitting(family)
    if unfit := [kind for kind in options.kinds or () if kind not in fit]:
        parser.error(f"not for {family.name} models: {', '.join(unfit)}")
    return fit if options.kinds is None else list(options.kinds)


def _tell(
    name: str, job: Job, models: Sequence[str], prompts: list[str], rows: list[Row], *, keep: bool
) -> None:
    """A result's file, of its own for each family; its tables, for who waits."""
    family = inspect_model(resolve_model(models[0])).family.name
    tables = compared(rows)
    figures = {**job, "prompts": prompts, "rows": rows, "at_equal_fidelity": tables}
    named = name if family == "wan" else f"{name}_{family}"
    if job["scheduler"] != "auto":
        named += f"_{job['scheduler']}"
    write_result(named, figures, models=models, keep=keep)
    for title, table in tables.items():
        print(f"\n{title}\n{as_table(table)}")


def _flat(job: Job, told: list[Asked], shots: list[Asked], kinds: list[str]) -> list[Row]:
    chosen = {kind: settings for kind, settings in KINDS.items() if kind in kinds}
    settings = ours(chosen, {**job, "told": told})
    peers = theirs([kind for kind in PEERS if kind in kinds], {**job, "told": told})
    runs = measure(job, shots, settings | peers)
    return [
        *summaries({name: runs[name] for name in settings}, "ours"),
        *summaries({name: runs[name] for name in peers}, "a peer's"),
    ]


def _pyramid(plain: Job, model: str, shots: list[Asked], kinds: Sequence[str]) -> list[Row]:
    job = {**plain, "model": model, "pyramid": "auto"}
    settings = ours({kind: PYRAMID_KINDS[kind] for kind in kinds}, job)
    return list(summaries(measure_pyramid(job, plain, shots, settings), "ours"))


if __name__ == "__main__":
    main()
