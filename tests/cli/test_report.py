"""``longtake report``, as a command."""

from __future__ import annotations

import io
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Desk, refusal
from workers.video import encode_segment


def write_film(desk: Desk, name: str, frames: int = 24) -> str:
    film = np.full((frames, 32, 32, 3), 90, np.uint8)
    (desk.folder / name).write_bytes(encode_segment(film, fps=12, codec="h264", quality=10))
    return name


def test_a_page_of_any_film(desk: Desk) -> None:
    ran = desk.run("report", write_film(desk, "sea.mp4"))
    assert (ran.code, ran.out) == (0, ""), ran.err
    assert "report: sea.report.html" in ran.err
    assert (desk.folder / "sea.report.html").read_text().startswith("<!doctype html>")


def test_known_borders(desk: Desk) -> None:
    film = write_film(desk, "sea.mp4")
    ran = desk.run("report", film, "--json", "--border", "0.5", "--border", "1")
    assert ran.code == 0, ran.err
    assert [seam["frame"] for seam in ran.json()["shots"][0]["seams"]] == [6, 12]


def test_json_writes_a_page_only_if_asked(desk: Desk) -> None:
    film = write_film(desk, "sea.mp4")
    ran = desk.run("report", film, "--json", "--reference", film)
    assert ran.code == 0 and ran.json()["fidelity"]["equal_frames"] == 24
    assert not list(desk.folder.glob("*.html"))
    ran = desk.run("report", film, "--json", "--out", "a.html")
    assert ran.code == 0 and (desk.folder / "a.html").exists()


def test_mistakes(desk: Desk, stored: str) -> None:
    film = write_film(desk, "sea.mp4")
    other = write_film(desk, "short.mp4", frames=12)
    said = refusal(desk.run("report", stored, "--store", desk.store), 2)
    assert f"job {stored} is planned, with no film yet; longtake resume {stored} --store" in said
    said = refusal(desk.run("report", film, "--reference", other), 2)
    assert "the reference ends after 12 frames" in said
    said = refusal(desk.run("report", stored, "--store", desk.store, "--border", "1"), 2)
    assert f"--border is for video files, and {stored} is none" in said
    said = refusal(desk.run("report", film, "--border", "2"), 2)
    assert "--border 2 is not inside" in said and "from 0.08 to 1.92 s" in said
    said = refusal(desk.run("report", film, "--out", "missing/a.html"), 2)
    assert "--out missing/a.html: the folder does not exist; create it first" in said
    before = (desk.folder / film).read_bytes()
    said = refusal(desk.run("report", film, "--out", film), 2)
    assert "the file's name must end in .html" in said
    assert (desk.folder / film).read_bytes() == before


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif"])
def test_a_picture_is_no_film(desk: Desk, name: str) -> None:
    Image.new("RGB", (32, 32), "red").save(desk.folder / name)
    said = refusal(desk.run("report", name), 2)
    assert said == (
        f"{name} is a still picture; give a film file, or a job: `longtake ls` lists them"
    )
    film = write_film(desk, "sea.mp4")
    said = refusal(desk.run("report", film, "--reference", name), 2)
    assert said == f"--reference {name} is a still picture; give a film of the same length"


def test_a_film_may_have_one_frame(desk: Desk) -> None:
    assert desk.run("report", write_film(desk, "one.mp4", frames=1), "--json").code == 0


def test_a_film_that_changes_its_size(desk: Desk) -> None:
    """Recordings of calls do, where the connection does."""
    with av.open(str(desk.folder / "call.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=12)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        for n in range(24):
            still = io.BytesIO()
            Image.new("RGB", (32 if n < 20 else 48, 32), "red").save(still, "JPEG")
            packet = av.Packet(still.getvalue())
            packet.stream, packet.pts, packet.dts = stream, n, n
            packet.time_base = Fraction(1, 12)
            container.mux(packet)
    said = refusal(desk.run("report", "call.avi"), 2)
    assert "changes its size from 32x32 to 48x32 at frame 20; convert it to one size" in said


def test_other_files_are_no_films(desk: Desk) -> None:
    desk.job("prompt: a red kite")
    desk.job("a red kite\n" * 99, "notes.txt")
    desk.job(b"", "empty.mp4")
    with wave.open(str(desk.folder / "a.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    for name in ("film.yaml", "empty.mp4", "a.wav"):
        said = refusal(desk.run("report", name), 2)
        assert said.startswith(f"{name} is no video that can be read; give a film file, or a job: ")
    assert refusal(desk.run("report", "notes.txt"), 2).startswith("notes.txt is a text; give")


def test_what_is_neither_a_file_nor_a_job(desk: Desk) -> None:
    """Whether there is a store or not."""
    said = refusal(desk.run("report", "sea.mp4", "--store", desk.store), 2)
    assert said.startswith("sea.mp4 is no film file here, and no job (there is no store at ")
    assert said.endswith("); give a film file, or a job's id")


def test_a_job_that_is_not_there(desk: Desk, stored: str) -> None:
    said = refusal(desk.run("report", "gull-1", "--store", desk.store), 2)
    assert f"(no job 'gull-1' in {desk.store}; there are: {stored}); give" in said


def test_a_store_that_cannot_be_read_is_not_blamed_on_the_name(desk: Desk, stored: str) -> None:
    (desk.store / "store.json").write_text("{}")
    said = refusal(desk.run("report", stored, "--store", desk.store), 6)
    assert said.startswith(f"{desk.store}/store.json is damaged; ")
    (desk.store / "store.json").write_text('{"format": 9}')
    said = refusal(desk.run("report", stored, "--store", desk.store), 6)
    assert f"{desk.store} has store format 9, and this Longtake reads format 1" in said
