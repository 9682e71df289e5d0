"""A small film for renders that meet trouble, and ways to stop one at a known place."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from jobs.results import Results
from jobs.store import Store
from orchestrator.inspect_job import computed_units
from orchestrator.prepare import plan_from_json
from orchestrator.recipes import Recipes
from tests.ray.harness import (
    Ran,
    Running,
    job_ids,
    longtake,
    show,
)
from workers.films import read_film

FILM = """\
title: trouble
model: {model}
size: [32, 32]
fps: 8
steps: 4
checkpoint_every: 2
window_latent_frames: 5
overlap_latent_frames: 2
text_tokens: 16
guidance: 4.0
prompt: a red circle
pixel_frames: 21
"""

#: The last piece: all latents and the pieces before it are in the store, the film is not.
PARKED = {"LONGTAKE_FAULT": "worker.before_unit:hang", "LONGTAKE_FAULT_ON": "shot 1 piece 3"}


def render(job: Path, folder: Path, *args: object, **env: str) -> Ran:
    return longtake(*start(job, folder), *args, **env)


def start(job: Path, folder: Path) -> list[object]:
    store, out = folder / "store", folder / "film.mp4"
    return ["render", job, "--store", store, "--out", out, "--workers", 1]


def resume(store: Path, *args: object, **env: str) -> Ran:
    return longtake("resume", job_ids(store)[0], "--store", store, "--workers", 1, *args, **env)


def background_resume(store: Path, log: Path, **env: str) -> Running:
    args = ("resume", job_ids(store)[0], "--store", store, "--workers", 1)
    return Running(*args, log=log, **env)


def check_refused(ran: Ran, code: int) -> None:
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err and "internal error" not in ran.err, ran.err


def check_film(store: Path, good: dict[str, Any]) -> dict[str, Any]:
    report = show(store, job_ids(store)[0])
    assert report["state"] == "done"
    assert report["frames_sha256"] == good["frames_sha256"]
    assert read_film(Path(report["out"])).pixel_frames == 21
    return report


def wait_until_parked(store: Path, running: Running, limit_s: float = 280.0) -> None:
    """Until two of the three pieces are durable and the worker hangs at the third."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        assert running.process.poll() is None, running.text()
        running.family()
        if job_ids(store) and show(store, job_ids(store)[0])["pieces_done"] == 2:
            return
        time.sleep(0.5)
    raise AssertionError(f"not parked:\n{running.text()}")


def wait_until_held(store: Path, job: str, running: Running) -> None:
    deadline = time.monotonic() + 280
    while not running.named("ray::LongtakeWorker"):
        assert time.monotonic() < deadline and running.process.poll() is None, running.text()
        time.sleep(0.2)
    assert show(store, job)["state"] == "rendering"


def check_second_driver(store: Path, job: str, running: Running) -> None:
    """It is told who has the job, and changes nothing."""
    ran = resume(store)
    check_refused(ran, 7)
    assert f"{job} is being rendered by process {running.process.pid} on" in ran.err
    assert "--take-over" in ran.err
    assert running.process.poll() is None


def check_pieces(store: Path, job: str) -> None:
    """The film's first seconds can be watched before its last is made."""
    report = show(store, job)
    assert (report["state"], report["pieces_done"], report["pieces"]) == ("rendering", 2, 3)
    frames = [read_film(Path(piece)).pixel_frames for piece in report["playable"]]
    assert len(frames) == 2 and sum(frames) < 21
    said = longtake("show", job, "--store", store)
    assert f"watch the first piece: {report['playable'][0]}" in said.out
    assert not Path(report["out"]).exists(), "the film is not made yet"


def stored(store: Path) -> set[str]:
    """The units of the only job whose results are durable."""
    opened = Store.open(store, create=False, writable=False)
    plan = plan_from_json(opened.job(job_ids(store)[0]).plan())
    recipes = Recipes(plan, job_ids(store)[0])
    results = Results(opened)
    units = filter(plan.is_durable, plan.units())
    return {str(unit) for unit in units if results.lookup(recipes.key(unit)) is not None}


def computed(store: Path) -> Counter[str]:
    """How often each unit was computed, by the workers' own logs."""
    return computed_units(Store.open(store, create=False, writable=False).job(job_ids(store)[0]))


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def result_folder(store: Path, name: str) -> Path:
    """Where the result of a unit stands."""
    opened = Store.open(store, create=False, writable=False)
    plan = plan_from_json(opened.job(job_ids(store)[0]).plan())
    unit = next(unit for unit in plan.units() if str(unit) == name)
    key = Recipes(plan, job_ids(store)[0]).key(unit)
    return store / "results" / key[:2] / key


def data_file(store: Path, name: str) -> Path:
    return next(p for p in result_folder(store, name).iterdir() if p.name != "record.json")
