"""The report of a film: its numbers, its page, and what it says where something is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from jobs.accelerations import Accelerations, Adaptive
from jobs.errors import BadJob
from jobs.journal import Journal
from jobs.units import Unit
from orchestrator.borders import borders
from orchestrator.engagement import engagement
from orchestrator.report import _watch, report_file, report_job
from orchestrator.report_page import page, tiles_figure
from orchestrator.report_seams import _in_order, border_pictures
from tests.orchestrator.plans import make_plan
from tests.orchestrator.test_verify import Finished, finished
from workers.contact_sheet import Row
from workers.video import encode_segment

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
    said, pictures = report_job(job.folder, None)
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
    assert pictures.sheet is not None and pictures.sheet.width > pictures.sheet.height
    assert pictures.worst is None


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


def test_the_beat_of_a_pyramid_is_told(tmp_path: Path) -> None:
    """Coarse frames begin at every eighth frame here, after the first."""
    plan = replace(make_plan(61, window=16, overlap=4, stage_steps=(2, 2)), codec="ffv1")
    n = np.arange(plan.pixel_frames)
    levels = np.cumsum(np.where(n % 8 == 1, 6, np.where(n % 8 == 5, 2, 0))) % 200
    frames = np.tile(levels.astype(np.uint8)[:, None, None, None], (1, 64, 64, 3))
    said, pictures = report_job(Finished(tmp_path, plan, frames).folder, None)
    assert said["shots"][0]["beat"] == 3.0 and said["seam_median"] == 1.0
    shown, why = page(said, pictures), "near by are places where a frame of the same stage begins"
    assert "<td>3.00</td>" in shown.split("Beat of the pyramid")[1] and why in shown
    flat = page(*report_job(finished(tmp_path / "flat").folder, None))
    assert "Beat of" not in flat and why not in flat


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


@pytest.mark.long
def test_every_shots_worst_frames_are_shown_beside_the_references(tmp_path: Path) -> None:
    job = finished(tmp_path, codec="ffv1")
    first = job.plan.shots[0].render.pixel_frames
    spoiled = job.frames.copy()
    spoiled[3] = 255 - spoiled[3]
    other = Finished(tmp_path / "other", job.plan, spoiled)
    said, pictures = report_job(other.folder, job.film)
    one, two = said["fidelity"]["shots"]
    assert (one["frames"], one["worst_psnr_frame"], one["worst_ssim_frame"]) == (first, 3, 3)
    assert two["psnr_db"] is None and two["equal_frames"] == two["frames"]
    height, width = job.frames.shape[1:3]
    assert pictures.worst is not None and pictures.worst.width == 2 * width + 18
    shown = np.asarray(pictures.worst)[22 : 22 + height]
    assert np.array_equal(shown[:, 6 : 6 + width], spoiled[3])
    assert np.array_equal(shown[:, 12 + width : 12 + 2 * width], job.frames[3])
    assert page(said, pictures).count('alt="worst frames beside the reference"') == 1
    same, pictures = report_job(job.folder, job.film)
    assert pictures.worst is None and "worst frames" not in page(same, pictures)


def test_no_frame_is_decoded_that_no_picture_shows(tmp_path: Path) -> None:
    assert border_pictures(tmp_path / "nowhere.mp4", []) is None
    frames = (np.full((4, 4, 3), number, np.uint8) for number in range(9))
    assert [int(frame[0, 0, 0]) for frame in _in_order(frames, [4, 5, 1, 2])] == [4, 5, 1, 2]
    assert int(next(frames)[0, 0, 0]) == 6


def test_the_memory_of_workers_is_told_beside_the_plans(tmp_path: Path) -> None:
    job = finished(tmp_path)
    plan = replace(job.plan, model_bytes=2**27, tile_bytes=2**26, encoding_bytes=2**28)
    job = Finished(tmp_path / "planned", plan, job.frames)
    assert "<h2>Memory</h2>" not in page(*report_job(job.folder, None))
    for worker, peak in (("w1", 900), ("w1", 2**27), ("w2", 2**26)):
        log(job, worker, kind="step", shot=0, elapsed_s=1.0, peak_bytes=peak)
    log(job, "w1", kind="encode", shot=0, elapsed_s=1.0, peak_bytes=800)
    log(job, "w2", kind="encode", shot=0, elapsed_s=1.0, peak_bytes=800)  # on its processor
    log(job, "w0", kind="step", shot=0, elapsed_s=1.0)  # by a version that did not measure it
    journal = Journal.open(job.folder, "driver-2")
    journal.begin_epoch()
    for worker, moved in (("w1", False), ("w2", True)):
        record = {"worker": worker, "on_processor": moved, "message": f"{worker} ran out of it"}
        journal.append([{"type": "made_do", "unit": "shot 1 window 1"} | record])
    said, pictures = report_job(job.folder, None)
    planned = {"encoding_bytes": 2**28, "model_bytes": 2**27, "tile_bytes": 2**26}
    peaks = {"w1": 2**27, "w2": 2**26}
    told = {"made_do": ["w1 ran out of it", "w2 ran out of it"], "encoders_elsewhere": ["w2"]}
    assert said["memory"] == {"planned": planned, "workers": peaks} | told
    told = page(said, pictures)
    assert "<p>w1 ran out of it</p>" in told
    assert "Planned for each worker: 0.134 GB for weights,\n0.0671 GB for the window" in told
    assert "0.268 GB for one that reads the prompts" in told
    for worker, held, most in (("w1", "0.134", "0.268"), ("w2", "0.0671", "0.201")):
        assert f"<td>{worker}</td>\n<td>{held} GB</td><td>{most} GB</td>" in told


def test_any_film_has_a_report(tmp_path: Path) -> None:
    job = finished(tmp_path, codec="h264")
    said, pictures = report_file(job.film, None)
    assert (said["job"], said["seam_median"], said["time"]) == (None, None, {})
    assert said["pixel_frames"] == job.plan.pixel_frames
    windows = said["shots"][0]["colours"]["windows"]
    assert [w["stop"] - w["start"] for w in windows[:-1]] == [job.plan.fps] * (len(windows) - 1)
    assert "Window borders" not in page(said, pictures)


def moving(frames: int, *jumps: int, by: int = 20) -> np.ndarray:
    """A ramp that moves evenly, and gets brighter by a step at each jump."""
    x, t = np.arange(64)[None, None, :, None], np.arange(frames)[:, None, None, None]
    film = np.broadcast_to(60 + np.abs((2 * x + 3 * t) % 120 - 60), (frames, 48, 64, 3)).copy()
    for jump in jumps:
        film[jump:] += by
    return film.astype(np.uint8)


def written(path: Path, film: np.ndarray) -> Path:
    path.write_bytes(encode_segment(film, fps=12, codec="h264", quality=4))
    return path


@pytest.mark.long
def test_frames_of_any_film_that_stand_out_are_listed(tmp_path: Path) -> None:
    even, pictures = report_file(written(tmp_path / "even.mp4", moving(60)), None)
    assert even["changes"]["outliers"] == even["worst_borders"] == []
    assert len(even["changes"]["ratio_of"]) == 59 and pictures.borders is None
    assert "Worst borders" not in page(even, pictures)
    said, pictures = report_file(written(tmp_path / "jumping.mp4", moving(60, 20, 45)), None)
    found = said["changes"]["outliers"]
    assert [(each["frame"], each["second"]) for each in found] == [(20, 20 / 12), (45, 3.75)]
    assert all(each["ratio"] > 5 for each in found)
    assert [each["what"] for each in said["worst_borders"]] == ["stands out"] * 2
    told = page(said, pictures)
    assert "2 of\n60 frames stand out" in told and "<td>3.75</td>" in told
    assert told.count("frames before and after the worst borders") == 1


@pytest.mark.long
def test_cuts_of_any_film_are_told_and_not_counted(tmp_path: Path) -> None:
    """A shot between cuts is measured by itself, and a short one has no slope."""
    film = written(tmp_path / "a.mp4", moving(60, 20, 45, by=60))
    said, pictures = report_file(film, film, [0.5])
    assert [cut["frame"] for cut in said["changes"]["cuts"]] == [20, 45]
    assert said["changes"]["outliers"] == []
    assert [at["what"] for at in said["worst_borders"]] == ["border as given"]
    assert [(shot["start"], shot["stop"]) for shot in said["shots"]] == [
        (0, 20),
        (20, 45),
        (45, 60),
    ]
    assert [len(shot["seams"]) for shot in said["shots"]] == [1, 0, 0]
    assert all(shot["colours"]["first_to_last"] < 1 for shot in said["shots"])
    assert said["shots"][1]["colours"]["mean_per_minute"] is None
    told = page(said, pictures)
    assert "taken as a cut between shots, and\nnot counted: at 1.67, 3.75 s." in told
    assert "a.mp4, shot 2" in told and "/ min" not in told and "From a shot's first second" in told
    said, _ = report_file(film, None, [20 / 12])
    assert [cut["frame"] for cut in said["changes"]["cuts"]] == [45], "a border that is known"


def test_pictures_of_a_long_film_fit_a_page(tmp_path: Path) -> None:
    """Many shots, of frames larger than a page shows them, all unlike the reference's."""
    levels = np.repeat(np.tile([60, 180], 16), 10).astype(np.uint8)
    film = np.broadcast_to(levels[:, None, None, None], (320, 16, 740, 3))
    paths = [written(tmp_path / name, film + more) for name, more in (("a.mp4", 0), ("b.mp4", 9))]
    said, pictures = report_file(paths[0], paths[1])
    assert len(said["shots"]) == 32
    assert pictures.worst is not None
    assert pictures.worst.size == (6 + 2 * 726, 6 + 30 * (16 + 16 + 6))
    _, sheet = _watch(paths[0], [Row("a", 5 * n, 5 * n + 5) for n in range(64)], [])
    assert sheet is not None and sheet.size == (6 + 8 * 246, 6 + 32 * (5 + 16 + 6))
    many = said | {"job": "a", "shots": said["shots"] * 2, "fidelity": None}
    told = page(many, pictures)
    assert "Some of its 64 shots, evenly spread" in told


def test_a_flash_is_no_cut(tmp_path: Path) -> None:
    film = moving(60)
    film[30] = 255 - film[30]
    said, _ = report_file(written(tmp_path / "a.mp4", film), None)
    assert said["changes"]["cuts"] == [] and len(said["shots"]) == 1
    assert [each["frame"] for each in said["changes"]["outliers"]] == [30, 31]


@pytest.mark.long
def test_a_shot_of_a_minute_has_a_slope(tmp_path: Path) -> None:
    film = written(tmp_path / "a.mp4", moving(60 * 12))
    said, pictures = report_file(film, None)
    assert abs(said["shots"][0]["colours"]["mean_per_minute"]["L"]["slope"]) < 1
    assert "<th>L / min</th>" in page(said, pictures)


def test_known_borders_of_any_film(tmp_path: Path) -> None:
    film = written(tmp_path / "a.mp4", moving(60, 20))
    said, pictures = report_file(film, None, [3.0, 20 / 12])
    seams = said["shots"][0]["seams"]
    assert [seam["frame"] for seam in seams] == [20, 36]
    assert seams[0]["ratio"] > 5 and seams[1]["ratio"] == pytest.approx(1, abs=0.3)
    assert said["seam_median"] == pytest.approx((seams[0]["ratio"] + seams[1]["ratio"]) / 2)
    assert [(at["frame"], at["what"]) for at in said["worst_borders"]] == [
        (20, "border as given"),
        (36, "border as given"),
    ]
    assert "Window borders" in page(said, pictures)
    for second in (0.0, 5.0, -1.0, float("nan")):
        with pytest.raises(BadJob, match=r"is not inside .*frames meet from 0\.08 to 4\.92 s"):
            report_file(film, None, [second])


def test_the_ten_worst_borders_of_a_job_are_shown(tmp_path: Path) -> None:
    job = finished(tmp_path, codec="ffv1")
    places = sorted({border["frame"] for border in borders(job.plan)})
    frames = job.frames.copy()
    at = places[len(places) // 2]
    frames[at] = 255 - frames[at]
    spoiled = Finished(tmp_path / "spoiled", job.plan, frames)
    said, pictures = report_job(spoiled.folder, None)
    worst = said["worst_borders"]
    assert len(worst) == min(10, len(places)) and worst[0]["frame"] == at
    assert worst[0]["what"].startswith("shot ") and " window " in worst[0]["what"]
    assert [row["ratio"] for row in worst] == sorted((r["ratio"] for r in worst), reverse=True)
    height, width = job.frames.shape[1:3]
    shown = np.asarray(pictures.borders)[22 : 22 + height]
    assert np.array_equal(shown[:, 6 : 6 + width], frames[at - 1])
    assert np.array_equal(shown[:, 12 + width : 12 + 2 * width], frames[at])
    assert f"<td>{at}</td>" in page(said, pictures)


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
    assert told.count("data:image/png;base64,") == 5
    assert "http" not in told, "nothing is loaded from elsewhere"
    for part in ("Fidelity", "every frame is equal", "Window borders", "Colours"):
        assert part in told


def test_what_the_tiles_did_is_in_the_report(tmp_path: Path) -> None:
    job = finished(tmp_path)
    assert "<h2>Steps</h2>" not in page(*report_job(job.folder, None))
    journal = Journal.open(job.folder, "driver-2")
    journal.begin_epoch()
    counts = [{"adaptive.computed": 1}, {"fast_attention.window": 3}, {"adaptive.skipped": 1}]
    units = [Unit("step", 0, index=1, step=step) for step in range(3)]
    journal.append([engagement(*each) for each in zip(units, counts, strict=True)])
    said, pictures = report_job(job.folder, None)
    assert said["tiles"] == [{"shot": 0, "stage": 0, "window": 1, "steps": "xw."}]
    told = page(said, pictures)
    assert "<h2>Steps</h2>" in told and 'alt="what each window did at each step"' in told


def test_what_the_tiles_did_is_drawn() -> None:
    """Every letter in a colour of its own, the steps from left to right, and its meaning beside;
    steps that a stage does not have are no cells."""
    tiles = [
        {"shot": 0, "stage": 0, "window": 0, "steps": "xwsr."},
        {"shot": 0, "stage": 0, "window": 1, "steps": "x w"},
        {"shot": 1, "stage": 2, "window": 0, "steps": "xx"},
        {"shot": 2, "stage": 0, "window": 0, "steps": "x"},
    ]
    figure = tiles_figure(tiles)
    (axes,) = figure.axes
    (mesh,) = axes.collections
    rows = mesh.get_array()
    cells = mesh.to_rgba(rows)
    colours = [[to_hex(colour) if colour[3] else "" for colour in row] for row in cells]
    edged = [bool(edge[3]) for edge in mesh.get_edgecolor()]
    assert edged == [bool(colour) for row in colours for colour in row]
    dark, orange, green, blue, yellow, grey = (
        "#333333", "#ff7f0e", "#2ca02c", "#1f77b4", "#ffe28a", "#dddddd"
    )  # fmt: skip
    assert colours == [
        [dark, orange, green, blue, yellow],
        [dark, grey, orange, "", ""],
        [dark, dark, "", "", ""],
        [dark, "", "", "", ""],
    ]
    (legend,) = figure.legends
    meaning = {
        text.get_text(): to_hex(patch.get_facecolor())
        for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)
    }
    assert meaning == {
        "not known": grey, "skipped the model": yellow, "reused a key step's features": blue,
        "shared attention over steps or branches": green, "windowed attention": orange,
        "ran the model in full": dark,
    }  # fmt: skip
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "shot 1 stage 1", "shot 2 stage 3", "shot 3 stage 1"
    ]  # fmt: skip
    (legend,) = tiles_figure(tiles[3:]).legends
    assert [text.get_text() for text in legend.get_texts()] == ["ran the model in full"]


def test_what_accelerations_did_is_told(tmp_path: Path) -> None:
    plan = finished(tmp_path).plan
    asked = replace(plan, accelerations=Accelerations(adaptive=Adaptive()))
    job = Finished(tmp_path / "asked", asked, finished(tmp_path / "same").frames)
    journal = Journal.open(job.folder, "driver-2")
    journal.begin_epoch()
    steps = [u for u in asked.units() if u.kind == "step" and not asked.is_last_step(u)]
    journal.append([engagement(step, {"adaptive.computed": 1}) for step in steps])
    said, pictures = report_job(job.folder, None)
    wrong = f"adaptive did nothing: skipped the model in 0 of {len(steps)} steps"
    assert said["accelerations"][0].startswith(wrong)
    assert "<li>adaptive did nothing" in page(said, pictures)
