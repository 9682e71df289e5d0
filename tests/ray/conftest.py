"""Fixtures for tests on real Ray: a tiny model, a job file, and its uninterrupted render."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.ray.harness import job_ids, load_plan, longtake, show, units_logged, wait_until_gone
from tests.ray.trouble import (
    FILM,
    PARKED,
    background_resume,
    check_pieces,
    check_refused,
    check_second_driver,
    render,
    wait_until_held,
    wait_until_parked,
)
from tests.workers.tiny import write_tiny_wan
from tests.workers.tiny_animatediff import write_tiny_animatediff

JOB = """\
version: 1
title: kill me
model: {model}
size: [64, 64]
fps: 8
steps: 6
checkpoint_every: 2
window_latent_frames: 9
overlap_latent_frames: 3
text_tokens: 16
guidance: 4.0
shots:
  - prompt: a red circle
    pixel_frames: 60
  - prompt: a blue square
    pixel_frames: 21
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_wan(
        tmp_path_factory.mktemp("model") / "tiny-wan", layers=3
    )  # rehash: 3 or more


@pytest.fixture(scope="session")
def job_file(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("job") / "film.yaml"
    path.write_text(JOB.format(model=model))
    return path


@pytest.fixture(scope="session")
def reference(job_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The uninterrupted render with one worker: what every other render must equal."""
    return uninterrupted(job_file, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def pyramid_reference(job_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same film as a pyramid of three stages, in slices, whose steps are skipped as presets
    skip them, and reuse features: what a tile remembers goes with it."""
    adaptive = "form: spectral, forecast: true, first: 2"
    folder = tmp_path_factory.mktemp("pyramid")
    return uninterrupted_pyramid(job_file, folder, "pyramid: 3", adaptive)


@pytest.fixture(scope="session")
def whole_reference(job_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of two stages, the first one whole: one window under many, longer than they are. Its steps
    are skipped where latents change evenly."""
    adaptive, folder = "form: tensor", tmp_path_factory.mktemp("whole")
    whole = "pyramid: 2\npyramid_first_stage: whole"
    found = uninterrupted_pyramid(job_file, folder, whole, adaptive)
    first, last = load_plan(found["store_path"]).shots[0].stages
    assert len(first.windows) == 1 and first.longest > last.longest and len(last.windows) > 2
    return found


def uninterrupted_pyramid(
    job_file: Path, folder: Path, pyramid: str, adaptive: str
) -> dict[str, Any]:
    path = folder / "film.yaml"
    longer = job_file.read_text().replace("steps: 6", "steps: 12")
    skipping = f"adaptive: {{{adaptive}, threshold: 50.0, most_skips: 1}}"
    asked = f"{{{skipping}, rehash: {{every: 2}}, slicing: {{slices: 2}}}}"
    path.write_text(f"{longer}{pyramid}\naccelerations: {asked}\n")
    found = uninterrupted(path, folder)
    assert found["engaged"]["adaptive.skipped"] > 5
    assert found["engaged"]["rehash.reused"] > 10
    return found


@pytest.fixture(scope="session")
def attention_reference(job_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same film, its attention windowed and shared as calibration found, in slices, with
    features that are reused."""
    folder = tmp_path_factory.mktemp("attention")
    path, plans = folder / "film.yaml", folder / "plans"
    path.write_text(job_file.read_text().replace("steps: 6", "steps: 12"))
    ran = longtake("calibrate", path, "--delta", 0.02, "--plans", plans)
    assert ran.code == 0, ran.err
    asked = f"{{fast_attention: {{plans: {plans}}}, rehash: {{every: 3}}, slicing: {{slices: 2}}}}"
    path.write_text(f"{path.read_text()}accelerations: {asked}\n")
    found = uninterrupted(path, folder)
    for name in ("window", "share_steps", "share_branches"):
        assert found["engaged"][f"fast_attention.{name}"] > 10
    assert found["engaged"]["rehash.reused"] > 10
    assert found["stays"] > 10, "what tiles remember is much, and stays with the worker"
    return found


@pytest.fixture(scope="session")
def unet_reference(job_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A film of AnimateDiff's tiny UNet as a pyramid of two stages by DDIM, whose steps are
    skipped, reuse features, and run in slices."""
    folder = tmp_path_factory.mktemp("unet")
    model, path = write_tiny_animatediff(folder / "model"), folder / "film.yaml"
    told = re.sub(r"model: .*|text_tokens: .*\n", "", job_file.read_text())
    skipping = "adaptive: {form: scalar, threshold: 50.0, most_skips: 1}"
    asked = f"{{{skipping}, rehash: {{every: 3}}, slicing: {{slices: 2}}}}"
    changed = told.replace("steps: 6", "steps: 16").replace("[64, 64]", "[32, 32]")
    path.write_text(f"{changed}model: {model}\npyramid: 2\naccelerations: {asked}\n")
    found = uninterrupted(path, folder)
    for name in ("adaptive.skipped", "rehash.reused"):
        assert found["engaged"][name] > 10
    return found


def uninterrupted(job_file: Path, folder: Path) -> dict[str, Any]:
    store, out = folder / "store", folder / "film.mp4"
    ran = longtake("render", job_file, "--store", store, "--out", out, "--workers", 1)
    assert ran.code == 0, ran.err
    report = show(store, job_ids(store)[0])
    assert report["units_repeated"] == 0
    stays = sum(row["stays"] for row in units_logged(store))
    return report | {"store_path": store, "film": out, "job_file": job_file, "stays": stays}


@pytest.fixture(scope="session")
def film_yaml(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trouble") / "film.yaml"
    path.write_text(FILM.format(model=model))
    return path


@pytest.fixture(scope="session")
def good(film_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same film, rendered without trouble."""
    folder = tmp_path_factory.mktemp("good")
    ran = render(film_yaml, folder, "--json")
    assert ran.code == 0, ran.err
    assert ran.json()["state"] == "done"
    return show(folder / "store", ran.json()["id"])


@pytest.fixture(scope="session")
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


@pytest.fixture
def copied(interrupted: Path, tmp_path: Path) -> Path:
    """The interrupted store, in a folder of its own."""
    shutil.copytree(interrupted / "store", tmp_path / "store")
    return tmp_path
