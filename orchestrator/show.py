"""Plain data made into text for a person: plans, jobs, endings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs import errors
from jobs.families import FAMILIES
from jobs.presets import PRESETS
from jobs.units import Unit
from orchestrator.engagement import Proof, idle_message, proof_lines, proofs
from orchestrator.events import EndRender
from orchestrator.inspect_job import STATES
from orchestrator.plan import Plan
from orchestrator.sizes import gb

EXIT_CODES = {
    "done": errors.EXIT_DONE,
    "failed": errors.EXIT_JOB_FAILED,
    "cannot_run": errors.EXIT_CANNOT_RUN_HERE,
    "store_failed": errors.EXIT_CANNOT_RUN_HERE,
    "conflict": errors.EXIT_STORE_CONFLICT,
    "interrupted": errors.EXIT_INTERRUPTED,
    "cancelled": errors.EXIT_CANCELLED,
    "timeout": errors.EXIT_TIMEOUT,
}


#: Characters of a line of a table, where a part of it can be shortened.
TABLE_WIDTH = 100


def next_command(verb: str, job: str, store: Path | str) -> str:
    """A command to run next, as it must be typed."""
    return shlex.join(["longtake", verb, job, "--store", str(store)])


@dataclass(frozen=True)
class Ending:
    """How a render ended, and what to run next."""

    job: str
    store: Path
    out: Path
    plan: Plan
    ended: EndRender
    engaged: Mapping[str, int] = field(default_factory=dict)  # what accelerations did, counted
    all_counted: bool = False  # whether that is of all steps
    kept: str = ""  # where another file is now that had the film's name

    @property
    def _proofs(self) -> list[Proof]:
        """Of a film that is done: before, a technique may still engage."""
        done = self.ended.outcome == "done"
        if not done:
            return []
        return proofs(self.plan.accelerations, self.engaged, complete=self.all_counted)

    @property
    def exit_code(self) -> int:
        idle = idle_message(self._proofs)
        return errors.EXIT_IDLE_ACCELERATION if idle else EXIT_CODES[self.ended.outcome]

    def as_json(self) -> dict[str, Any]:
        outcome = self.ended.outcome
        return {
            "id": self.job,
            "state": "rendering" if outcome == "conflict" else STATES[outcome],
            "outcome": outcome,
            "message": idle_message(self._proofs) or self.ended.message,
            "out": str(self.out),
            "kept": self.kept if outcome == "done" else "",
            "store": str(self.store),
            "pixel_frames": self.plan.pixel_frames,
            "fps": self.plan.fps,
            "engaged": dict(self.engaged),
            "idle": [proof.name for proof in self._proofs if proof.engaged is False],
        }

    def text(self) -> str:
        if self.ended.outcome == "done":
            seconds = self.plan.pixel_frames / self.plan.fps
            lines = [
                f"{self.out}: {seconds:.1f} s, {self.plan.pixel_frames} frames of "
                f"{self.plan.width_px}x{self.plan.height_px} at {self.plan.fps} fps",
                *proof_lines(self._proofs),
                *([f"longtake: {said}"] if (said := idle_message(self._proofs)) else []),
                f"next: {next_command('verify', self.job, self.store)}",
            ]
            return "\n".join(lines)
        if self.ended.outcome == "conflict":
            return f"longtake: {self.ended.message}"
        return (
            f"longtake: {self.ended.outcome.replace('_', ' ')}: {self.ended.message}\n"
            f"The job and all that is finished are in {self.store}. To go on: "
            f"{next_command('resume', self.job, self.store)}"
        )


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
        "preset": plan.preset,
        "accelerations": plan.accelerations.recipe(),
        "model_calls": plan.model_calls,
        "memory_model_bytes": plan.model_bytes,
        "memory_tile_bytes": plan.tile_bytes,
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
    basis = f"simulated with {workers} workers at {at}; start-up is not counted"
    return {"wall_s": run.wall_s, "first_piece_s": run.first_piece_s, "wall_basis": basis}


def _lengths(plan: Plan) -> str:
    """Which steps are meant, if they are not all of the same length."""
    usual = plan.usual_frames
    longest = {stage.longest for shot in plan.shots for stage in shot.stages}
    if longest == {usual}:
        return ""
    said = f" of {usual} latent frames, others in proportion"
    if max(longest) > usual:
        said += f" (of up to {max(longest)}: attention takes more than that)"
    return said


def preset_rows() -> list[dict[str, Any]]:
    """What ``longtake presets`` says."""
    return [
        {
            "name": preset.name,
            "description": preset.description,
            "accelerations": preset.settings.recipe(),
            "by_family": {name: each.recipe() for name, each in preset.by_family.items()},
            "with_noise": preset.with_noise.recipe(),
            "measured": {family: asdict(each) for family, each in preset.measured.items()},
            "not_measured": sorted(FAMILIES.keys() - preset.measured.keys()),
        }
        for preset in PRESETS.values()
    ]


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
            f"  with a scheduler that adds noise, not measured: {line}"
            for line in (_settings_lines(row["with_noise"]) if row["with_noise"] else [])
        ]
        lines += [
            f"  {family}: {each['speed']:.3g}x less to compute{_over_plain(each)}, "
            f"{each['psnr_db']:.0f} dB to the full render (worst prompt "
            f"{each['worst_psnr_db']:.0f} dB); {each['on']}"
            for family, each in row["measured"].items()
        ]
        if row["accelerations"] and row["not_measured"]:
            lines.append(f"  {', '.join(row['not_measured'])}: the same settings, not measured")
    return "\n".join(lines)


def _settings_lines(accelerations: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"{name}: " + ", ".join(f"{key} {value}" for key, value in settings.items())
        for name, settings in accelerations.items()
    ]


def _pyramid_lines(shot: dict[str, Any]) -> list[str]:
    """The stages of a shot, if it has several: how much of it a window holds in each."""
    if len(shot["stages"]) == 1:
        return []
    return [
        f"    stage {number}: every {stage['stride']} latent frames one, "
        f"{_count(len(stage['windows']), 'window')} of "
        f"{stage['windows'][0][1] - stage['windows'][0][0]}, {_count(stage['steps'], 'step')}"
        for number, stage in enumerate(shot["stages"], 1)
    ]


def plan_text(report: dict[str, Any]) -> str:
    width, height = report["size"]
    lines = [
        f"{report['seconds']:.1f} s, {_count(report['pixel_frames'], 'frame')} of "
        f"{width}x{height} at {report['fps']} fps, model {report['model']} in {report['dtype']}, "
        f"preset {report['preset']}",
    ]
    for number, shot in enumerate(report["shots"], 1):
        windows = shot["stages"][-1]["windows"]
        lines.append(
            f"  shot {number}: {shot['seconds']:.1f} s, "
            f"{_count(shot['latent_frames'], 'latent frame')} in {_count(len(windows), 'window')} "
            f"of {windows[0][1] - windows[0][0]}, {_count(shot['steps'], 'step')}, "
            f"{_count(shot['pieces'], 'piece')}, seed {shot['seed']}: {_shorten(shot['shows'])}"
        )
        lines += _pyramid_lines(shot)
    lines += [f"adapter: {each['path']}, scale {each['scale']:g}" for each in report["loras"]]
    lines += _settings_lines(report["accelerations"])
    lines += [
        f"model calls: {'at most ' * ('adaptive' in report['accelerations'])}"
        f"{report['model_calls']}",
        f"memory per worker: {gb(report['memory_model_bytes'])} model + "
        f"{gb(report['memory_tile_bytes'])} tile ({report['memory_basis']})",
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


def job_table(rows: list[dict[str, Any]]) -> str:
    """Two lines a job: what it is, and what became of it."""
    if not rows:
        return "no jobs"
    width = max(len(row["id"]) for row in rows)
    return "\n".join(line for row in rows for line in _job_lines(row, width))


def _job_lines(row: dict[str, Any], width: int) -> list[str]:
    created = row["created"].replace("T", " ")[:16]
    begins = f"{row['id']:{width}}  {row['state']:11}  {created}  "
    if "problem" in row:
        return [begins + row["problem"]]
    begins += f"{row['seconds']:7.1f} s  "
    became = f"film: {row['out']}" if row["state"] == "done" else _shorten(row["message"])
    about = f"{Path(row['model']).name}, preset {row['preset']}"
    return [
        begins + _shorten(row["title"], max(16, TABLE_WIDTH - len(begins))),
        f"  {about}; {became}" if became else f"  {about}",
    ]


def job_text(report: dict[str, Any]) -> str:
    lines = [
        f"{report['id']}: {report['state']}",
        f"  {report['seconds']:.1f} s, {_count(report['shots'], 'shot')}, model {report['model']}",
        f"  {report['pieces_done']} of {_count(report['pieces'], 'piece')} finished, "
        f"{_count(report['units_computed'], 'unit')} computed, {report['units_repeated']} of them "
        "again",
    ]
    lines += [f"  shot {n}: {_shorten(p)}" for n, p in enumerate(report["prompts"], 1)]
    if report["state"] == "done":
        lines.append(f"  film: {report['out']}")
        lines += [f"  {line}" for line in report["accelerations"]]
    elif report["playable"]:
        lines.append(f"  watch the first piece: {report['playable'][0]}")
    if report["message"] and report["state"] != "done":
        lines.append(f"  {report['message']}")
    if report["state"] not in ("done", "rendering"):
        lines.append(f"  next: {next_command('resume', report['id'], report['store'])}")
    return "\n".join(lines)


def verify_text(report: dict[str, Any]) -> str:
    lines = [
        f"{report['id']}: {_count(report['results'], 'result')} read, "
        f"{_count(report['pixel_frames'], 'frame')} decoded, numerics "
        f"{', '.join(report['numerics']) or 'unknown'}",
    ]
    for digest, parts in report["numerics_parts"].items():
        lines.append(f"  numerics class {digest}: {', '.join(parts)}")
    if report["seams"]:
        worst = max(report["seams"], key=lambda seam: seam["ratio"])
        lines.append(
            f"  {_count(len(report['seams']), 'window border')}, seam ratio "
            f"{report['seam_median']:.2f} (median), {worst['ratio']:.2f} (worst, at frame "
            f"{worst['frame']})"
        )
    lines += [f"  warning: {said}" for said in report["disagreements"]]
    lines += [f"  PROBLEM: {problem}" for problem in report["problems"]]
    if not report["problems"]:
        return "\n".join([*lines, "  all as recorded"])
    to_mend = next_command("resume", report["id"], report["store"])
    return "\n".join([*lines, f"  not as recorded; to make again what is damaged: {to_mend}"])


def removal_text(report: dict[str, Any]) -> str:
    """What leaves the store with a job, or has left."""
    lines = [
        f"{report['id']}: {_count(report['results'], 'result')} of its own, "
        f"{report['bytes'] / 2**20:,.1f} MiB"
    ]
    if not report["plan_readable"]:
        lines.append(
            "  its plan cannot be read: results of it that its journal does not name stay for good"
        )
    if report["results_shared"]:
        whose = "other jobs share"
        if report["unreadable_jobs"]:
            whose = f"jobs that cannot be read may share ({', '.join(report['unreadable_jobs'])})"
        lines.append(f"  left there: {_count(report['results_shared'], 'result')} that {whose}")
    if report["film"]:
        lines.append(f"  the film stays, if it is there: {report['film']}")
    return "\n".join(lines)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
