"""``longtake report``: how a film holds together, as data: seams, colours, time.

Of a job's film, with its plan and its workers' logs; or of any video file, whose windows are its
seconds.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL.Image import Image

from jobs.errors import BadJob
from jobs.store import JobFolder
from orchestrator import inspect_job
from orchestrator.borders import borders, interiors, window_ranges
from orchestrator.engagement import tile_steps
from orchestrator.films import find_film
from orchestrator.plan import Plan
from orchestrator.prepare import plan_from_json
from orchestrator.report_seams import (
    border_frames,
    border_pictures,
    changes,
    meter_of,
    worst_borders,
)
from orchestrator.show import next_command
from workers.colours import ColourMeter
from workers.contact_sheet import Row, sheet_of
from workers.fidelity import compare
from workers.films import iter_frames, read_film, why_no_film
from workers.seams import SeamMeter

#: How many shots a report shows in pictures, so that its page opens, and how large a frame is: in
#: the film at a glance, and beside a reference.
MOST_ROWS = 60
GLANCE_PX = 240
BESIDE_PX = 720

#: A shot shorter than this has no slope of its colours: a small change would read as a large one.
LEAST_SLOPE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """What a report shows of a film; None where there is nothing to show."""

    sheet: Image | None  # frames of every shot
    worst: Image | None  # of every shot, the frames that lie farthest from the reference, beside it
    borders: Image | None  # before and after the borders that show most


def report_job(folder: JobFolder, reference: Path | None) -> tuple[dict[str, Any], Pictures]:
    """All that a finished job's film says of itself, and pictures of it. Raises BadJob."""
    plan = plan_from_json(folder.plan())
    found = find_film(folder)
    film = found.path
    to_write = next_command("resume", folder.id, folder.store)
    if film is None:
        state = inspect_job.job_state(folder, inspect_job.journal_records(folder))
        lost, none = f"has lost its film {found.name}", f"is {state}, with no film yet"
        where = lost if state == "done" else none
        raise BadJob(f"job {folder.id} {where}; {to_write} writes it")
    seams = SeamMeter(borders(plan), interiors(plan))
    rows = [
        Row(shot.render.shows, first, first + shot.render.pixel_frames)
        for shot in plan.shots
        for first in [shot.first_pixel_frame]
    ]
    colours, sheet = _watch(film, rows, [seams])
    if colours.frames != plan.pixel_frames:
        raise BadJob(
            f"{film} has {colours.frames} frames, not the {plan.pixel_frames} of job {folder.id}; "
            f"{to_write} writes it again"
        )
    ratios = seams.ratios()
    shots = []
    for number, row in enumerate(rows):
        mine = [ratio for ratio in ratios if ratio["shot"] == number]
        drift = colours.drift(window_ranges(plan, number), plan.fps)
        stages = len(plan.shots[number].stages)
        told = _shot(row, drift, mine, plan.fps)
        shots.append(told | {"stages": stages, "beat": seams.beat(number)})
    records = inspect_job.journal_records(folder)
    said: dict[str, Any] = {
        "job": folder.id,
        "film": str(film),
        "fps": plan.fps,
        "pixel_frames": plan.pixel_frames,
        "seam_median": _median(ratios),
        "changes": None,
        "shots": shots,
        "time": _times(folder),
        "memory": _memory(folder, plan, records),
        "accelerations": inspect_job.engagement_lines(plan, records),
        "tiles": tile_steps(records),
    }
    return _with_pictures(said, film, reference, rows, sheet)


def report_file(
    film: Path, reference: Path | None, borders_s: Sequence[float] = ()
) -> tuple[dict[str, Any], Pictures]:
    """Of a video file that no job of ours made: its shots, as far as cuts are plain, their colours,
    second by second, how much every frame changes, and how much those at ``borders_s``. Raises
    BadJob for a file that is no film, or for a border that is not in it, DamagedRecord for a film
    that cannot be read to its end."""
    if why := why_no_film(film):
        raise BadJob(f"{film} {why}; give a film file, or a job: `longtake ls` lists them")
    facts = read_film(film)
    fps = float(facts.fps)
    seams = meter_of(border_frames(borders_s, film, fps, facts.pixel_frames), facts.pixel_frames)
    colours, sheet = _watch(film, [Row(film.name, 0, facts.pixel_frames)], [seams])
    ratios, cuts, shots = seams.ratios(), seams.cuts(), []
    rows = _rows_between(cuts, film.name, facts.pixel_frames)
    for number, row in enumerate(rows):
        mine = [r | {"shot": number} for r in ratios if row.start <= r["frame"] < row.stop]
        drift = colours.drift(_seconds(row.start, row.stop, fps), fps)
        shots.append(_shot(row, drift, mine, fps) | {"stages": None, "beat": None})
    said: dict[str, Any] = {
        "job": None,
        "film": str(film),
        "fps": fps,
        "pixel_frames": facts.pixel_frames,
        "seam_median": _median(ratios),
        "changes": changes(seams, cuts, fps),
        "shots": shots,
        "time": {},
        "memory": {},
        "accelerations": [],
        "tiles": [],
    }
    return _with_pictures(said, film, reference, rows, sheet)


def _with_pictures(
    said: dict[str, Any], film: Path, reference: Path | None, rows: list[Row], sheet: Image | None
) -> tuple[dict[str, Any], Pictures]:
    """What needs a second look at the film: its worst borders, and how it compares."""
    shown = worst_borders(said)
    fidelity, worst = _fidelity(film, reference, rows)
    pictures = Pictures(sheet=sheet, worst=worst, borders=border_pictures(film, shown))
    return said | {"worst_borders": shown} | fidelity, pictures


def _rows_between(cuts: Sequence[int], name: str, pixel_frames: int) -> list[Row]:
    """The shots that these cuts make of a film."""
    ranges = list(pairwise([0, *cuts, pixel_frames]))
    return [
        Row(f"{name}, shot {n}" if cuts else name, start, stop)
        for n, (start, stop) in enumerate(ranges, 1)
    ]


def _shot(
    row: Row, drift: dict[str, Any], seams: list[dict[str, Any]], fps: float
) -> dict[str, Any]:
    if row.stop - row.start < LEAST_SLOPE_S * fps:
        drift = drift | {"mean_per_minute": None, "spread_per_minute": None}
    return {
        "prompt": row.caption,
        "start": row.start,
        "stop": row.stop,
        "seams": seams,
        "seam_median": _median(seams),
        "colours": drift,
    }


def _median(seams: list[dict[str, Any]]) -> float | None:
    return median(seam["ratio"] for seam in seams) if seams else None


def _watch(film: Path, rows: list[Row], meters: list[Any]) -> tuple[ColourMeter, Image | None]:
    """Reads the film once, for all who want to see its frames; the picture has some of many shots,
    evenly spread."""
    colours = ColourMeter()

    def watched(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for frame in frames:
            for meter in (colours, *meters):
                meter.add(frame)
            yield frame

    shown = rows[:: -(-len(rows) // MOST_ROWS)]
    sheet = sheet_of(watched(iter_frames(film)), shown, most_px=GLANCE_PX)
    return colours, sheet


def _seconds(start: int, stop: int, fps: float) -> list[tuple[int, int]]:
    """The whole seconds of a shot, the last with what is left over, as ranges of frames."""
    whole = max(1, int((stop - start) / fps))
    edges = [start + round(n * fps) for n in range(whole)] + [stop]
    return [(a, b) for a, b in pairwise(edges) if b > a]


def _times(folder: JobFolder) -> dict[str, Any]:
    """Seconds that each worker spent on each kind of unit, and on each shot and stage, by the
    workers' own logs."""
    by_worker: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    by_part: dict[str, float] = defaultdict(float)
    for log in sorted(folder.logs.glob("*.jsonl")):
        for row in inspect_job.log_rows(log):
            by_worker[log.stem][row["kind"]] += row["elapsed_s"]
            part = f"shot {row['shot'] + 1} {row['kind']}"
            stage = f" stage {row['stage'] + 1}" if row["kind"] == "step" else ""
            by_part[part + stage] += row["elapsed_s"]
    return {"workers": json.loads(json.dumps(by_worker)), "parts": dict(by_part)}


def _memory(folder: JobFolder, plan: Plan, records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What planning said a worker needs, and the most that each has held beside its libraries, by
    the workers' own logs; how who had too little made do."""
    peaks: dict[str, int] = {}
    for log in sorted(folder.logs.glob("*.jsonl")):
        told = [row["peak_bytes"] for row in inspect_job.log_rows(log) if "peak_bytes" in row]
        if told:
            peaks[log.stem] = max(told)
    planned = {
        "encoding_bytes": plan.encoding_bytes,
        "model_bytes": plan.model_bytes,
        "tile_bytes": plan.tile_bytes,
    }
    made_do = [record for record in records if record["type"] == "made_do"]
    return {
        "planned": planned,
        "workers": peaks,
        "made_do": [str(record["message"]) for record in made_do],
        "encoders_elsewhere": sorted({str(r["worker"]) for r in made_do if r["on_processor"]}),
    }


def _fidelity(
    film: Path, reference: Path | None, rows: Sequence[Row]
) -> tuple[dict[str, Any], Image | None]:
    """How far the film lies from a reference, if there is one, and pictures of its worst frames.
    Raises BadJob if they cannot be compared."""
    if reference is None:
        return {"fidelity": None}, None
    if not reference.is_file():
        raise BadJob(f"--reference {reference} does not exist; give a film of the same length")
    if why := why_no_film(reference):
        raise BadJob(f"--reference {reference} {why}; give a film of the same length")
    try:
        found = compare(iter_frames(film), iter_frames(reference))
    except ValueError as error:
        raise BadJob(f"--reference {reference}: {error}") from None
    shots = [found.summary(row.start, row.stop) for row in rows]
    of = {"squared_error": found.squared_error_F.tolist(), "ssim": found.ssim_F.tolist()}
    told = found.summary() | {"reference": str(reference), "shots": shots, "frames_of": of}
    return {"fidelity": told}, _worst(film, reference, shots)


def _worst(film: Path, reference: Path, shots: Sequence[dict[str, Any]]) -> Image | None:
    """Of every shot that differs, or of those that do most, its farthest frame, and the one least
    alike: beside the reference's."""
    differ = [n for n, shot in enumerate(shots) if shot["equal_frames"] < shot["frames"]]
    differ.sort(key=lambda n: shots[n]["worst_psnr_db"])
    captions: dict[int, str] = {}
    for number in sorted(differ[: MOST_ROWS // 2]):
        shot = shots[number]
        psnr, ssim = shot["worst_psnr_frame"], shot["worst_ssim_frame"]
        captions[ssim] = f"shot {number + 1}, frame {ssim}: SSIM {shot['worst_ssim']:.3f}"
        captions[psnr] = f"shot {number + 1}, frame {psnr}: {shot['worst_psnr_db']:.1f} dB"
    both = zip(iter_frames(film), iter_frames(reference), strict=True)
    pairs = (frame for number, pair in enumerate(both) if number in captions for frame in pair)
    rows = [Row(captions[at], 2 * n, 2 * n + 2) for n, at in enumerate(sorted(captions))]
    return sheet_of(pairs, rows, columns=2, most_px=BESIDE_PX)
