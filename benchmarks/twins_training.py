"""Quality by training: what models render that a training kept at intervals (``--keep-every``).

    python -m benchmarks.twins_training --run pyramid=training/runs/pyramid/animatediff \\
        --run plain=training/runs/plain/animatediff --vae training/runs/picture_vae \\
        --prompts 60 --plot docs/twins.png

All of them go on from the same weights, on the same clips, in steps of as many tokens, so that a
step is as much work in one as in another. A run is the folder of a training, with `kept/STEP` in
it; two are compared with each other, "pyramid" with "plain": how many steps the pyramid took to
what its twin had in the end, as a share of the twin's. More runs, under any name, are ablations.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import model_identity, write_result
from benchmarks.model import draw_prompts
from benchmarks.twins import MEASURES, quality
from training.demo_model import assemble, assemble_animatediff
from training.trainer import Recipe
from training.world import Scene

WINDOWS = ("starts", "inside")
Rows = list[dict[str, Any]]


def trained(run: Path, vae: Path, drawn: list[tuple[Scene, str]]) -> Rows:
    """The quality of the models that a training kept, by its steps."""
    rows = []
    for kept in sorted((run / "kept").iterdir(), key=lambda path: int(path.name)):
        with tempfile.TemporaryDirectory(prefix="longtake-kept-") as folder:
            model = assembled(kept, vae, Path(folder))
            row = {"steps": int(kept.name), "identity": model_identity(str(model))}
            judged = quality(str(model), drawn)
        shares = {name: mean(judged[w]["all"][name]["share"] for w in WINDOWS) for name in MEASURES}
        rows.append(row | {"share": shares, "mean": mean(shares.values()), "judged": judged})
    return rows


def assembled(kept: Path, vae: Path, folder: Path) -> Path:
    """A folder that renders, from a training's weights and its autoencoder."""
    if (kept / "unet").is_dir():
        assemble_animatediff(kept, vae, folder / "model")
        return folder / "model"
    parts = folder / "parts"
    parts.mkdir()
    (parts / "wan").symlink_to(kept.resolve())
    (parts / "vae").symlink_to(vae.resolve())
    assemble(parts, folder / "model", Recipe())
    return folder / "model"


def share_of_training(pyramid: Rows, plain: Rows) -> dict[str, float | None]:
    """By property, and of their mean: the steps after which the pyramid shows as much right as its
    twin does in the end, over the twin's steps; None if it never does."""
    last = plain[-1]

    def reached(value: Any, aim: float) -> float | None:
        steps = [row["steps"] for row in pyramid if value(row) >= aim]
        return min(steps) / last["steps"] if steps else None

    said = {
        name: reached(lambda row, name=name: row["share"][name], last["share"][name])
        for name in MEASURES
    }
    return said | {"mean": reached(lambda row: row["mean"], last["mean"])}


def plot(runs: dict[str, Rows], out: Path) -> None:
    """What is shown right against training, a panel a property, and one of their mean. In percent:
    of the twin's steps, or of the longest training where there is no "plain" one."""
    from matplotlib.figure import Figure

    whose, whole = ("the twin's", ["plain"]) if "plain" in runs else ("the longest", [*runs])
    most = max(row["steps"] for kind in whole for row in runs[kind]) or 1
    figure = Figure(figsize=(12, 5), layout="constrained")
    axes = figure.subplots(2, 4, sharex=True, sharey=True)
    for axis, name in zip(axes.flat, (*MEASURES, "mean"), strict=False):
        for kind, rows in runs.items():
            shares = [row["mean"] if name == "mean" else row["share"][name] for row in rows]
            trained = [100 * row["steps"] / most for row in rows]
            axis.plot(trained, [100 * share for share in shares], marker="o", label=kind)
        axis.set(title="mean of all" if name == "mean" else name.replace("_", " "), ylim=(0, 103))
        axis.grid(alpha=0.3)
    axes[1, 3].axis("off")
    axes[1, 3].legend(*axes[0, 0].get_legend_handles_labels(), loc="center")
    figure.supxlabel(f"share of {whose} training, %")
    figure.supylabel("properties shown right, %")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main() -> None:
    """Command line of quality by training."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--vae", type=Path, required=True, help="the autoencoder of all of them")
    parser.add_argument("--plot", type=Path, help="write a picture")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="print only, write no result")
    options = parser.parse_args()
    named = dict(each.split("=", 1) for each in options.run if "=" in each)
    if len(named) < len(options.run):
        parser.error("--run wants NAME=FOLDER, each with another name")
    drawn = draw_prompts(options.prompts, options.seed)
    runs = {name: trained(Path(run), options.vae, drawn) for name, run in named.items()}
    if options.plot:
        plot(runs, options.plot)
    figures: dict[str, Any] = {
        "weights": "of trainings, as they were kept: each has its identity",
        "prompts": len(drawn),
        "trained": runs,
    }
    if {"pyramid", "plain"} <= runs.keys():
        figures["share_of_training"] = share_of_training(runs["pyramid"], runs["plain"])
    kept = next(Path(next(iter(named.values()))).glob("kept/*"))
    family = "animatediff" if (kept / "unet").is_dir() else "wan"
    write_result(f"twins_training_{family}", figures, keep=not options.quick)


if __name__ == "__main__":
    main()
