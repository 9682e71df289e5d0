"""``longtake verify``: read a finished job again and compare it with its own record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np

from jobs.errors import BadJob, LongtakeError
from jobs.files import file_sha256
from jobs.journal import Journal
from jobs.results import ResultRecord, Results
from jobs.store import JobFolder, Store
from jobs.units import Unit
from orchestrator import inspect_job
from orchestrator.borders import borders, interiors
from orchestrator.films import Film, find_film
from orchestrator.plan import Plan
from orchestrator.prepare import plan_from_json
from orchestrator.recipes import Recipes
from orchestrator.show import next_command
from workers.films import iter_frames
from workers.seams import SeamMeter

#: The records of the film's pieces, in film order; None for one that cannot be read.
Pieces = dict[Unit, ResultRecord | None]


def verify(store: Store, folder: JobFolder) -> dict[str, Any]:
    """Check every stored result and every frame of the film. Raises BadJob if it isn't done."""
    plan = plan_from_json(folder.plan())
    journal, problems = _journal(folder)
    state = inspect_job.job_state(folder, journal)
    if state != "done" and not problems:
        to_finish = next_command("resume", folder.id, store.root)
        fix = "wait until it is" if state == "rendering" else f"finish it first: {to_finish}"
        raise BadJob(f"job {folder.id} is {state}, not done; {fix}")
    results = Results(store)
    keys = dict(_lasting(plan, folder.id))
    records = _check_results(keys, results, problems)
    numerics = _check_numerics(plan, records, problems)
    pieces = {goal: records.get(goal) for goal in plan.goals()}
    film = find_film(folder)
    frames, seams = _check_film(plan, film, results, pieces, problems)
    if not problems and film.path is not None:
        _check_bytes(film.path, journal, problems)
    return {
        "id": folder.id,
        "store": str(store.root),
        "film": str(film.path or ""),
        "out": str(film.name or ""),
        "replaced_by": film.replaced_by,
        "results": len(records),
        "pixel_frames": frames,
        "numerics": {digest: len(parts) for digest, parts in numerics.items()},
        "numerics_parts": numerics if len(numerics) > 1 else {},
        "frames_sha256": inspect_job.frames_digest(list(pieces.values())),
        "seams": seams,
        "disagreements": [row["message"] for row in journal if row["type"] == "disagreement"],
        "made_do": [row["message"] for row in journal if row["type"] == "made_do"],
        "seam_median": median(seam["ratio"] for seam in seams) if seams else None,
        "problems": problems,
    }


def _journal(folder: JobFolder) -> tuple[list[dict[str, Any]], list[str]]:
    """The journal's records, none if it cannot be read; and what is wrong with any of its files,
    from the first on."""
    records: list[dict[str, Any]] = []
    try:
        journal = Journal.open(folder, "verify")
        records = journal.records()
        for _ in journal.entries():
            pass
    except LongtakeError as error:
        return records, [str(error)]
    return records, []


def _lasting(plan: Plan, job: str) -> Iterator[tuple[Unit, str]]:
    """The units whose results outlive the render: embeddings, finished latents, pieces."""
    recipes = Recipes(plan, job)
    for unit in plan.units():
        if plan.is_durable(unit) and (unit.kind != "step" or plan.is_last_step(unit)):
            yield unit, recipes.key(unit)


def _check_results(
    keys: dict[Unit, str], results: Results, problems: list[str]
) -> dict[Unit, ResultRecord]:
    """Hash every lasting result."""
    found = {}
    for unit, key in keys.items():
        try:
            record = results.lookup(key)
            if record is None:
                if unit.kind != "encode":  # a film that is done needs no prompts again
                    problems.append(f"{unit}: its result {key} is missing")
                continue
            results.read(key)
            found[unit] = record
        except LongtakeError as error:
            problems.append(f"{unit}: {error}")
    return found


def _check_numerics(
    plan: Plan, records: dict[Unit, ResultRecord], problems: list[str]
) -> dict[str, list[str]]:
    """The numerics classes of the results, and which results each has."""
    classes: dict[str, list[str]] = {}
    for unit, record in records.items():
        classes.setdefault(record.numerics, []).append(str(unit))
    if plan.numerics == "pinned" and len(classes) > 1:
        problems.append(
            f"the job pins its numerics, but its results are of {len(classes)} classes: "
            f"{', '.join(f'{digest} ({len(parts)})' for digest, parts in classes.items())}"
        )
    return classes


def _check_film(
    plan: Plan,
    found: Film,
    results: Results,
    pieces: Pieces,
    problems: list[str],
) -> tuple[int, list[dict[str, Any]]]:
    """Decode every frame of the film, once; returns how many there are, and the seams."""
    film = found.path
    if film is None:
        problems.append(_no_film(found))
        return 0, []
    count, wrong = 0, 0
    meter = SeamMeter(borders(plan), interiors(plan))
    try:
        for frame, stored in zip_longest(iter_frames(film), _stored(plan, results, pieces)):
            if not _is_stored(frame, stored):
                wrong += 1
                if wrong == 1:
                    problems.append(f"{film}: frame {count} is not what was stored")
            if frame is not None:
                count += 1
                meter.add(frame)
        _check_facts(plan, film, count, problems)
    except LongtakeError as error:
        problems.append(str(error))
        return count, []
    if wrong > 1:
        problems.append(f"{film}: {wrong} frames are not what was stored")
    return count, meter.ratios()


def _no_film(found: Film) -> str:
    if found.name is None:
        return "the journal does not say where the film is; `longtake resume` writes it"
    if not found.replaced_by:
        return f"the film {found.name} is missing; `longtake resume` writes it again"
    return (
        f"the film {found.name} was replaced by that of job {found.replaced_by}, and is not kept "
        "beside it; `longtake resume` writes it again, and keeps the other"
    )


def _check_bytes(film: Path, journal: list[dict[str, Any]], problems: list[str]) -> None:
    """The film's file, when its frames are right: its metadata may have been changed."""
    written = [row["sha256"] for row in journal if row["type"] == "film"]
    if written and file_sha256(film) != written[-1]:
        problems.append(f"{film}: its frames are right, but the file is not as it was written")


def _stored(plan: Plan, results: Results, pieces: Pieces) -> Iterator[np.ndarray | str]:
    """What each frame of the film must be, by the stored pieces: the frame, or, if the codec is
    lossless, the hash that its worker took before encoding; "" where the piece cannot be read."""
    for piece, record in pieces.items():
        if record is None:
            yield from [""] * _length(plan, piece)
        elif plan.codec == "ffv1":
            yield from json.loads(record.extra["frame_sha256"])
        else:
            yield from iter_frames(results.path(record.recipe))


def _is_stored(frame: np.ndarray | None, stored: np.ndarray | str | None) -> bool:
    if frame is None or stored is None:
        return False
    if isinstance(stored, str):
        return not stored or hashlib.sha256(np.ascontiguousarray(frame).data).hexdigest() == stored
    return np.array_equal(frame, stored)


def _length(plan: Plan, piece: Unit) -> int:
    """Pixel frames of a piece."""
    shot = plan.shots[piece.shot]
    low, high = plan.geometry.pixel_range(*shot.pieces[piece.index])
    return min(high, shot.render.pixel_frames) - low


def _check_facts(plan: Plan, film: Path, pixel_frames: int, problems: list[str]) -> None:
    with av.open(str(film)) as container:
        fps = container.streams.video[0].average_rate
    if pixel_frames != plan.pixel_frames or fps != plan.fps:
        problems.append(
            f"{film} has {pixel_frames} frames at {fps} fps, the plan says "
            f"{plan.pixel_frames} at {plan.fps}"
        )
