"""``longtake report``, as a command."""

from __future__ import annotations

import numpy as np

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
    assert f"job {stored} has no film yet; longtake resume {stored}" in said
    said = refusal(desk.run("report", film, "--reference", other), 2)
    assert "the reference ends after 12 frames" in said
    said = refusal(desk.run("report", stored, "--store", desk.store, "--border", "1"), 2)
    assert f"--border is for video files, and {stored} is none" in said
    said = refusal(desk.run("report", film, "--border", "2"), 2)
    assert "--border 2 is not inside" in said and "from 0.08 to 1.92 s" in said
    assert "no job" in refusal(desk.run("report", "nothing", "--store", desk.store), 2)
    assert "cannot be written" in refusal(desk.run("report", film, "--out", "missing/a.html"), 2)
