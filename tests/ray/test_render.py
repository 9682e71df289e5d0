"""Renders on real local Ray, read back from the store and from the mp4."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.marks import few
from tests.ray.harness import busy_workers, job_ids, longtake, show, step_unit, units_logged
from workers.films import read_film


@pytest.mark.parametrize(
    ("workers", "kind"), few([(2, "pyramid_reference"), (3, "reference")], (3, "reference"))
)
def test_any_number_of_workers_makes_the_same_film(
    workers: int, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    reference = request.getfixturevalue(kind)
    job_file = reference["job_file"]
    store, out = tmp_path / "store", tmp_path / "film.mp4"
    ran = longtake(
        "render", job_file, "--store", store, "--out", out, "--workers", workers, "--json"
    )
    assert ran.code == 0, ran.err
    assert ran.json()["state"] == "done"
    warned = "warning: a pyramid of 3 stages is asked for" in ran.err
    assert warned == (kind == "pyramid_reference"), "the weights know no pyramid"
    assert show(store, job_ids(store)[0])["frames_sha256"] == reference["frames_sha256"]
    assert len(busy_workers(store)) > 1, "one did it all: the test shows nothing"
    assert read_film(out).pixel_frames == 81


@pytest.mark.long
def test_what_a_tile_remembers_is_handed_from_worker_to_worker(
    attention_reference: dict[str, Any], tmp_path: Path
) -> None:
    job_file, store = attention_reference["job_file"], tmp_path / "store"
    ran = longtake("render", job_file, "--store", store, "--out", tmp_path / "film.mp4",
                   "--workers", 3)  # fmt: skip
    assert ran.code == 0, ran.err
    report = show(store, job_ids(store)[0])
    assert report["frames_sha256"] == attention_reference["frames_sha256"]
    assert report["units_repeated"] == 0
    steps = {step_unit(row): row for row in units_logged(store) if row["kind"] == "step"}
    handed = [
        unit
        for unit, row in steps.items()
        if (before := steps.get(replace(unit, step=unit.step - 1))) is not None
        and before["stays"]
        and before["worker"] != row["worker"]
    ]
    assert handed, "every tile stayed where it was: the test shows nothing"


def test_a_finished_film_verifies(reference: dict[str, Any]) -> None:
    store = reference["store_path"]
    ran = longtake("verify", reference["id"], "--store", store, "--json")
    assert ran.code == 0, ran.err
    report = ran.json()
    assert report["pixel_frames"] == 81
    assert report["frames_sha256"] == reference["frames_sha256"]
    assert len(report["numerics"]) == 1
    assert len(report["seams"]) > 4


@pytest.mark.long
def test_an_acceleration_that_did_nothing_is_an_error_with_its_film_kept(
    model: Path, tmp_path: Path
) -> None:
    job, store, out = (tmp_path / name for name in ("job.yaml", "store", "film.mp4"))
    job.write_text(
        f"model: {model}\nprompt: a\npixel_frames: 9\nsize: 64x64\nsteps: 5\nfps: 8\n"
        "accelerations: {adaptive: {threshold: 1.0e-9}}\n"
    )
    ran = longtake("render", job, "--store", store, "--out", out, "--workers", 1, "--json")
    assert (ran.code, ran.json()["idle"]) == (9, ["adaptive"]), ran.err
    assert read_film(out).pixel_frames == 9
    assert show(store, ran.json()["id"])["state"] == "done"


@pytest.mark.long
def test_our_packages_are_found_beside_strangers_of_the_same_name(
    job_file: Path, reference: dict[str, Any], tmp_path: Path
) -> None:
    """Ray puts the driver's folder first in its workers' path."""
    for name in ("jobs", "workers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('a stranger')\n")
    (tmp_path / "accel.py").write_text("raise ImportError('a stranger')\n")
    ran = longtake(
        "render", job_file, "--store", tmp_path / "store", "--out", tmp_path / "f.mp4",
        "--workers", 1, cwd=tmp_path,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    job = job_ids(tmp_path / "store")[0]
    assert show(tmp_path / "store", job)["frames_sha256"] == reference["frames_sha256"]
