"""Kill any process at any time: the film finishes, and its frames are the same.

Every round is seeded. An outside process (this one) picks a victim and a moment, counted in
units that the workers themselves say they have computed. A round counts only if the victim died
while work was left.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.faults import FAULT_POINTS, FILM_POINTS
from jobs.units import Unit
from orchestrator.plan import Plan
from orchestrator.recipes import Recipes
from tests.ray.harness import (
    RUN_LIMIT_S,
    Running,
    job_ids,
    load_plan,
    longtake,
    show,
    step_unit,
    units_logged,
    wait_for_units,
    wait_until_gone,
)

VICTIMS = ("driver", "worker", "raylet", "everything", "keeper", "gcs_server")
#: What the film is: of one stage, or a pyramid of three, or accelerated in other ways than that, or
#: a UNet's with all that goes with one, or a pyramid whose first stage is whole.
KINDS = (
    "reference",
    "pyramid_reference",
    "attention_reference",
    "unet_reference",
    "whole_reference",
)
#: A raylet dies in the long rounds, and with its node in test_trouble.
QUICK_ROUNDS = (
    pytest.param(1, "driver", KINDS[0], marks=pytest.mark.long),  # "everything" has it, too,
    pytest.param(2, "worker", KINDS[1], marks=pytest.mark.long),  # and this
    (4, "everything", KINDS[1]),
    pytest.param(2, "worker", KINDS[2], marks=pytest.mark.long),
    pytest.param(4, "everything", KINDS[2], marks=pytest.mark.long),
    pytest.param(4, "everything", KINDS[3], marks=pytest.mark.long),
    pytest.param(6, "everything", KINDS[4], marks=pytest.mark.long),  # in its first stage
)
LONG_ROUNDS = tuple((seed, VICTIMS[seed % len(VICTIMS)]) for seed in range(6, 62))

#: Commit points that a render passes. The others are passed before or after one, or only with a
#: damaged result: tests/jobs kills at those.
RENDER_POINTS = tuple(
    point
    for point in (*FAULT_POINTS, *FILM_POINTS)
    if point.split(".")[0] in ("data", "result", "journal", "lease", "film")
    and "quarantine" not in point
)


def stored_units(store: Path, plan: Plan) -> set[Unit]:
    """What is durable, by looking at the files themselves."""
    recipes = Recipes(plan, job_ids(store)[0])
    keys = {path.parent.name for path in (store / "results").glob("*/*/record.json")}
    return {unit for unit in plan.units() if recipes.key(unit) in keys}


def check_redone_work(store: Path, plan: Plan, killed_at_s: float, durable: set[Unit]) -> None:
    """Redone steps come after the last line that all tiles near by had reached."""
    rows = units_logged(store)
    before = Counter(step_unit(row) for row in rows if row["at_s"] < killed_at_s)
    after = Counter(step_unit(row) for row in rows if row["at_s"] >= killed_at_s)
    redone = set(before) & set(after)
    assert not redone & durable, f"stored, and yet computed again: {sorted(redone & durable)}"
    for unit in redone:
        if unit.kind == "step":
            assert unit.step > line_near(unit, plan, durable) or line_near(unit, plan, durable) == 0


def line_near(unit: Unit, plan: Plan, durable: set[Unit]) -> int:
    windows = plan.stage(unit).windows
    near = {unit.index}
    for _ in range(plan.checkpoint_every):
        near |= {w.index for w in windows if any(w.overlaps(windows[i]) for i in near)}
    tops = {index: 0 for index in near}
    for other in durable:
        same = (other.kind, other.shot, other.stage) == (unit.kind, unit.shot, unit.stage)
        if same and other.index in near:
            tops[other.index] = max(tops[other.index], other.step)
    return min(tops.values())


def strike(running: Running, victim: str, rng: random.Random) -> bool:
    """Kill the victim; False if it was not there any more."""
    if victim == "everything":
        alive = running.process.poll() is None
        running.kill_everything()
        return alive
    names = {"worker": "ray::LongtakeWorker", "keeper": "ray::LongtakeKeeper"}
    targets = running.named(names.get(victim, victim))
    if not targets or running.process.poll() is not None:
        return False
    try:
        rng.choice(targets).kill()
    except psutil.Error:
        return False
    return True


def play_round(seed: int, victim: str, reference: dict[str, Any], folder: Path) -> bool:
    """One kill, and what must hold after it. False if it came too late to count."""
    rng = random.Random(seed)
    store, out = folder / "store", folder / "film.mp4"
    total = reference["units_computed"]
    moment = rng.randrange(2, total - 4)
    job_file, workers = reference["job_file"], rng.choice((1, 2))
    args = ("render", job_file, "--store", store, "--out", out, "--workers", workers)
    with Running(*args, log=folder / "log.txt") as running:
        wait_for_units(store, moment, running)
        time.sleep(rng.uniform(0.0, 0.2))
        struck = strike(running, victim, rng)
        killed_at_s = time.time()
        plan = load_plan(store)
        durable = stored_units(store, plan)
        counts = struck and not all(goal in durable for goal in plan.goals())
        if victim in ("driver", "everything"):
            wait_until_gone(running)
        else:
            assert running.wait() == 0, running.text()
    job = job_ids(store)[0]
    if victim in ("driver", "everything"):
        assert show(store, job)["state"] == "interrupted"
        ran = longtake("resume", job, "--store", store, "--workers", 1)
        assert ran.code == 0, ran.err
    report = show(store, job)
    assert report["state"] == "done"
    assert report["frames_sha256"] == reference["frames_sha256"], "the frames differ"
    if victim in ("worker", "keeper") and not reference["stays"]:
        assert report["units_repeated"] <= 1, "only a report on its way may be lost"
    else:
        check_redone_work(store, plan, killed_at_s, durable)
    return counts


@pytest.mark.parametrize(("seed", "victim", "kind"), QUICK_ROUNDS)
def test_a_kill_changes_nothing(
    seed: int, victim: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    reference = request.getfixturevalue(kind)
    assert play_round(seed, victim, reference, tmp_path), "the kill came too late"


@pytest.mark.long
def test_fifty_kills_change_nothing(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    counted: Counter[str] = Counter()
    for seed, victim in LONG_ROUNDS:
        folder = tmp_path / str(seed)
        folder.mkdir()
        # Every victim is met in each of four kinds of film.
        kind = KINDS[seed // len(VICTIMS) % 4]  # the last has a round of its own
        hit = play_round(seed, victim, request.getfixturevalue(kind), folder)
        counted[victim] += hit
        print(f"round {seed}: {victim}, {kind}, {'counts' if hit else 'too late'}", flush=True)
    print(json.dumps(counted))
    assert sum(counted.values()) >= 50


def at_the_jump(plan: Plan) -> Unit:
    """The first step of the last window of the first shot's second stage: all windows of its first
    stage are finished then."""
    return Unit("step", 0, 1, plan.shots[0].stages[1].windows[-1].index, 0, 0)


def of_first_stage(units: Iterable[Unit]) -> list[Unit]:
    return [unit for unit in units if (unit.kind, unit.shot, unit.stage) == ("step", 0, 0)]


def fault_at(unit: Unit, action: str, fired: Path) -> dict[str, str]:
    return {
        "LONGTAKE_FAULT": f"worker.before_unit:{action}",
        "LONGTAKE_FAULT_ON": str(unit),
        "LONGTAKE_FAULT_ONCE": str(fired),
    }


@pytest.mark.long
def test_a_worker_dies_at_the_jump_between_stages(
    pyramid_reference: dict[str, Any], tmp_path: Path
) -> None:
    """It takes no finished stage with it."""
    store, fired = tmp_path / "store", tmp_path / "fired"
    plan = load_plan(pyramid_reference["store_path"])
    args = ("render", pyramid_reference["job_file"], "--store", store, "--workers", 1)
    fault = fault_at(at_the_jump(plan), "kill", fired)
    ran = longtake(*args, "--out", tmp_path / "film.mp4", **fault)
    assert ran.code == 0 and fired.exists(), ran.err
    report = show(store, job_ids(store)[0])
    assert report["frames_sha256"] == pyramid_reference["frames_sha256"], "the frames differ"
    computed = Counter(step_unit(row) for row in units_logged(store))
    assert computed[at_the_jump(plan)] == 1
    of_first = of_first_stage(plan.units())
    assert of_first and all(computed[unit] == 1 for unit in of_first)


@pytest.mark.long
def test_everything_dies_at_the_jump_between_stages(
    pyramid_reference: dict[str, Any], tmp_path: Path
) -> None:
    """What the first stage has made is durable by then, and is not made again."""
    store, out, fired = tmp_path / "store", tmp_path / "film.mp4", tmp_path / "fired"
    plan = load_plan(pyramid_reference["store_path"])
    finished = {unit for unit in of_first_stage(plan.units()) if plan.is_last_step(unit)}
    args = ("render", pyramid_reference["job_file"], "--store", store, "--out", out)
    fault = fault_at(at_the_jump(plan), "hang", fired)
    with Running(*args, "--workers", 1, log=tmp_path / "log.txt", **fault) as running:
        deadline = time.monotonic() + RUN_LIMIT_S
        while not (fired.exists() and finished <= stored_units(store, load_plan(store))):
            assert running.process.poll() is None and time.monotonic() < deadline, running.text()
            time.sleep(0.1)
        running.kill_everything()
    killed_at_s, durable = time.time(), stored_units(store, plan := load_plan(store))
    job = job_ids(store)[0]
    assert show(store, job)["state"] == "interrupted"
    ran = longtake("resume", job, "--store", store, "--workers", 1)
    assert ran.code == 0, ran.err
    assert show(store, job)["frames_sha256"] == pyramid_reference["frames_sha256"]
    check_redone_work(store, plan, killed_at_s, durable)
    again = {step_unit(row) for row in units_logged(store) if row["at_s"] >= killed_at_s}
    assert at_the_jump(plan) in again and not of_first_stage(again)


def kill_at(
    point: str, passage: int, job_file: Path, reference: dict[str, Any], folder: Path
) -> None:
    """The process that passes a commit point dies there, once; then the job goes on."""
    store, out = folder / "store", folder / "film.mp4"
    fault = {"LONGTAKE_FAULT": f"{point}:kill:{passage}", "LONGTAKE_FAULT_ONCE": f"{folder}/fired"}
    args = ("render", job_file, "--store", store, "--out", out, "--workers", 1)
    with Running(*args, log=folder / "log.txt", **fault) as running:
        code = running.wait()
        assert (folder / "fired").exists(), f"{point} was never passed"
        if code != 0:
            wait_until_gone(running)
    job = job_ids(store)[0]
    if code != 0:
        ran = longtake("resume", job, "--store", store, "--workers", 1)
        assert ran.code == 0, ran.err
    report = show(store, job)
    assert report["state"] == "done"
    assert report["frames_sha256"] == reference["frames_sha256"]


@pytest.mark.long
@pytest.mark.parametrize("point", RENDER_POINTS)
def test_a_kill_at_every_commit_point(
    point: str, job_file: Path, reference: dict[str, Any], tmp_path: Path
) -> None:
    passage = 1 if point.startswith(("lease", "film")) else 2
    kill_at(point, passage, job_file, reference, tmp_path)
