"""A model that was trained for a temporal pyramid against its plain twin: time, operations and
quality of what they render. ``benchmarks/twins_training.py`` has quality by how long they trained.

    python -m benchmarks.twins --pyramid FOLDER --plain FOLDER --prompts 300 --seconds 20
    python -m benchmarks.twins --jumps FOLDER --prompts 100
    python -m benchmarks.twins --untrained FOLDER --stages 2 4 --prompts 40

Both were trained from the same weights, on the same clips, for as many steps of as many tokens.
The plain one is also rendered as a pyramid that it does not know: what a warning is about.
``--jumps`` renders clips of one window a stage with the jump between stages as it should be, and
without its noise. ``--untrained`` renders a model as it is meant to be, and with pyramids of other
numbers of stages.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from statistics import median
from typing import Any

import torch

from accel.pyramid import up
from benchmarks import judge
from benchmarks.common import Rendered, model_name, render, write_result
from benchmarks.detectors import shares
from benchmarks.model import draw_prompts, judge_film, lengths_of
from benchmarks.operations import Operations
from jobs.model_folder import inspect_model, resolve_model
from jobs.pyramid import split_steps
from orchestrator.plan import Plan, ShotPlan
from training.tpdiff.trainees import load_trainee
from training.world import Scene
from workers.families import open_family
from workers.schedulers import RangeStepper

NAMES = ("pyramid", "plain")
MEASURES = ("pattern", "background_colour", "colour", "shape", "motion", "count")


def quality(
    model: str, drawn: list[tuple[Scene, str]], pyramid: str | int = "auto", **more: Any
) -> dict[str, Any]:
    """What detectors say of held-out prompts, each a shot of two windows; ``more`` of the job."""
    lengths = lengths_of(model)
    told = [{"prompt": said, "pixel_frames": lengths.shot} for _, said in drawn]
    run = render({"model": model, "pyramid": pyramid, "shots": told, **more}, workers=2)
    return judge_film(run.film, [scene for scene, _ in drawn], lengths)


def untrained(model: str, drawn: list[tuple[Scene, str]], stages: list[int]) -> dict[str, Any]:
    """Quality as the model was trained, and with pyramids of other numbers of stages; one: none."""
    asked = {str(count): count if count > 1 else "off" for count in stages}
    return {
        "prompts": len(drawn),
        "as_trained": quality(model, drawn),
        "with_stages": {told: quality(model, drawn, pyramid) for told, pyramid in asked.items()},
    }


# -- time and operations of one long shot


def speed(
    models: dict[str, str], said: str, seconds: float, repeats: int, **more: Any
) -> dict[str, Any]:
    """One worker, the models in turn, the order changing; medians. ``more`` of the job."""
    runs: dict[str, list[Rendered]] = {name: [] for name in models}
    for repeat in range(repeats):
        for name in (*models,)[:: -1 if repeat % 2 else 1]:
            job = {"model": models[name], "prompt": said, "seconds": seconds, **more}
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


def worse_on(quality: dict[str, Any]) -> dict[str, list[str]]:
    """By kind of window: of what the pyramid shows right less often than its twin does."""
    return {
        window: [
            name for name in MEASURES
            if kinds["all"][name]["share"] < quality["plain"][window]["all"][name]["share"]
        ]
        for window, kinds in quality["pyramid"].items()
    }  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in NAMES:
        parser.add_argument(f"--{name}", help="a model folder")
    parser.add_argument("--jumps", metavar="MODEL", help="a model that knows a pyramid")
    parser.add_argument("--untrained", metavar="MODEL", help="a model with or without a pyramid")
    parser.add_argument(
        "--stages", type=int, nargs="+", default=[2, 4], help="of --untrained; 1: none"
    )
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the shot that is timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decoder-dtype", default="float32", help="of what is timed")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--speed-only", action="store_true", help="quality is measured elsewhere")
    only.add_argument("--quality-only", action="store_true", help="speed is measured elsewhere")
    parser.add_argument("--quick", action="store_true", help="print only, write no result")
    return parser


def main() -> None:
    """Command line of the twins' figures."""
    parser = _parser()
    options = parser.parse_args()
    drawn = draw_prompts(options.prompts, options.seed)
    if options.jumps:
        model, name = options.jumps, f"twins_jumps_{_family(options.jumps)}"
        figures = {"model": model, "prompts": len(drawn), **jumps(model, drawn)}
    elif options.untrained:
        model, name = options.untrained, f"twins_untrained_{model_name(options.untrained)}"
        figures = untrained(model, drawn, options.stages)
    else:
        if options.pyramid is None or options.plain is None:
            parser.error("give --pyramid and --plain, --jumps, or --untrained")
        _compare_twins(options, drawn)
        return
    write_result(name, figures, models=[model], keep=not options.quick)


def _compare_twins(options: argparse.Namespace, drawn: list[tuple[Scene, str]]) -> None:
    models = {name: getattr(options, name) for name in NAMES}
    stages = len(inspect_model(resolve_model(models["pyramid"])).defaults.pyramid_steps)
    figures: dict[str, Any] = {
        "models": {name: model_name(model) for name, model in models.items()},
        "stages": stages,
        "decoder_dtype": options.decoder_dtype,
    }
    if not options.quality_only:
        told = (drawn[0][1], options.seconds, options.repeats)
        figures["speed"] = speed(models, *told, decoder_dtype=options.decoder_dtype)
    if not options.speed_only:
        judged = {name: quality(model, drawn) for name, model in models.items()}
        figures |= {
            "prompts": len(drawn),
            "quality": judged,
            "pyramid_is_worse_on": worse_on(judged),
            "untrained": quality(models["plain"], drawn, stages),
        }
    parts = ["twins", *(["speed"] if options.speed_only else []), _family(models["plain"])]
    parts += [] if options.seconds == 20 else [f"{options.seconds:g}_s"]
    parts += [options.decoder_dtype] if options.decoder_dtype != "float32" else []
    write_result("_".join(parts), figures, models=[*models.values()], keep=not options.quick)


def _family(model: str) -> str:
    return inspect_model(resolve_model(model)).family.name


if __name__ == "__main__":
    main()
