"""Plain data made into text for a person: jobs and endings. Plans are in ``show_plan``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs import errors
from orchestrator.engagement import Proof, idle_message, proof_lines, proofs
from orchestrator.events import EndRender
from orchestrator.inspect_job import STATES
from orchestrator.plan import Plan

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

#: Of the parts of a film that were computed alike, so many are named.
MOST_PARTS = 12


def next_command(verb: str, job: str, store: Path | str, address: str | None = None) -> str:
    """A command to run next, as it must be typed; ``address``: of the Ray that it runs on."""
    where = [] if address is None else ["--address", address]
    return shlex.join(["longtake", verb, job, "--store", str(store), *where])


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
    address: str | None = None  # of the Ray that it was rendered on, unless that was our own

    @property
    def _proofs(self) -> list[Proof]:
        """Of a film that is done: before, a technique may still engage."""
        done = self.ended.outcome == "done"
        if not done:
            return []
        return proofs(self.plan, self.engaged, complete=self.all_counted)

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
            f"{next_command('resume', self.job, self.store, self.address)}"
        )


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
    became = _film_line(row) if row["state"] == "done" else shorten(row["message"])
    about = f"{Path(row['model']).name}, {asked_for(row)}"
    return [
        begins + shorten(row["title"], max(16, TABLE_WIDTH - len(begins))),
        f"  {about}; {became}" if became else f"  {about}",
    ]


def asked_for(report: dict[str, Any]) -> str:
    """The preset and the job's own accelerations, as far as there are any."""
    own = ["own accelerations"] if report["own_accelerations"] else []
    preset = [] if own and report["preset"] == "exact" else [f"preset {report['preset']}"]
    return ", ".join([*preset, *own])


def _film_line(report: dict[str, Any]) -> str:
    """Where a finished job's film is, or is not."""
    if report["film"]:
        return f"film: {report['film']}"
    return "film: not there" if report["replaced_by"] else f"film: {report['out']}, not there"


def job_text(report: dict[str, Any]) -> str:
    lines = [
        f"{report['id']}: {report['state']}",
        f"  {report['seconds']:.1f} s, {counted(report['shots'], 'shot')}, "
        f"model {report['model']}, {asked_for(report)}",
        f"  {report['pieces_done']} of {counted(report['pieces'], 'piece')} finished, "
        f"{counted(report['units_computed'], 'unit')} computed, {report['units_repeated']} of them "
        "again",
    ]
    lines += [f"  shot {n}: {shorten(p)}" for n, p in enumerate(report["prompts"], 1)]
    if report["state"] == "done":
        lines.append(f"  {_film_line(report)}")
        lines += _replaced_line(report)
        lines += [f"  {line}" for line in report["accelerations"]]
    elif report["playable"]:
        lines.append(f"  watch the first piece: {report['playable'][0]}")
    if report["message"] and report["state"] != "done":
        lines.append(f"  {report['message']}")
    if report["state"] not in ("done", "rendering"):
        lines.append(f"  next: {next_command('resume', report['id'], report['store'])}")
    return "\n".join(lines)


def _replaced_line(report: dict[str, Any]) -> list[str]:
    """Whose film has the name of a job's film, if it is another's."""
    if not report["replaced_by"]:
        return []
    return [f"  {report['out']} is now the film of job {report['replaced_by']}"]


def verify_text(report: dict[str, Any]) -> str:
    lines = [
        f"{report['id']}: {counted(report['results'], 'result')} read, "
        f"{counted(report['pixel_frames'], 'frame')} decoded, numerics "
        f"{', '.join(report['numerics']) or 'unknown'}",
    ]
    for digest, parts in report["numerics_parts"].items():
        more = f" and {len(parts) - MOST_PARTS} more" if len(parts) > MOST_PARTS else ""
        lines.append(f"  numerics class {digest} finished {', '.join(parts[:MOST_PARTS])}{more}")
    if report["seams"]:
        worst = max(report["seams"], key=lambda seam: seam["ratio"])
        lines.append(
            f"  {counted(len(report['seams']), 'window border')}, seam ratio "
            f"{report['seam_median']:.2f} (median), {worst['ratio']:.2f} (worst, at frame "
            f"{worst['frame']}); 1 is as even as inside a window"
        )
    if report["replaced_by"] and report["film"]:
        lines += [*_replaced_line(report), f"  the film of this job is kept: {report['film']}"]
    lines += [f"  warning: {said}" for said in [*report["disagreements"], *report["made_do"]]]
    lines += [f"  PROBLEM: {problem}" for problem in report["problems"]]
    if not report["problems"]:
        return "\n".join([*lines, "  all as recorded"])
    to_mend = next_command("resume", report["id"], report["store"])
    return "\n".join([*lines, f"  not as recorded; to make again what is damaged: {to_mend}"])


def removal_text(report: dict[str, Any]) -> str:
    """What leaves the store with a job, or has left."""
    lines = [
        f"{report['id']}: {counted(report['results'], 'result')} of its own, "
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
        lines.append(f"  left there: {counted(report['results_shared'], 'result')} that {whose}")
    if report["film"]:
        lines.append(f"  the film stays: {report['film']}")
    return "\n".join(lines)


def counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
