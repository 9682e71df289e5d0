"""A plan as data and as text for a person."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from jobs.attention_plan import strategy_shares
from jobs.units import Unit
from orchestrator.engagement import own_accelerations
from orchestrator.plan import Plan
from orchestrator.show import asked_for, counted, shorten
from orchestrator.sizes import gb
from orchestrator.tile_memory import checkpoint_bytes


def plan_report(plan: Plan, workers: int, step_s: float | None) -> dict[str, Any]:
    """What ``longtake plan`` says. Time is simulated if a step's seconds are known."""
    report: dict[str, Any] = {
        "title": plan.title,
        "model": plan.model,
        "loras": [asdict(lora) for lora in plan.loras],
        "size": [plan.width_px, plan.height_px],
        "fps": plan.fps,
        "pixel_frames": plan.pixel_frames,
        "seconds": plan.pixel_frames / plan.fps,
        "dtype": plan.dtype,
        "decoder_dtype": plan.decoder_dtype,
        "preset": plan.preset,
        "accelerations": plan.accelerations.recipe(),
        "own_accelerations": own_accelerations(plan),
        "model_calls": plan.model_calls,
        "memory_model_bytes": plan.model_bytes,
        "memory_tile_bytes": plan.tile_bytes,
        "memory_encoding_bytes": plan.encoding_bytes,
        "memory_basis": "estimated from the model's configuration",
        "checkpoint_every": plan.checkpoint_every,
        "checkpoint_bytes": checkpoint_bytes(plan, workers),
        "workers": workers,
        "warnings": list(plan.warnings),
        "shots": [_shot_report(shot) for shot in plan.shots],
    }
    return report | _time_report(plan, workers, step_s)


def _shot_report(shot: Any) -> dict[str, Any]:
    render = shot.render
    return {
        "prompt": render.prompt,
        "image": None if render.image is None else render.image.path,
        "shows": render.shows,
        "seed": render.seed,
        "repeated_noise": render.repeated_noise and asdict(render.repeated_noise),
        "seconds": render.pixel_frames / render.fps,
        "pixel_frames": render.pixel_frames,
        "latent_frames": render.latent_frames,
        "steps": render.steps,
        "stages": [
            {
                "stride": stage.stride,
                "steps": stage.steps,
                "windows": [[w.start, w.stop] for w in stage.windows],
            }
            for stage in shot.stages
        ],
        "regions": 1,
        "pieces": len(shot.pieces),
    }


def _time_report(plan: Plan, workers: int, step_s: float | None) -> dict[str, Any]:
    if step_s is None:
        basis = "unknown until a step was measured; give --step-seconds for an estimate"
        return {"wall_s": None, "wall_basis": basis}
    from orchestrator.roster import Policy
    from orchestrator.simulator import Simulation

    def cost(unit: Unit) -> float:
        small = unit.kind != "step" or plan.is_last_step(unit)
        whole_s = step_s * plan.length(unit)
        return whole_s * (0.3 if unit.kind == "decode" else 0.02) if small else whole_s

    run = Simulation(plan, Policy(workers=workers), cost=cost).run()
    at = f"{step_s:g} s a step{_lengths(plan)}"
    basis = f"simulated with {counted(workers, 'worker')} at {at}; start-up is not counted"
    return {"wall_s": run.wall_s, "first_piece_s": run.first_piece_s, "wall_basis": basis}


def _lengths(plan: Plan) -> str:
    """Which steps are meant, if they are not all of the same length."""
    usual = plan.usual_frames
    if all(stage.longest == usual for shot in plan.shots for stage in shot.stages):
        return ""
    said = f" of {usual} latent frames, others in proportion"
    if plan.longest_frames > usual:
        said += f" (of up to {plan.longest_frames}: attention takes more than that)"
    return said


def _settings_lines(accelerations: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"{name}: " + ", ".join(f"{key} {_short(key, value)}" for key, value in settings.items())
        for name, settings in accelerations.items()
    ]


def _short(key: str, value: Any) -> str:
    """A setting; of plans of attention, one a stage, how much each of their strategies does."""
    if key != "stages":
        return str(value)
    shares = [strategy_shares(plan["rows"]) for plan in value]
    each = (", ".join(f"{name} {part:.0%}" for name, part in s.items() if part) for s in shares)
    return f"of {' | '.join(each)} of layers and steps (--json has all)"


def _pyramid_lines(shot: dict[str, Any]) -> list[str]:
    """The stages of a shot, if it has several: which frames each has, in how many windows."""
    if len(shot["stages"]) == 1:
        return []
    return [
        f"    stage {number}: {_frames_of(stage['stride'])}, "
        f"{counted(len(stage['windows']), 'window')} of "
        f"{stage['windows'][0][1] - stage['windows'][0][0]}, {counted(stage['steps'], 'step')}"
        for number, stage in enumerate(shot["stages"], 1)
    ]


def _frames_of(stride: int) -> str:
    return "every latent frame" if stride == 1 else f"a frame for every {stride} latent frames"


def _before(encoding_bytes: int) -> str:
    return f"; before the first, {gb(encoding_bytes)} with encoders" if encoding_bytes else ""


def _checkpoint_line(report: dict[str, Any]) -> str:
    every, at_most_bytes = report["checkpoint_every"], report["checkpoint_bytes"]
    if not at_most_bytes:
        return f"no checkpoint but finished latents: no stage has more than {every} steps"
    return (
        f"checkpoint every {every} steps: with {counted(report['workers'], 'worker')} up to "
        f"{gb(at_most_bytes)} on disk, beside finished latents"
    )


def _noise(repeated: dict[str, Any] | None) -> str:
    if repeated is None:
        return ""
    return f", {repeated['share']:.0%} of noise repeated every {repeated['period']} frames"


def _decoding(report: dict[str, Any]) -> str:
    dtype = report["decoder_dtype"]
    return "" if dtype == report["dtype"] else f"decoded in {dtype}, "


def plan_text(report: dict[str, Any]) -> str:
    width, height = report["size"]
    lines = [
        f"{report['seconds']:.1f} s, {counted(report['pixel_frames'], 'frame')} of "
        f"{width}x{height} at {report['fps']} fps, model {report['model']} in {report['dtype']}, "
        f"{_decoding(report)}"
        f"{asked_for(report)}",
    ]
    for number, shot in enumerate(report["shots"], 1):
        windows = shot["stages"][-1]["windows"]
        lines.append(
            f"  shot {number}: {shot['seconds']:.1f} s, "
            f"{counted(shot['latent_frames'], 'latent frame')} in "
            f"{counted(len(windows), 'window')} of {windows[0][1] - windows[0][0]}, "
            f"{counted(shot['steps'], 'step')}, "
            f"{counted(shot['pieces'], 'piece')}, seed {shot['seed']}"
            f"{_noise(shot['repeated_noise'])}: {shorten(shot['shows'])}"
        )
        lines += _pyramid_lines(shot)
    lines += [f"adapter: {each['path']}, scale {each['scale']:g}" for each in report["loras"]]
    lines += _settings_lines(report["accelerations"])
    lines += [
        f"model calls: {'at most ' * ('adaptive' in report['accelerations'])}"
        f"{report['model_calls']}",
        f"memory per worker: {gb(report['memory_model_bytes'])} model + "
        f"{gb(report['memory_tile_bytes'])} tile{_before(report['memory_encoding_bytes'])} "
        f"({report['memory_basis']})",
        _checkpoint_line(report),
    ]
    wall = report["wall_s"]
    lines.append(
        f"time: {report['wall_basis']}"
        if wall is None
        else f"time: {wall:.0f} s "
        f"({report['wall_basis']}); first seconds after {report['first_piece_s']:.0f} s"
    )
    lines += [f"warning: {said}" for said in report["warnings"]]
    return "\n".join(lines)
