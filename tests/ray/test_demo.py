"""``make demo`` is the first thing that a newcomer runs, and perhaps the first that they stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.ray.harness import ROOT, environment, job_ids, units_logged
from workers.films import read_film


def demo(folder: Path) -> subprocess.Popen[bytes]:
    """The demo in a folder, in a session of its own as a terminal would have it."""
    with (folder / "log.txt").open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.demo"],
            cwd=folder,
            env=environment(PYTHONPATH=ROOT),
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def interrupt(folder: Path) -> str:
    """Ctrl-C once anything was computed; what was said. A terminal sends it to all processes."""
    process = demo(folder)
    while process.poll() is None and not units_logged(folder / "demo-store"):
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    os.killpg(process.pid, signal.SIGINT)
    code = process.wait(120)
    said = (folder / "log.txt").read_text()
    assert code == 130, said
    return said


@pytest.mark.long
def test_ctrl_c_in_the_demo_leaves_in_order(tmp_path: Path) -> None:
    said = interrupt(tmp_path)
    assert f"longtake resume {job_ids(tmp_path / 'demo-store')[0]}" in said
    assert "Traceback" not in said


@pytest.mark.long
def test_the_demo_goes_on_and_makes_a_film_and_a_contact_sheet(tmp_path: Path) -> None:
    interrupt(tmp_path)
    assert demo(tmp_path).wait(600) == 0
    (job,) = job_ids(tmp_path / "demo-store")
    said = (tmp_path / "log.txt").read_text()
    assert "Rendered 21 s in 3 shots" in said and f"longtake verify {job}" in said
    assert read_film(tmp_path / "demo.mp4").pixel_frames == 252
    with Image.open(tmp_path / "demo.png") as sheet:
        assert sheet.width > 8 * 96 and sheet.height > 3 * 96
