"""The report of a film: its numbers, its page, and what it says where something is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.errors import BadJob
from jobs.journal import Journal
from jobs.units import Unit
from orchestrator.borders import borders
from orchestrator.engagement import engagement
from orchestrator.report import report_file, report_job
from orchestrator.report_page import page
from tests.orchestrator.test_verify import Finished, finished

pytestmark = pytest.mark.slow


def log(job: Finished, worker: str, **row: object) -> None:
    job.folder.logs.mkdir(exist_ok=True)
    with open(job.folder.logs / f"{worker}.jsonl", "a") as file:
        file.write(json.dumps({"unit": "u", "stage": 0, "at_s": 1.0} | row) + "\n")


def test_a_jobs_report(tmp_path: Path) -> None:
    job = finished(tmp_path)
    log(job, "w1", kind="step", shot=0, elapsed_s=2.0)
    log(job, "w1", kind="step", shot=0, stage=1, elapsed_s=1.0)
    log(job, "w2", kind="decode", shot=1, elapsed_s=0.5)
    with open(job.folder.logs / "w2.jsonl", "a") as file:
        file.write('{"unit": "torn')
    said, sheet = report_job(job.folder, None)
    verified = job.verify()
    assert said["seam_median"] == verified["seam_median"]
    assert [seam for shot in said["shots"] for seam in shot["seams"]] == verified["seams"]
    assert said["time"]["workers"] == {"w1": {"step": 3.0}, "w2": {"decode": 0.5}}
    assert said["time"]["parts"] == {
        "shot 1 step stage 1": 2.0, "shot 1 step stage 2": 1.0, "shot 2 decode": 0.5
    }  # fmt: skip
    windows = said["shots"][0]["colours"]["windows"]
    assert len(windows) == 4 and windows[0]["start"] == 0
    assert windows[-1]["stop"] == job.plan.shots[0].render.pixel_frames
    assert said["fidelity"] is None
    assert sheet is not None and sheet.width > sheet.height


def test_a_jump_in_colour_is_told(tmp_path: Path) -> None:
    job = finished(tmp_path)
    border = next(b for b in borders(job.plan) if b["window"] == 2)
    frames = job.frames.copy()
    frames[border["frame"] :] = np.minimum(frames[border["frame"] :].astype(int) + 60, 255)
    jumping = Finished(tmp_path / "jumping", job.plan, frames)
    before, after = (report_job(each.folder, None)[0] for each in (job, jumping))
    drift = [each["shots"][0]["colours"]["first_to_last"] for each in (before, after)]
    assert drift[1] > drift[0] + 5
    worst = max(after["shots"][0]["seams"], key=lambda seam: seam["ratio"])
    assert worst["frame"] == border["frame"]


def test_fidelity_to_a_reference(tmp_path: Path) -> None:
    job = finished(tmp_path)
    other = Finished(tmp_path / "other", job.plan, np.clip(job.frames, 10, 250))
    same, _ = report_job(job.folder, job.film)
    assert same["fidelity"]["psnr_db"] is None
    apart, _ = report_job(job.folder, other.film)
    assert 20 < apart["fidelity"]["psnr_db"] < 60
    assert len(apart["fidelity"]["frames_of"]["ssim"]) == job.plan.pixel_frames
    short = finished(tmp_path / "short", windows=2)
    with pytest.raises(BadJob, match="the reference ends after"):
        report_job(job.folder, short.film)
    with pytest.raises(BadJob, match="does not exist"):
        report_job(job.folder, tmp_path / "missing.mp4")


def test_any_film_has_a_report(tmp_path: Path) -> None:
    job = finished(tmp_path, codec="h264")
    said, sheet = report_file(job.film, None)
    assert (said["job"], said["seam_median"], said["time"]) == (None, None, {})
    assert said["pixel_frames"] == job.plan.pixel_frames
    windows = said["shots"][0]["colours"]["windows"]
    assert [w["stop"] - w["start"] for w in windows[:-1]] == [job.plan.fps] * (len(windows) - 1)
    assert "Window borders" not in page(said, sheet)


def test_a_job_without_its_film(tmp_path: Path) -> None:
    job = finished(tmp_path)
    job.film.unlink()
    with pytest.raises(BadJob, match=r"has lost its film .*longtake resume"):
        report_job(job.folder, None)


def test_the_page_holds_everything_and_runs_nothing(tmp_path: Path) -> None:
    job = finished(tmp_path)
    prompt = "<script>alert(1)</script>"
    shots = tuple(
        replace(shot, render=replace(shot.render, prompt=prompt)) for shot in job.plan.shots
    )
    job = Finished(tmp_path / "again", replace(job.plan, shots=shots), job.frames)
    told = page(*report_job(job.folder, job.film))
    assert "<script" not in told and "&lt;script&gt;" in told
    assert told.count("data:image/png;base64,") == 4
    assert "http" not in told, "nothing is loaded from elsewhere"
    for part in ("Fidelity", "every frame is equal", "Window borders", "Colours"):
        assert part in told


def test_what_the_tiles_did_is_drawn(tmp_path: Path) -> None:
    job = finished(tmp_path)
    assert "<h2>Steps</h2>" not in page(*report_job(job.folder, None))
    journal = Journal.open(job.folder, "driver-2")
    journal.begin_epoch()
    counts = [{"adaptive.computed": 1}, {"adaptive.skipped": 1}]
    units = [Unit("step", 0, index=1, step=step) for step in range(2)]
    journal.append([engagement(*each) for each in zip(units, counts, strict=True)])
    said, sheet = report_job(job.folder, None)
    assert said["tiles"] == [{"shot": 0, "stage": 0, "window": 1, "steps": "x."}]
    assert "<h2>Steps</h2>" in page(said, sheet)
