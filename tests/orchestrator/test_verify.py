"""Jobs read again: finished ones made by hand, with real files and no render."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.errors import BadJob
from jobs.files import machine, seal
from jobs.journal import Journal
from jobs.results import Results
from jobs.store import JobFolder, Store
from jobs.units import Unit
from orchestrator import inspect_job, show
from orchestrator import verify as verifying
from orchestrator.borders import borders, interiors
from orchestrator.events import EndRender
from orchestrator.plan import Plan
from orchestrator.prepare import plan_to_json
from orchestrator.recipes import Recipes
from orchestrator.render import class_of_results, take_stock
from orchestrator.verify import verify
from tests.orchestrator.plans import frames_for, make_plan
from workers.films import iter_frames
from workers.parts import part_beside
from workers.video import encode_segment, stitch

pytestmark = pytest.mark.slow

ENDINGS = {"ffv1": ".mkv", "h264": ".mp4"}


def film_frames(plan: Plan) -> np.ndarray:
    """A ramp that moves evenly."""
    t, _, x = np.ogrid[0 : plan.pixel_frames, 0:32, 0:32]
    ramp = np.abs((4 * x + 3 * t) % 200 - 100).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(ramp[..., None], (plan.pixel_frames, 32, 32, 3)))


class Finished:
    """A job whose results, film and journal are as after a render."""

    def __init__(self, folder: Path, plan: Plan, frames: np.ndarray) -> None:
        self.plan, self.frames = plan, frames
        self.store = Store.open(folder / "my store")
        self.folder = self.store.create_job("kite-1", {}, plan_to_json(plan))
        self.results, self.recipes = Results(self.store), Recipes(plan, self.folder.id)
        self.film = folder / f"film{ENDINGS[plan.codec]}"
        self.write()

    def write(self) -> None:
        segments = []
        for unit, _ in verifying._lasting(self.plan, self.folder.id):
            if unit.kind == "decode":
                segments.append(self._encode(unit))
                self.commit(unit, segments[-1], self._hashes(unit))
            else:
                self.commit(unit, str(unit).encode())
        self.join(segments)
        journal = Journal.open(self.folder, "driver-1")
        journal.begin_epoch()
        journal.append([{"type": "out", "key": "out", "path": str(self.film)}])
        written = hashlib.sha256(self.film.read_bytes()).hexdigest()
        journal.append([{"type": "film", "key": "film", "sha256": written}])
        journal.append([{"type": "ended", "outcome": "done", "message": ""}])

    def join(self, segments: list[bytes]) -> None:
        said = {"job": self.folder.id}
        stitch(segments, self.film, fps=self.plan.fps, codec=self.plan.codec, metadata=said)

    def commit(self, unit: Unit, data: bytes, extra: Any = None, numerics: str = "a" * 12) -> None:
        key = self.recipes.key(unit)
        self.results.delete(key)
        self.results.commit(
            key, data, kind=unit.kind, numerics=numerics, writer="w1.1", extra=extra
        )

    def verify(self) -> dict[str, Any]:
        return verify(self.store, self.folder)

    def problems(self) -> list[str]:
        return list(self.verify()["problems"])

    def _range(self, piece: Unit) -> slice:
        shot = self.plan.shots[piece.shot]
        low, high = self.plan.geometry.pixel_range(*shot.pieces[piece.index])
        return slice(shot.first_pixel_frame + low, shot.first_pixel_frame + high)

    def _encode(self, piece: Unit) -> bytes:
        frames = self.frames[self._range(piece)]
        return encode_segment(frames, fps=self.plan.fps, codec=self.plan.codec, quality=10)

    def _hashes(self, piece: Unit) -> dict[str, str]:
        digests = [
            hashlib.sha256(each.data).hexdigest() for each in self.frames[self._range(piece)]
        ]
        return {"frame_sha256": json.dumps(digests)}


def finished(tmp_path: Path, *, codec: str = "ffv1", windows: int = 4, **options: Any) -> Finished:
    laid = make_plan(
        frames_for(windows, window=12, overlap=3), 6, window=12, overlap=3, steps=2, **options
    )
    plan = replace(laid, codec=codec)
    return Finished(tmp_path, plan, film_frames(plan))


@pytest.mark.parametrize("codec", ENDINGS)
def test_a_finished_job(tmp_path: Path, codec: str) -> None:
    job = finished(tmp_path, codec=codec)
    report = job.verify()
    assert report["problems"] == []
    assert report["pixel_frames"] == job.plan.pixel_frames
    digests = b"".join(hashlib.sha256(each.data).digest() for each in job.frames)
    assert report["frames_sha256"] == hashlib.sha256(digests).hexdigest()
    assert report["numerics"] == {"a" * 12: report["results"]}
    assert show.verify_text(report).endswith("all as recorded")


def test_every_window_border_is_measured(tmp_path: Path) -> None:
    report = finished(tmp_path).verify()
    assert all(
        row.keys() == {"shot", "stage", "window", "border", "begins", "frame", "ratio"}
        for row in report["seams"]
    )
    named = [(row["shot"], row["window"], row["border"]) for row in report["seams"]]
    inner = [(0, i, "enters") for i in (1, 2, 3)] + [(0, i, "leaves") for i in (0, 1, 2)]
    assert sorted(named) == sorted(inner), "the second shot is one window"
    assert [row["ratio"] for row in report["seams"]] == pytest.approx([1.0] * 6, rel=0.2)


def test_a_jump_at_a_border_is_seen(tmp_path: Path) -> None:
    job = finished(tmp_path)
    border = next(b for b in borders(job.plan) if (b["window"], b["border"]) == (2, "enters"))
    frames = film_frames(job.plan)
    frames[border["frame"] :] += 70
    jumping = Finished(tmp_path / "jumping", job.plan, frames)
    ratios = {(row["window"], row["border"]): row["ratio"] for row in jumping.verify()["seams"]}
    assert ratios.pop((2, "enters")) > 10
    assert list(ratios.values()) == pytest.approx([1.0] * 5, rel=0.2)
    text = show.verify_text(jumping.verify())
    assert f"(worst, at frame {border['frame']}); 1 is as even as inside a window" in text


def test_borders_of_coarse_stages_are_borders() -> None:
    plan = make_plan(61, window=16, overlap=4, stage_steps=(2, 2))
    found = borders(plan)
    coarse = [b for b in found if b["stage"] == 0]
    assert len(plan.shots[0].stages[0].windows) == 3 and coarse
    # A coarse frame n > 0 begins at latent frame 2 n - 1, and that at pixel frame 4 (2 n - 1) - 3.
    assert {(b["frame"] - 1) % 8 for b in coarse} == {0}
    assert [b["frame"] for b in found] == sorted(b["frame"] for b in found), "of all stages"
    everywhere = {b["frame"] for b in found}
    inside = interiors(plan)
    assert not everywhere & {*inside[0, 0], *inside[0, 1]}
    assert {(place - 1) % 8 for place in inside[0, 0]} == {0}, "where coarse frames begin"
    assert {(place - 1) % 8 for place in inside[0, 1]} == {4}, "inside them"
    assert all(b["begins"] == ((b["frame"] - 1) % 8 > 0) for b in found)
    assert len(everywhere) == len({(b["stage"], b["frame"]) for b in found})


def test_windows_that_only_touch_have_one_place(tmp_path: Path) -> None:
    plan = make_plan(24, window=8, overlap=0)
    places = [(b["window"], b["border"], b["frame"]) for b in borders(plan)]
    assert places == [(1, "enters", 29), (0, "leaves", 29), (2, "enters", 61), (1, "leaves", 61)]
    assert not {29, 61} & set(interiors(plan)[0, 0])


@pytest.mark.parametrize(("codec", "passes"), [("ffv1", 1), ("h264", 2)])
def test_a_frame_is_decoded_once(
    tmp_path: Path, codec: str, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lossless film is compared with hashes; another with its pieces, which are decoded too."""
    job = finished(tmp_path, codec=codec)
    decoded = []

    def counting(path: Path) -> Any:
        for frame in iter_frames(path):
            decoded.append(path)
            yield frame

    monkeypatch.setattr(verifying, "iter_frames", counting)
    assert job.problems() == []
    assert len(decoded) == passes * job.plan.pixel_frames


@pytest.mark.parametrize("codec", ENDINGS)
def test_another_film(tmp_path: Path, codec: str) -> None:
    job = finished(tmp_path, codec=codec)
    kept, job.frames = job.frames, job.frames.copy()
    job.frames[20:23] = 255 - job.frames[20:23]
    job.join([job._encode(goal) for goal in job.plan.goals()])
    first, rest = job.problems()
    assert re.fullmatch(rf"{job.film}: frame \d+ is not what was stored", first)
    assert codec == "h264" or "frame 20 is" in first  # there the encoder may look ahead
    assert "frames are not what was stored" in rest

    job.frames = kept
    job.join([job._encode(goal) for goal in job.plan.goals()][:-1])
    assert any(f"the plan says {job.plan.pixel_frames} at 16" in each for each in job.problems())
    job.film.write_bytes(job.film.read_bytes()[:-3000])
    assert job.problems()
    job.film.unlink()
    assert job.problems() == [f"the film {job.film} is missing; `longtake resume` writes it again"]


@pytest.mark.parametrize("codec", ENDINGS)
def test_a_film_whose_name_another_jobs_film_took(tmp_path: Path, codec: str) -> None:
    """It is kept, and found; and no damage unless it is gone."""
    job = finished(tmp_path, codec=codec)
    other = [job._encode(next(iter(job.plan.goals())))]
    for name in ("ball-2", "ball-3"):
        stitch(other, job.film, fps=job.plan.fps, codec=codec, metadata={"job": name})
    kept = job.film.with_stem("film.1")
    report = job.verify()
    assert report["problems"] == []
    assert (report["film"], report["replaced_by"]) == (str(kept), "ball-3")
    took = f"{job.film} is now the film of job ball-3"
    assert took in show.verify_text(report) and f"is kept: {kept}" in show.verify_text(report)
    said = show.job_text(inspect_job.report(job.store, job.folder))
    assert f"  film: {kept}\n  {took}" in said
    listed = show.job_table([inspect_job.summary(job.folder)])
    assert f"film: {kept}" in listed, "and not that of the other job"
    kept.unlink()
    (problem,) = job.problems()
    assert f"{job.film} was replaced by that of job ball-3, and is not kept beside it" in problem


def test_a_file_that_was_touched_though_its_frames_are_right(tmp_path: Path) -> None:
    job = finished(tmp_path, codec="h264")
    assert job.problems() == []
    with job.film.open("ab") as film:
        film.write(b"x")
    assert job.problems() == [
        f"{job.film}: its frames are right, but the file is not as it was written"
    ]


def test_damage_that_no_record_shows_is_found_by_reading(tmp_path: Path) -> None:
    """Latents that are damaged are set aside, and so the pieces that are made of them go, too."""
    job, said = finished(tmp_path), list[str]()

    def durable(*, read: bool) -> set[Unit]:
        return take_stock(job.plan, job.recipes, job.results, None, said.append, read=read)

    everything = {unit for unit, _ in verifying._lasting(job.plan, job.folder.id)}
    latents, prompts = Unit("step", 0, 0, 1, 0, 2), Unit("encode", 1)
    for unit in (latents, prompts):
        path = job.results.path(job.recipes.key(unit))
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert durable(read=False) == everything and said == []
    made_of_it = {goal for goal in job.plan.goals() if latents in job.plan.inputs(goal)}
    assert made_of_it
    both = {Unit("encode", 0), prompts}  # are one result: the shots' prompts are the same
    assert durable(read=True) == everything - {latents} - both - made_of_it
    assert len(said) == 2 and all("is set aside" in line for line in said)
    job.commit(latents, b"computed again")
    assert job.problems() == [], "nobody needs the prompts of a film that is done"


@pytest.mark.parametrize("codec", ENDINGS)
def test_a_piece_that_is_missing_spoils_no_other(tmp_path: Path, codec: str) -> None:
    job = finished(tmp_path, codec=codec)
    job.results.delete(job.recipes.key(Unit("decode", 0, index=1)))
    report = job.verify()
    assert len(report["problems"]) == 1
    assert report["problems"][0].startswith("shot 1 piece 2: its result ")
    assert report["pixel_frames"] == job.plan.pixel_frames and report["frames_sha256"] is None


@pytest.mark.parametrize("numerics", ["any", "pinned"])
def test_classes_among_the_results(tmp_path: Path, numerics: str) -> None:
    job = finished(tmp_path, numerics=numerics)
    assert job.problems() == []
    job.commit(Unit("step", 0, step=2), b"the same", numerics="b" * 12)
    report = job.verify()
    assert report["numerics"]["b" * 12] == 1
    assert report["numerics_parts"]["b" * 12] == ["shot 1 window 1 step 2"]
    if numerics == "any":
        assert report["problems"] == []
    else:
        assert ["its results are of 2 classes" in each for each in report["problems"]] == [True]


def test_the_class_of_a_pinned_job_is_known_without_its_journal(tmp_path: Path) -> None:
    job = finished(tmp_path, numerics="pinned")
    assert class_of_results(job.plan, job.recipes, job.results) == "a" * 12
    other = Recipes(job.plan, "another-job")
    assert class_of_results(job.plan, other, job.results) is None


def test_a_damaged_journal_is_a_problem_among_others(tmp_path: Path) -> None:
    """It is named, and everything else is checked all the same."""
    job = finished(tmp_path)
    first = min(job.folder.journal_path.glob("*.json"))
    first.write_bytes(first.read_bytes()[:-9])
    job.results.delete(job.recipes.key(Unit("step", 0, 0, 1, 0, 2)))
    said = "\n".join(job.problems())
    assert first.name in said and "where the film is" in said
    assert "shot 1 window 2 step 2: its result" in said


def test_writers_that_disagreed_are_told_of(tmp_path: Path) -> None:
    """Both were of one class, so one of them computes wrongly; the film is as it was stored."""
    job = finished(tmp_path)
    journal = Journal.open(job.folder, "driver-1")
    said = "w1 and w2 disagree"
    journal.begin_epoch()
    journal.append([{"type": "disagreement", "unit": "shot 1 window 1", "message": said}])
    journal.append([{"type": "ended", "outcome": "done", "message": ""}])
    report = job.verify()
    assert report["disagreements"] == [said] and report["problems"] == []
    assert f"warning: {said}" in show.verify_text(report)


def test_of_many_parts_of_a_class_the_first_are_named(tmp_path: Path) -> None:
    report = finished(tmp_path).verify()
    parts = [f"shot 1 piece {number}" for number in range(1, 15)]
    said = show.verify_text(report | {"numerics_parts": {"abc": parts, "def": parts[:2]}})
    assert "class abc finished shot 1 piece 1, " in said
    assert ", shot 1 piece 12 and 2 more\n" in said
    assert "class def finished shot 1 piece 1, shot 1 piece 2\n" in said


# -- what is told of a job


def test_commands_can_be_pasted(tmp_path: Path) -> None:
    job = finished(tmp_path)
    journal = Journal.open(job.folder, "driver-2")
    journal.begin_epoch()
    pasted = ["longtake", "resume", "kite-1", "--store", str(tmp_path / "my store")]
    with pytest.raises(BadJob) as refused:
        job.verify()
    assert shlex.split(str(refused.value).partition("first: ")[2]) == pasted
    said = show.job_text(inspect_job.report(job.store, job.folder))
    assert shlex.split(said.partition("next: ")[2]) == pasted
    for outcome in ("interrupted", "failed"):
        ending = show.Ending(
            "kite-1", job.store.root, job.film, job.plan, EndRender(outcome, "why")
        )
        assert shlex.split(ending.text().partition("To go on: ")[2]) == pasted
    done = show.Ending("kite-1", job.store.root, job.film, job.plan, EndRender("done", ""))
    assert shlex.split(done.text().partition("next: ")[2]) == ["longtake", "verify", *pasted[2:]]


def entry(folder: JobFolder) -> Path:
    return max(folder.journal_path.iterdir())


def test_a_job_that_cannot_be_read_is_listed(tmp_path: Path) -> None:
    job = finished(tmp_path)
    assert inspect_job.summary(job.folder)["state"] == "done"
    content = entry(job.folder).read_bytes()
    entry(job.folder).write_bytes(content[:-9])
    assert inspect_job.summary(job.folder)["state"] == "damaged"
    newer = {key: value for key, value in json.loads(content).items() if key != "checksum"}
    entry(job.folder).write_bytes(seal(newer | {"format": 7}))
    row = inspect_job.summary(job.folder)
    assert (row["id"], row["state"]) == ("kite-1", "unreadable")
    assert "was written by another version of Longtake" in row["problem"]
    assert "kite-1  unreadable   " in show.job_table([row])


# -- the film's file while it is not whole

STITCHING = """
import os, signal, sys
from pathlib import Path
from workers.video import encode_segment, stitch
import numpy as np
def segments():
    yield encode_segment(np.zeros((3, 32, 32, 3), np.uint8), fps=8, codec="h264", quality=20)
    if sys.argv[2] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    print("stitching", flush=True)
    input()
stitch(segments(), Path(sys.argv[1]), fps=8, codec="h264", metadata={"film": "black"})
"""


def stitching(film: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STITCHING, str(film), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def stitch_here(film: Path) -> None:
    black = np.zeros((5, 32, 32, 3), np.uint8)
    segment = encode_segment(black, fps=8, codec="h264", quality=20)
    stitch([segment], film, fps=8, codec="h264", metadata={"film": "black"})


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    film, other = tmp_path / "film [1].mp4", tmp_path / "other.mp4"
    with stitching(film, "dies") as one, stitching(other, "dies") as two:
        assert one.wait() == two.wait() == -signal.SIGKILL
    left = set(os.listdir(tmp_path))
    assert len(left) == 2 and all(name.endswith(".part") for name in left)
    stitch_here(film)
    assert len(os.listdir(tmp_path)) == 2, "only its own film's"
    stitch_here(other)
    assert sorted(os.listdir(tmp_path)) == [film.name, other.name]


def test_a_writer_that_lives_keeps_its_file(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    with stitching(film, "goes on") as process:
        assert process.stdout.readline() == "stitching\n"
        stitch_here(film)
        assert len(os.listdir(tmp_path)) == 2
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait() == 0
    assert sorted(os.listdir(tmp_path)) == ["film.1.mp4", film.name], "both films are kept"
    assert len(list(iter_frames(film))) == 3


def test_a_writer_of_another_host_is_left_alone_for_a_day(tmp_path: Path) -> None:
    out = tmp_path / "film.mp4"
    foreign = tmp_path / part_beside(out).name.replace(machine(), "0" * 12)
    foreign.touch()
    part_beside(out)
    assert foreign.exists()
    os.utime(foreign, (0, 0))
    part_beside(out)
    assert not foreign.exists()
