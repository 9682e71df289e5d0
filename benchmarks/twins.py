"""A model that was trained for a temporal pyramid against its plain twin: time, operations and
quality of what they render, and quality by how long they were trained.

    python -m benchmarks.twins --pyramid FOLDER --plain FOLDER --prompts 300 --seconds 20
    python -m benchmarks.twins --runs training/runs/pyramid training/runs/plain --prompts 60 \
        --plot docs/twins.png
    python -m benchmarks.twins --jumps FOLDER --prompts 100

Both were trained from the same weights, on the same clips, for as many steps of as many tokens.
The plain one is also rendered as a pyramid that it does not know: what a warning is about.
``--runs`` are trainings that kept their model at intervals (``--keep-every``). ``--jumps`` renders
clips of one window a stage with the jump between stages as it should be, and without its noise.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch

from accel.pyramid import up
from benchmarks import judge
from benchmarks.common import Rendered, model_identity, model_name, render, write_result
from benchmarks.detectors import shares
from benchmarks.model import draw_prompts, judge_film, lengths_of
from benchmarks.operations import Operations
from jobs.model_folder import inspect_model, resolve_model
from jobs.pyramid import split_steps
from orchestrator.plan import Plan, ShotPlan
from training.demo_model import assemble, assemble_animatediff
from training.tpdiff.trainees import load_trainee
from training.trainer import Recipe
from training.world import Scene
from workers.families import open_family
from workers.schedulers import RangeStepper

NAMES = ("pyramid", "plain")
MEASURES = ("pattern", "background_colour", "colour", "shape", "motion", "count")


def quality(
    model: str, drawn: list[tuple[Scene, str]], pyramid: str | int = "auto"
) -> dict[str, Any]:
    """What detectors say of held-out prompts, each a shot of two windows."""
    lengths = lengths_of(model)
    told = [{"prompt": said, "pixel_frames": lengths.shot} for _, said in drawn]
    run = render({"model": model, "pyramid": pyramid, "shots": told}, workers=2)
    return judge_film(run.film, [scene for scene, _ in drawn], lengths)


# -- time and operations of one long shot


def speed(models: dict[str, str], said: str, seconds: float, repeats: int) -> dict[str, Any]:
    """One worker, the models in turn; medians."""
    runs: dict[str, list[Rendered]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, model in models.items():
            job = {"model": model, "prompt": said, "seconds": seconds}
            runs[name].append(render(job, workers=1))
    figures: dict[str, Any] = {}
    for name, model in models.items():
        plan = runs[name][0].plan
        figures[name] = {
            "stages": [[len(s.windows), s.steps] for s in plan.shots[0].stages],
            "wall_s": median(run.span_s for run in runs[name]),
            "step_s": median(_steps_s(run) for run in runs[name]),
            "tera_operations": operations(model, plan) / 1e12,
        }
    pyramid, plain = (figures[name] for name in NAMES)
    ratios = {key: plain[key] / pyramid[key] for key in ("wall_s", "step_s", "tera_operations")}
    return figures | {"plain_over_pyramid": ratios}


def _steps_s(run: Rendered) -> float:
    return sum(seconds for unit, seconds in run.elapsed_s.items() if unit.kind == "step")


def operations(model: str, plan: Plan) -> float:
    """Floating-point operations of all model calls of a plan's first shot, guidance included."""
    info = inspect_model(resolve_model(model))
    family = open_family(info.family.name, str(info.folder), "float32", "cpu")
    shot = plan.shots[0]
    text = torch.zeros(1, shot.render.text_tokens, plan.geometry.text_dim)
    total = 0.0
    for number, stage in enumerate(shot.stages):
        stepper = RangeStepper(
            shot.render.scheduler, family.scheduler_config, shot.render.stage_steps, number,
            shot.render.flow_shift, diffusion=family.diffusion,
        )  # fmt: skip
        for frames, count in _windows(shot, number):
            latents = torch.zeros(
                1, plan.geometry.latent_channels, frames,
                shot.render.latent_height, shot.render.latent_width,
            )  # fmt: skip
            with Operations() as counted:
                family.predict(
                    shot.render, latents, stepper, 0, {"cond": text, "uncond": text},
                    lambda _: nullcontext(),
                )  # fmt: skip
            total += counted.count * count * stage.steps
    return total


def _windows(shot: ShotPlan, stage: int) -> Iterator[tuple[int, int]]:
    """Frames of a stage's windows, and how many windows have so many."""
    sizes = [window.stop - window.start for window in shot.stages[stage].windows]
    for size in sorted(set(sizes)):
        yield size, sizes.count(size)


# -- quality by training


def trained(run: Path, drawn: list[tuple[Scene, str]]) -> list[dict[str, Any]]:
    """The quality of the models that a training of either kind kept, by its steps."""
    rows = []
    of_pictures = (run / "animatediff").is_dir()
    kept_in = run / ("animatediff" if of_pictures else "wan") / "kept"
    for kept in sorted(kept_in.iterdir(), key=lambda path: int(path.name)):
        with tempfile.TemporaryDirectory(prefix="longtake-kept-") as folder:
            model = Path(folder) / "model"
            if of_pictures:
                assemble_animatediff(kept, run / "picture_vae", model)
            else:
                _assemble_wan(kept, run / "vae", Path(folder) / "parts", model)
            row = {"steps": int(kept.name), "identity": model_identity(str(model))}
            rows.append(row | {"judged": quality(str(model), drawn)})
    return rows


def _assemble_wan(kept: Path, vae: Path, parts: Path, model: Path) -> None:
    parts.mkdir()
    (parts / "wan").symlink_to(kept.resolve())
    (parts / "vae").symlink_to(vae.resolve())
    assemble(parts, model, Recipe())


def plot(figures: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """Quality of windows inside a shot against training steps, a panel a property."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    for axis, name in zip(axes.flat, MEASURES, strict=True):
        for kind, rows in figures.items():
            judged = [row["judged"]["inside"]["all"][name] for row in rows]
            steps = [row["steps"] for row in rows]
            low, high = zip(*(each["interval_95"] for each in judged), strict=True)
            axis.plot(steps, [each["share"] for each in judged], marker="o", label=kind)
            axis.fill_between(steps, low, high, alpha=0.15)
        axis.set(title=name.replace("_", " "), ylim=(0, 1))
    axes[0, 0].legend()
    figure.supxlabel("training steps, of as many tokens")
    figure.supylabel("share of prompts rendered right, windows inside a shot")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


# -- what the noise of a jump is for


def jumps(model: str, drawn: list[tuple[Scene, str]]) -> dict[str, Any]:
    """Clips of one window a stage, with the jump and with frames that are only repeated."""
    trainee = load_trainee(str(resolve_model(model)), "cpu")
    defaults = trainee.info.defaults
    stage_steps = split_steps(defaults.steps, defaults.pyramid_steps)
    window = lengths_of(model).window
    told = {name: [] for name in ("renoised", "only_repeated")}
    for scene, said in drawn:
        shot = trainee.shot(
            said, pixel_frames=window, size=defaults.size, stage_steps=stage_steps,
            positions=defaults.stage_positions,
        )  # fmt: skip
        embeddings = trainee.family.encode(shot)
        for name, way in (("renoised", nullcontext()), ("only_repeated", only_repeated())):
            with way:
                clip = trainee.sample(shot, embeddings)
            told[name].append(judge.read(clip).matches(scene))
    return {name: shares(rows) for name, rows in told.items()}


@contextmanager
def only_repeated() -> Iterator[None]:
    """Jumps that neither scale nor renoise, for a while."""
    proper = RangeStepper.jump

    def repeat(
        self: RangeStepper, latents: torch.Tensor, noise: torch.Tensor,
        frames: tuple[int, int], first: int, *, first_alone: bool,
    ) -> torch.Tensor:  # fmt: skip
        return up(latents, *frames, first, first_alone=first_alone)

    RangeStepper.jump = repeat  # type: ignore[method-assign]
    try:
        yield
    finally:
        RangeStepper.jump = proper  # type: ignore[method-assign]


def main() -> None:
    """Command line of the twins' figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in NAMES:
        parser.add_argument(f"--{name}", help="a model folder")
    parser.add_argument("--runs", type=Path, nargs=2, metavar=("PYRAMID", "PLAIN"))
    parser.add_argument("--jumps", metavar="MODEL", help="a model that knows a pyramid")
    parser.add_argument("--plot", type=Path, help="a picture of quality by training")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the shot that is timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="print only, write no result")
    options = parser.parse_args()
    drawn = draw_prompts(options.prompts, options.seed)
    if options.runs:
        by_steps = {
            name: trained(run, drawn) for name, run in zip(NAMES, options.runs, strict=True)
        }
        if options.plot:
            plot(by_steps, options.plot)
        weights = "of trainings, as they were kept: each has its identity"
        figures: dict[str, Any] = {"weights": weights, "prompts": len(drawn), "trained": by_steps}
        write_result("twins_training", figures, keep=not options.quick)
        return
    if options.jumps:
        figures = {"model": options.jumps, "prompts": len(drawn), **jumps(options.jumps, drawn)}
        write_result("twins_jumps", figures, keep=not options.quick)
        return
    models = {name: getattr(options, name) for name in NAMES}
    if None in models.values():
        parser.error("give --pyramid and --plain, or --runs, or --jumps")
    stages = len(inspect_model(resolve_model(models["pyramid"])).defaults.pyramid_steps)
    figures = {
        "models": {name: model_name(model) for name, model in models.items()},
        "stages": stages,
        "prompts": len(drawn),
        "speed": speed(models, drawn[0][1], options.seconds, options.repeats),
        "quality": {name: quality(model, drawn) for name, model in models.items()},
        "untrained": quality(models["plain"], drawn, stages),
    }
    family = inspect_model(resolve_model(models["plain"])).family.name
    write_result(f"twins_{family}", figures, models=[*models.values()], keep=not options.quick)


if __name__ == "__main__":
    main()
