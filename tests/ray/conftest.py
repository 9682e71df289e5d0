"""Fixtures for tests on real Ray: a tiny model, a job file, and its uninterrupted render."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.ray.harness import job_ids, longtake, show
from tests.workers.tiny import write_tiny_wan

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
    return write_tiny_wan(tmp_path_factory.mktemp("model") / "tiny-wan")


@pytest.fixture(scope="session")
def job_file(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("job") / "film.yaml"
    path.write_text(JOB.format(model=model))
    return path


@pytest.fixture(scope="session")
def reference(job_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The uninterrupted render with one worker: what every other render must equal."""
    folder = tmp_path_factory.mktemp("reference")
    store, out = folder / "store", folder / "film.mp4"
    ran = longtake("render", job_file, "--store", store, "--out", out, "--workers", 1)
    assert ran.code == 0, ran.err
    report = show(store, job_ids(store)[0])
    assert report["units_repeated"] == 0
    return report | {"store_path": store, "film": out}
