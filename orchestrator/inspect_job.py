"""What the store knows of a job: for ``ls``, ``show`` and ``resume``. Reads only."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.errors import CannotRunHere, DamagedRecord, StoreError
from jobs.journal import Journal
from jobs.lease import is_held
from jobs.results import ResultRecord, Results
from jobs.store import JobFolder, Store
from orchestrator.engagement import (
    all_counted,
    engaged,
    idle_message,
    own_accelerations,
    proof_lines,
    proofs,
)
from orchestrator.plan import Plan
from orchestrator.prepare import plan_from_json
from orchestrator.recipes import Recipes

#: How a render's outcome reads as the state of its job.
STATES: dict[str, str] = {
    "done": "done",
    "failed": "failed",
    "cannot_run": "failed",
    "store_failed": "failed",
    "conflict": "interrupted",
    "interrupted": "interrupted",
    "cancelled": "interrupted",
    "timeout": "interrupted",
}


def journal_records(folder: JobFolder) -> list[dict[str, Any]]:
    return Journal.open(folder, "reader").records()


def job_state(folder: JobFolder, records: list[dict[str, Any]]) -> str:
    """planned, rendering, interrupted, failed or done."""
    if is_held(folder.lease_path):
        return "rendering"
    last = _last_turn(records)
    if not last:
        return "planned"
    if last["type"] == "epoch":
        return "interrupted"
    return STATES.get(last["outcome"], "interrupted")


def _last_turn(records: list[dict[str, Any]]) -> dict[str, Any]:
    """How the last driver ended, or that it began; empty if there was none."""
    turns = [record for record in records if record["type"] in ("epoch", "ended")]
    return turns[-1] if turns else {}


def _why(last: dict[str, Any]) -> str:
    """In words, why a job is in its state; "" if it was never rendered."""
    if last.get("type") == "epoch":
        return "its process ended without a word"
    return str(last.get("message", ""))


def engaged_in(folder: JobFolder, plan: Plan) -> tuple[Counter[str], bool]:
    """What accelerations did in a job, and whether that is of all its steps; nothing if its
    journal cannot be read."""
    records = _readable(folder)
    return engaged(records), all_counted(records, plan)


def stored_units(folder: JobFolder) -> dict[str, str]:
    """The recipe of every result that was stored for a job, and its unit; nothing if its journal
    cannot be read. Some may be deleted since."""
    return {r["key"]: r["unit"] for r in _readable(folder) if r["type"] == "stored"}


def film_path(folder: JobFolder) -> Path | None:
    """Where the film was last to be written."""
    path = _out(_readable(folder))
    return Path(path) if path else None


def _out(records: list[dict[str, Any]]) -> str:
    return next((str(r["path"]) for r in records[::-1] if r["type"] == "out"), "")


def kept_path(folder: JobFolder) -> str:
    """Where another file is now that had the film's name when it was written last; "" if none."""
    return next((r.get("kept", "") for r in _readable(folder)[::-1] if r["type"] == "film"), "")


def _readable(folder: JobFolder) -> list[dict[str, Any]]:
    try:
        return journal_records(folder)
    except (StoreError, CannotRunHere):
        return []


def summary(folder: JobFolder) -> dict[str, Any]:
    """A line of ``ls``. A job that cannot be read is listed as such, and hides no other."""
    about = _about(folder)
    try:
        return about | {"created": folder.created().isoformat(timespec="seconds")}
    except OSError:
        return about | {"created": ""}


def _about(folder: JobFolder) -> dict[str, Any]:
    from orchestrator.films import find_film  # reads films, as nothing else here does

    try:
        plan = plan_from_json(folder.plan())
        records = journal_records(folder)
        state = job_state(folder, records)
    except DamagedRecord as damage:
        return {"id": folder.id, "state": "damaged", "problem": str(damage)}
    except (StoreError, OSError) as error:
        return {"id": folder.id, "state": "unreadable", "problem": str(error)}
    except CannotRunHere as other:
        return {"id": folder.id, "state": "other version", "problem": str(other)}
    film = find_film(folder)
    return {
        "id": folder.id,
        "state": state,
        "message": "" if state == "rendering" else _why(_last_turn(records)),
        "out": _out(records),
        "film": str(film.path or ""),
        "replaced_by": film.replaced_by,
        "model": plan.model,
        "preset": plan.preset,
        "own_accelerations": own_accelerations(plan),
        "title": plan.title or plan.shots[0].render.shows,
        "seconds": plan.pixel_frames / plan.fps,
        "size": [plan.width_px, plan.height_px],
        "shots": len(plan.shots),
    }


def piece_records(plan: Plan, job: str, results: Results) -> list[ResultRecord | None]:
    """The records of the film's pieces, in film order; None for one that is not there, or is
    damaged."""
    recipes = Recipes(plan, job)
    found: list[ResultRecord | None] = []
    for goal in plan.goals():
        try:
            found.append(results.lookup(recipes.key(goal)))
        except DamagedRecord:
            found.append(None)
    return found


def frames_digest(records: list[ResultRecord | None]) -> str | None:
    """sha256 over the sha256 of every RGB frame before encoding; None if any is missing."""
    digest = hashlib.sha256()
    for record in records:
        if record is None:
            return None
        for frame in json.loads(record.extra["frame_sha256"]):
            digest.update(bytes.fromhex(frame))
    return digest.hexdigest()


def computed_units(folder: JobFolder) -> Counter[str]:
    """How often each unit was computed for this job, by the workers' own logs."""
    logs = sorted(folder.logs.glob("*.jsonl"))
    return Counter(row["unit"] for log in logs for row in log_rows(log))


def log_rows(log: Path) -> Iterator[dict[str, Any]]:
    """What a worker's log says, line by line; a line that it was killed at is passed over."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "unit" in row:
            yield row


def report(store: Store, folder: JobFolder) -> dict[str, Any]:
    """All that ``show`` says."""
    plan = plan_from_json(folder.plan())
    records = journal_records(folder)
    pieces = piece_records(plan, folder.id, Results(store))
    counts = computed_units(folder)
    return summary(folder) | {
        "fps": plan.fps,
        "steps": plan.shots[0].render.steps,
        "pieces": len(pieces),
        "pieces_done": sum(record is not None for record in pieces),
        "playable": _playable(store, pieces),
        "engaged": engaged(records),
        "accelerations": engagement_lines(plan, records),
        "frames_sha256": frames_digest(pieces),
        "units_computed": sum(counts.values()),
        "units_repeated": sum(count - 1 for count in counts.values()),
        "prompts": [shot.render.shows for shot in plan.shots],
        "store": str(store.root),
    }


def engagement_lines(plan: Plan, records: list[dict[str, Any]]) -> list[str]:
    """What each that was asked for did; and that one did nothing."""
    complete = all_counted(records, plan)
    found = proofs(plan, engaged(records), complete=complete)
    said = idle_message(found)
    return [*proof_lines(found), *([said] if said else [])]


def _playable(store: Store, pieces: list[ResultRecord | None]) -> list[str]:
    """Files of the finished pieces, in film order: each plays by itself."""
    results = Results(store)
    return [str(results.path(record.recipe)) for record in pieces if record is not None]
