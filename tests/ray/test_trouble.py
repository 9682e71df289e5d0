"""Models, workers and nodes that fail: each is named, and nobody is blamed wrongly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.ray.clusters import cluster_of_nodes
from tests.ray.harness import (
    Running,
    busy_workers,
    job_ids,
    longtake,
    show,
    wait_for_units,
)
from tests.ray.trouble import check_film, check_refused, render, resume
from workers.films import iter_frames


@pytest.mark.long
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


@pytest.mark.long
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
    assert ran.out == "", "what Ray says of dead workers is no data"


@pytest.mark.long
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


def test_memory_that_runs_out_costs_a_retry_in_slices(
    film_yaml: Path, good: dict[str, Any], tmp_path: Path
) -> None:
    """The film is made, and the person hears of it: at once, of verify and in the report."""
    store, out = tmp_path / "store", tmp_path / "film.mp4"
    ran = render(
        film_yaml, tmp_path,
        LONGTAKE_FAULT="worker.before_model:nomem",
        LONGTAKE_FAULT_ON="shot 1 window 2 step 3",
        LONGTAKE_FAULT_ONCE=str(tmp_path / "fired"),
    )  # fmt: skip
    assert ran.code == 0, ran.err
    told = (
        "ran out of memory at shot 1 window 2 step 3, and computed steps in 8 slices from there on"
    )
    assert f"warning: w1.1 {told}" in ran.err
    (job,) = job_ids(store)
    checked = longtake("verify", job, "--store", store, "--json")
    assert checked.code == 0, checked.err
    assert len(checked.json()["numerics_parts"]) == 2, "which parts are in slices"
    assert told in checked.json()["made_do"][0]
    report = longtake("report", job, "--store", store, "--json")
    assert report.json()["memory"]["made_do"] == checked.json()["made_do"], report.err
    whole = np.stack(list(iter_frames(Path(good["out"])))).astype(int)
    assert np.abs(np.stack(list(iter_frames(out))) - whole).max() <= 2, "the same but for rounding"


@pytest.mark.long
@pytest.mark.parametrize("action", ["kill", "hang"])
def test_a_worker_that_does_not_hand_over_what_a_tile_remembers(
    action: str, attention_reference: dict[str, Any], tmp_path: Path
) -> None:
    """It is given up, not the one that waits; its tiles go back to where they are durable."""
    fired = tmp_path / "fired"
    ran = longtake(
        "render", attention_reference["job_file"], "--store", tmp_path / "store",
        "--out", tmp_path / "film.mp4", "--workers", 3,
        LONGTAKE_FAULT=f"worker.before_hand_over:{action}", LONGTAKE_FAULT_ONCE=str(fired),
        POLICY='{"hang_floor_s": 40.0}',
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert fired.exists(), "every tile stayed where it was: the test shows nothing"
    assert ("did not hand over a tile for 30 s" in ran.err) == (action == "hang"), ran.err
    lost = [line for line in ran.err.splitlines() if line.startswith("worker w")]
    assert len(lost) == 1, ran.err
    report = show(tmp_path / "store", job_ids(tmp_path / "store")[0])
    assert report["frames_sha256"] == attention_reference["frames_sha256"]


def check_too_many_threads(job_file: Path, folder: Path, *args: object, **env: str) -> None:
    """Two nodes with a processor each have no room for a worker that takes two."""
    wide = folder / "wide.yaml"
    wide.write_text(job_file.read_text() + "threads: 2\n")
    store, out = folder / "wide", folder / "wide.mp4"
    ran = longtake("render", wide, "--store", store, "--out", out, *args, **env)
    check_refused(ran, 6)
    assert "takes 2 processors" in ran.err and "no node of the cluster has more than 1" in ran.err
    assert not store.exists(), "refused before a job was made"


def test_a_lost_node_is_nobodys_fault(
    job_file: Path, reference: dict[str, Any], tmp_path: Path
) -> None:
    """Its worker dies and what it computed is lost: it is computed again, and nobody is blamed. Now
    and then all of that had just been told: then it shows nothing, and is tried again."""
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        report, busy, said = with_a_lost_node(job_file, reference["units_computed"] // 2, folder)
        assert len(busy) == 2, "both nodes took part"
        assert sum(line.startswith("worker w") for line in said.splitlines()) == 1, said
        assert " failed on " not in said and "Unhandled error" not in said, said
        assert "without a token" not in said, said
        assert report["state"] == "done"
        assert report["frames_sha256"] == reference["frames_sha256"]
        if report["units_repeated"] > 0:
            return
    pytest.fail("nothing was lost: the test shows nothing")


def with_a_lost_node(
    job_file: Path, units: int, folder: Path
) -> tuple[dict[str, Any], set[str], str]:
    """A render on two nodes, one of which is lost after so many units: what the store says of it,
    the workers that computed before, and what the person was told."""
    store, out = folder / "store", folder / "film.mp4"
    with cluster_of_nodes(1, 1) as (cluster, token):
        args = ("render", job_file, "--store", store, "--out", out, "--workers", 2)
        args = (*args, "--address", cluster.address)
        check_too_many_threads(job_file, folder, "--address", cluster.address, **token)
        with Running(*args, log=folder / "log.txt", **token) as running:
            wait_for_units(store, units, running)
            busy = busy_workers(store)
            node = next(iter(cluster.worker_nodes))
            cluster.remove_node(node, allow_graceful=False)
            assert running.wait() == 0, running.text()
            said = running.text()
    return show(store, job_ids(store)[0]), busy, said


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_of_a_cluster_that_torch_cannot_use(job_file: Path, tmp_path: Path) -> None:
    """Ray counts GPUs without asking torch: nothing is rendered on a node's processors unasked."""
    with cluster_of_nodes(2, gpus=1) as (cluster, token):
        address = cluster.address
        ran = render(job_file, tmp_path, "--address", address, **token)
    check_refused(ran, 6)
    assert "finds no GPU to use; give --device cpu, or install a torch" in ran.err
    job = job_ids(tmp_path / "store")[0]
    to_go_on = f"resume {job} --store {tmp_path / 'store'} --address {address}"
    assert f"To go on: longtake {to_go_on}" in ran.err
