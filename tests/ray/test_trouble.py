"""What goes wrong around a render, and what the person is told: real processes, real Ray.

To meet a render in the middle, one of its units is made to hang (``jobs.faults``): the render
then stands still at a known place until the test is done with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from jobs.store import Store
from orchestrator.prepare import plan_from_json
from orchestrator.recipes import Recipes
from tests.ray.clusters import cluster_of_nodes
from tests.ray.harness import (
    Ran,
    Running,
    busy_workers,
    job_ids,
    longtake,
    show,
    wait_for_units,
)
from tests.ray.test_kills import wait_until_gone
from workers.video import read_film

JOB = """\
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


@pytest.fixture(scope="module")
def film_yaml(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trouble") / "film.yaml"
    path.write_text(JOB.format(model=model))
    return path


@pytest.fixture(scope="module")
def good(film_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same film, rendered without trouble."""
    folder = tmp_path_factory.mktemp("good")
    ran = render(film_yaml, folder, "--json")
    assert ran.code == 0, ran.err
    assert ran.json()["state"] == "done"
    return show(folder / "store", ran.json()["id"])


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


# -- stopping


@pytest.fixture(scope="module")
def interrupted(
    film_yaml: Path, good: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a render that Ctrl-C ended at its last piece; what it said is in log.txt.

    On its way: a time limit, SIGTERM, a second driver that is refused, a look at the pieces.
    """
    folder = tmp_path_factory.mktemp("interrupted")
    store = folder / "store"
    ran = render(film_yaml, folder, "--timeout", 1, "--json", **PARKED)
    check_refused(ran, 5)
    job = ran.json()["id"]
    assert (ran.json()["outcome"], ran.json()["state"]) == ("timeout", "interrupted")
    assert f"To go on: longtake resume {job} --store {store}" in ran.err
    assert show(store, job)["state"] == "interrupted"

    with background_resume(store, folder / "term.txt", **PARKED) as running:
        wait_until_parked(store, running)
        os.killpg(running.process.pid, signal.SIGTERM)
        assert running.wait(60) == 4, running.text()
        assert f"longtake resume {job} --store {store}" in running.text()
        assert "Traceback" not in running.text()
        wait_until_gone(running)

    with background_resume(store, folder / "log.txt", **PARKED) as running:
        wait_until_held(store, job, running)
        check_second_driver(store, job, running)
        check_pieces(store, job)
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.wait(60) == 130, running.text()
        assert not running.family(), "processes are left"
    return folder


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


@pytest.fixture
def copied(interrupted: Path, tmp_path: Path) -> Path:
    """The interrupted store, in a folder of its own."""
    shutil.copytree(interrupted / "store", tmp_path / "store")
    return tmp_path


def test_ctrl_c_leaves_cleanly_and_says_how_to_go_on(interrupted: Path) -> None:
    store = interrupted / "store"
    said = (interrupted / "log.txt").read_text()
    job = job_ids(store)[0]
    assert f"To go on: longtake resume {job} --store {store}" in said
    assert "Traceback" not in said
    assert not (store / "jobs" / job / "lease.json").exists()
    report = show(store, job)
    assert report["state"] == "interrupted"
    rows = longtake("ls", "--store", store, "--json").json()
    assert [(row["id"], row["state"]) for row in rows] == [(job, "interrupted")]


def test_take_over(copied: Path, good: dict[str, Any]) -> None:
    """The new driver finishes the film; the old one stops by itself and touches nothing."""
    store, out = copied / "store", copied / "film.mp4"
    with background_resume(store, copied / "log.txt", **PARKED) as old:
        wait_until_held(store, job_ids(store)[0], old)
        ran = resume(store, "--take-over", "--out", out, "--json")
        assert ran.code == 0, ran.err
        assert ran.json()["out"] == str(out)
        assert old.wait(60) == 7, old.text()
        assert "another driver has taken over" in old.text()
        assert "Traceback" not in old.text()
        wait_until_gone(old)
    report = check_film(store, good)
    assert report["out"] == str(out)
    assert report["units_computed"] == good["units_computed"], "only the last piece was left"


def test_resume_right_after_a_driver_was_killed(copied: Path, good: dict[str, Any]) -> None:
    """Its workers and its Ray may still be dying; its lease is free at once."""
    store = copied / "store"
    with background_resume(store, copied / "log.txt", **PARKED) as running:
        wait_until_held(store, job_ids(store)[0], running)
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
        ran = resume(store, "--out", copied / "film.mp4")
        assert ran.code == 0, ran.err
        wait_until_gone(running)
    check_film(store, good)


# -- storage


def test_a_disk_that_is_full_or_read_only(
    film_yaml: Path, good: dict[str, Any], tmp_path: Path
) -> None:
    """At a result, at the journal, at the lease: said, resumable, and the film is the same."""
    store = tmp_path / "store"
    full = render(film_yaml, tmp_path, LONGTAKE_FAULT="data.mid_write:enospc:4")
    check_refused(full, 6)
    assert "No space left on device" in full.err and "free some space" in full.err
    job = job_ids(store)[0]
    assert f"To go on: longtake resume {job} --store {store}" in full.err

    full = resume(store, "--json", LONGTAKE_FAULT="journal.mid_write:enospc:3")
    check_refused(full, 6)
    assert "No space left on device" in full.err
    assert f"To go on: longtake resume {job} --store {store}" in full.err
    assert (full.json()["id"], full.json()["outcome"]) == (job, "store_failed")

    closed = resume(store, LONGTAKE_FAULT="lease.before_write:erofs")
    check_refused(closed, 6)
    assert "Read-only file system" in closed.err and "writable" in closed.err

    ran = resume(store)
    assert ran.code == 0, ran.err
    assert check_film(store, good)["units_repeated"] <= good["units_computed"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
def test_a_disk_that_is_really_full(film_yaml: Path, good: dict[str, Any], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "none", disk])
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        ran = render(film_yaml, disk)
        check_refused(ran, 6)
        assert "No space left on device" in ran.err
        assert f"longtake resume {job_ids(disk / 'store')[0]}" in ran.err
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        ran = resume(disk / "store")
        assert ran.code == 0, ran.err
        check_film(disk / "store", good)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


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


def test_damage_between_a_render_and_its_resume(copied: Path, good: dict[str, Any]) -> None:
    """Each damaged file is named; what it held is computed again, and nothing else is lost."""
    store, out = copied / "store", copied / "film.mp4"
    piece, record = data_file(store, "shot 1 piece 1"), result_folder(store, "shot 1 piece 2")
    latents = data_file(store, "shot 1 window 3 step 4")
    journal = sorted((store / "jobs" / job_ids(store)[0] / "journal").glob("*.json"))[2]
    flip_bit(latents)
    piece.write_bytes(piece.read_bytes()[:-10])
    flip_bit(record / "record.json")
    flip_bit(journal)

    job = job_ids(store)[0]
    assert longtake("ls", "--store", store, "--json").json()[0]["state"] == "damaged"
    before = longtake("show", job, "--store", store)
    check_refused(before, 6)
    assert str(journal) in before.err

    ran = resume(store, "--out", out)
    assert ran.code == 0, ran.err
    assert f"set aside: {journal}.damaged" in ran.err
    assert str(record / "record.json") in ran.err
    report = check_film(store, good)
    assert list((store / "damaged").iterdir()), "damaged results are kept aside"
    # The window's five steps, and what they rest on: four of its neighbour's and three of the
    # next one's, for the checkpoints of a finished stage are deleted; and two pieces.
    again = report["units_computed"] - good["units_computed"]
    assert again == 5 + 4 + 3 + 2
    assert longtake("verify", job, "--store", store).code == 0


# -- verify


@pytest.fixture(scope="module")
def finished(good: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A finished job to spoil and mend."""
    return good | {"film": Path(good["out"]), "root": Path(good["store"])}


def verify(finished: dict[str, Any]) -> Ran:
    return longtake("verify", finished["id"], "--store", finished["root"], "--json")


def test_verify_finds_what_changed(finished: dict[str, Any]) -> None:
    film, store = finished["film"], finished["root"]
    ran = verify(finished)
    assert (ran.code, ran.json()["problems"]) == (0, [])
    assert ran.json()["frames_sha256"] == finished["frames_sha256"]
    text = longtake("verify", finished["id"], "--store", store)
    assert text.code == 0 and "all as recorded" in text.out

    kept = film.read_bytes()
    shutil.copyfile(finished["playable"][1], film)  # a film, but not this one
    ran = verify(finished)
    assert ran.code == 8
    assert any("frames" in problem and str(film) in problem for problem in ran.json()["problems"])
    film.write_bytes(kept[: len(kept) // 2])
    assert verify(finished).code == 8
    film.unlink()
    ran = verify(finished)
    assert ran.code == 8
    assert f"the film {film} is missing" in ran.json()["problems"][0]
    film.write_bytes(kept)

    for name in ("shot 1 piece 2", "shot 1 window 1 step 4", "shot 1 prompts"):
        spoiled = data_file(store, name)
        content = spoiled.read_bytes()
        flip_bit(spoiled)
        ran = verify(finished)
        assert ran.code == 8
        assert any(problem.startswith(f"{name}: ") for problem in ran.json()["problems"])
        text = longtake("verify", finished["id"], "--store", store)
        assert text.code == 8 and "PROBLEM" in text.out
        spoiled.write_bytes(content)
    assert verify(finished).code == 0


# -- models and workers that fail


def test_a_model_that_yields_nan(film_yaml: Path, model: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    weights = load_file(broken / "transformer/diffusion_pytorch_model.safetensors")
    weights["proj_out.bias"][0] = float("nan")
    save_file(weights, broken / "transformer/diffusion_pytorch_model.safetensors")
    ran = render(film_yaml, tmp_path, "--model", broken, "--json")
    check_refused(ran, 3)
    message = ran.json()["message"]
    assert "shot 1 window 1 step 0" in message
    assert "the model's prediction became NaN or infinite in float32" in message
    assert "try a lower guidance" in message
    job = ran.json()["id"]
    assert f"To go on: longtake resume {job}" in ran.err
    report = show(tmp_path / "store", job)
    assert report["state"] == "failed" and "NaN" in report["message"]


def test_a_unit_that_kills_every_worker(film_yaml: Path, tmp_path: Path) -> None:
    ran = render(
        film_yaml, tmp_path,
        LONGTAKE_FAULT="worker.before_unit:kill",
        LONGTAKE_FAULT_ON="shot 1 window 2 step 1",
        POLICY='{"max_deaths": 2, "same_loss_s": 0.0}',
    )  # fmt: skip
    check_refused(ran, 3)
    assert "shot 1 window 2 step 1: 2 workers died on it" in ran.err
    assert f"longtake resume {job_ids(tmp_path / 'store')[0]}" in ran.err


def test_a_unit_on_which_workers_hang(
    film_yaml: Path, good: dict[str, Any], tmp_path: Path
) -> None:
    """One that hangs at every try fails the job by name; then one that hangs once is replaced."""
    hang = {
        "LONGTAKE_FAULT": "worker.before_unit:hang",
        "LONGTAKE_FAULT_ON": "shot 1 window 2 step 3",
    }
    policy = '{"max_deaths": %d, "same_loss_s": 0.0, "hang_floor_s": 4.0, "hang_factor": 1.0}'
    ran = render(film_yaml, tmp_path, **hang, POLICY=policy % 2)
    check_refused(ran, 3)
    assert "shot 1 window 2 step 3: 2 workers died on it" in ran.err
    assert "hangs: shot 1 window 2 step 3 has taken more than 4 s" in ran.err

    once = {"LONGTAKE_FAULT_ONCE": str(tmp_path / "fired")}
    store = tmp_path / "store"
    ran = resume(store, **hang, **once, POLICY=policy % 3)
    assert ran.code == 0, ran.err
    assert (tmp_path / "fired").exists()
    check_film(store, good)


def test_a_lost_node_is_nobodys_fault(
    job_file: Path, reference: dict[str, Any], tmp_path: Path
) -> None:
    """Its worker dies and its outputs are lost: they are computed again, and nobody is blamed."""
    store, out = tmp_path / "store", tmp_path / "film.mp4"
    with cluster_of_nodes(1, 1) as (cluster, token):
        args = ("render", job_file, "--store", store, "--out", out, "--workers", 2)
        args = (*args, "--address", cluster.address)
        with Running(*args, log=tmp_path / "log.txt", **token) as running:
            wait_for_units(store, reference["units_computed"] // 2, running)
            busy = busy_workers(store)
            node = next(iter(cluster.worker_nodes))
            cluster.remove_node(node, allow_graceful=False)
            assert running.wait() == 0, running.text()
            said = running.text()
    assert len(busy) == 2, "both nodes took part"
    assert sum(line.startswith("worker w") for line in said.splitlines()) == 1, said
    assert " failed on " not in said and "Unhandled error" not in said, said
    report = show(store, job_ids(store)[0])
    assert report["state"] == "done"
    assert report["units_repeated"] > 0, "nothing was lost: the test shows nothing"
    assert report["frames_sha256"] == reference["frames_sha256"]
