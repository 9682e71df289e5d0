"""The presets to render with, as data and as text for a person: their figures, and what they did
on a job's own model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jobs.families import FAMILIES
from jobs.presets import PRESETS, Preset
from orchestrator.progress import clock
from orchestrator.show import counted

#: Characters of the table's columns.
_NAME, _MODEL, _CELL = 10, 28, 16

_WHAT_IT_SAYS = (
    "How many times less there is to compute, and dB to the full render (worst prompt); at 30 a "
    "change is\nplain to see, at 40 hardly, at 50 not"
)

_SETTINGS = (
    "Their settings, by family: longtake presets --json; those of a job: longtake plan film.yaml"
)

_FEWER_STEPS = (
    "Fewer steps than these figures are of leave less to skip: demo renders 14 by default; a\n"
    "render's end and its report tell what was skipped"
)

_TRY_THEM = (
    "On your own model and machine: longtake presets film.yaml, or longtake presets MODEL\n"
    "--prompt ... tries each on the beginnings of the job's longest shots"
)


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


def preset_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Presets that skip something are columns, a line for each model: a person picks one of them
    for the model that is there."""
    columns = [row for row in rows if row["accelerations"]]
    measured = {name: each for row in columns for name, each in row["measured"].items()}
    missing = sorted(set.intersection(*(set(row["not_measured"]) for row in columns)))
    lines = [
        *(f"{row['name']:<{_NAME}}{row['description']}" for row in rows),
        "",
        _WHAT_IT_SAYS,
        _line("", (row["name"] for row in columns), "measured on"),
    ]
    for model, each in measured.items():
        lines += _model_lines(model, each["on"], [row["measured"].get(model) for row in columns])
    lines += [f"{family:<{_MODEL}}not measured" for family in missing]
    lines += [
        f"{row['name']} here: {_basis_text(each)}: {_row_text(each)}"
        for row in columns
        for each in row["tried_here"]
    ]
    return "\n".join([*lines, "", _SETTINGS, _FEWER_STEPS, _TRY_THEM])


def _model_lines(model: str, on: str, each: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """A pyramid saves work too: both together are held against a render with neither."""
    lines = [_line(model, map(_measured_text, each), on)]
    over = [measured and measured["over_plain"] for measured in each]
    if any(over):
        lines.append(_line("  over no pyramid", (f"{x:.2f}x" if x else "" for x in over), ""))
    return lines


def _line(first: str, cells: Iterable[str], last: str) -> str:
    return f"{first:<{_MODEL}}{''.join(f'{text:<{_CELL}}' for text in cells)}{last}".rstrip()


def _measured_text(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return "-"
    return f"{measured['speed']:.2f}x {measured['psnr_db']:.0f} ({measured['worst_psnr_db']:.0f})"


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
    decoded = f", decoded in {report['decoder_dtype']}" if "decoder_dtype" in report else ""
    return (
        f"{report['model']}{loras}, {steps} steps of {width}x{height}, {shots} of up to {frames} "
        f"frames, {report['dtype']}{decoded} on {report['device']}"
    )


def _row_text(row: Mapping[str, Any]) -> str:
    if "refused" in row:
        return f"not for this job: {row['refused']}"
    if "failed" in row:
        return f"failed: {row['failed']}"
    if row["idle"]:
        return (
            "does nothing here, so that a render with it ends with exit 9; more steps leave more "
            "to skip"
        )
    if row["psnr_db"] is None:
        return f"steps {row['speed']:.2f}x as fast, the same frames"
    return (
        f"steps {row['speed']:.2f}x as fast, {row['psnr_db']:.0f} dB to the full render (worst "
        f"shot {row['worst_psnr_db']:.0f} dB)"
    )
