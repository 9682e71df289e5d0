"""Renders that are stopped, taken over, killed: what the person is told, and how they go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.ray.harness import (
    job_ids,
    longtake,
    show,
    wait_until_gone,
)
from tests.ray.trouble import PARKED, background_resume, check_film, resume, wait_until_held


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


@pytest.mark.long
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


@pytest.mark.long
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
