"""A plan, and the presets to plan with, as data and as text for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jobs.attention_plan import strategy_shares
from jobs.families import FAMILIES
from jobs.presets import PRESETS, Preset
from jobs.units import Unit
from orchestrator.engagement import own_accelerations
from orchestrator.plan import Plan
from orchestrator.progress import clock
from orchestrator.show import asked_for, counted, shorten
from orchestrator.sizes import gb


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


def preset_rows(tried: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """What ``longtake presets`` says, with all that ``longtake presets JOB`` has found here."""
    return [
        {
            "name": preset.name,
            "description": preset.description,
            "accelerations": preset.settings.recipe(),
            "by_family": {name: each.recipe() for name, each in preset.by_family.items()},
            "with_noise": {name: each.recipe() for name, each in preset.with_noise.items()},
            "measured": {family: asdict(each) for family, each in preset.measured.items()},
            "not_measured": sorted(FAMILIES.keys() - preset.measured.keys()),
            "tried_here": [
                {name: each[name] for name in each if name != "presets"} | row
                for each in tried
                for row in each["presets"]
                if row["name"] == preset.name and _is_as_now(row, preset, each["family"])
            ],
        }
        for preset in PRESETS.values()
    ]


def _is_as_now(row: Mapping[str, Any], preset: Preset, family: str) -> bool:
    """Whether a row is of a preset's settings as they are in this version; slices change none."""
    noisy = preset.with_noise.get(family, preset.settings_of(family))
    now = [preset.settings_of(family).recipe(), noisy.recipe()]
    found = dict(row.get("accelerations", {"failed": None}))
    found.pop("slicing", None)
    return found in now


_FEWER_STEPS = (
    "Fewer steps than these figures are of leave less to skip: demo renders 14 by default; a "
    "render's end and its report tell what was skipped"
)


_TRY_THEM = (
    "On your own model and machine: longtake presets film.yaml, or longtake presets MODEL --prompt "
    "... tries each on the beginnings of the job's longest shots"
)


def _over_plain(measured: dict[str, Any]) -> str:
    """A pyramid saves work too: both together are held against a render with neither."""
    speed = measured["over_plain"]
    return "" if speed is None else f" ({speed:.3g}x with the pyramid, over none)"


def preset_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        lines.append(f"{row['name']}: {row['description']}")
        lines += [f"  {line}" for line in _settings_lines(row["accelerations"])]
        lines += [
            f"  of {family}: {line}"
            for family, settings in row["by_family"].items()
            for line in _settings_lines(settings)
        ]
        lines += [
            f"  of {family} with a scheduler that adds noise: {line}"
            for family, settings in row["with_noise"].items()
            for line in _settings_lines(settings)
        ]
        lines += [
            f"  {family}: {each['speed']:.3g}x less to compute{_over_plain(each)}, "
            f"{each['psnr_db']:.0f} dB to the full render (worst prompt "
            f"{each['worst_psnr_db']:.0f} dB); {each['on']}"
            for family, each in row["measured"].items()
        ]
        if row["accelerations"] and row["not_measured"]:
            lines.append(f"  {', '.join(row['not_measured'])}: the same settings, not measured")
        if row["accelerations"]:
            lines += [f"  here: {_basis_text(e)}: {_row_text(e)}" for e in row["tried_here"]]
    return "\n".join([*lines, _FEWER_STEPS, _TRY_THEM])


def tried_text(report: Mapping[str, Any]) -> str:
    """What ``longtake presets JOB`` says."""
    lines = [f"{_basis_text(report)}; a step in full took {report['step_s']:.3g} s"]
    for row in report["presets"]:
        did = "".join(f"; {each}" for each in row.get("did", ()))
        lines.append(f"{row['name']}: {_row_text(row)}{_film_text(row, report)}{did}")
    own = any(row["name"] not in PRESETS for row in report["presets"])
    alone = ", without accelerations of the job's own but slicing" if own else ""
    lines.append(f"use one: preset: NAME in the job file, or --preset NAME{alone}")
    return "\n".join(lines)


def _film_text(row: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """How long the film's own steps would take, where it did something."""
    if "speed" not in row or row["idle"]:
        return ""
    film_s = report["film_steps"] * report["step_s"] / row["speed"]
    return f"; about {clock(film_s)} for the film's {counted(report['film_steps'], 'step')} here"


def _basis_text(report: Mapping[str, Any]) -> str:
    width, height = report["size"]
    steps = "-".join(map(str, report["stage_steps"]))
    shots, frames = counted(len(report["pixel_frames"]), "shot"), max(report["pixel_frames"])
    loras = "".join(f" with {name} at {scale:g}" for name, scale in report["loras"])
    return (
        f"{report['model']}{loras}, {steps} steps of {width}x{height}, {shots} of up to {frames} "
        f"frames, {report['dtype']} on {report['device']}"
    )


def _row_text(row: Mapping[str, Any]) -> str:
    if "refused" in row:
        return f"not for this job: {row['refused']}"
    if "failed" in row:
        return f"failed: {row['failed']}"
    if row["idle"]:
        return "does nothing here, so that a render with it ends with exit 9"
    if row["psnr_db"] is None:
        return f"steps {row['speed']:.2f}x as fast, the same frames"
    return (
        f"steps {row['speed']:.2f}x as fast, {row['psnr_db']:.0f} dB to the full render (worst "
        f"shot {row['worst_psnr_db']:.0f} dB)"
    )


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
    """The stages of a shot, if it has several: how much of it a window holds in each."""
    if len(shot["stages"]) == 1:
        return []
    return [
        f"    stage {number}: every {stage['stride']} latent frames one, "
        f"{counted(len(stage['windows']), 'window')} of "
        f"{stage['windows'][0][1] - stage['windows'][0][0]}, {counted(stage['steps'], 'step')}"
        for number, stage in enumerate(shot["stages"], 1)
    ]


def _before(encoding_bytes: int) -> str:
    return f"; before the first, {gb(encoding_bytes)} with encoders" if encoding_bytes else ""


def _noise(repeated: dict[str, Any] | None) -> str:
    if repeated is None:
        return ""
    return f", {repeated['share']:.0%} of noise repeated every {repeated['period']} frames"


def _decoding(dtype: str) -> str:
    return "" if dtype == "float32" else f"decoded in {dtype}, "


def plan_text(report: dict[str, Any]) -> str:
    width, height = report["size"]
    lines = [
        f"{report['seconds']:.1f} s, {counted(report['pixel_frames'], 'frame')} of "
        f"{width}x{height} at {report['fps']} fps, model {report['model']} in {report['dtype']}, "
        f"{_decoding(report['decoder_dtype'])}"
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
        f"checkpoint every {report['checkpoint_every']} steps",
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
