"""``make demo`` is the first thing that a newcomer runs, and perhaps the first that they stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.ray.harness import environment, job_ids, units_logged


def test_ctrl_c_in_the_demo_leaves_in_order(tmp_path: Path) -> None:
    """A terminal sends the signal to the whole process group."""
    root = str(Path(__file__).parents[2])
    store, log = tmp_path / "demo-store", tmp_path / "log.txt"
    with log.open("w") as out:
        demo = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.demo"],
            cwd=tmp_path,
            env=environment(PYTHONPATH=root),
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        while demo.poll() is None and not units_logged(store):
            try:
                demo.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        os.killpg(demo.pid, signal.SIGINT)
        code = demo.wait(120)
    said = log.read_text()
    assert code == 130, said
    assert f"longtake resume {job_ids(store)[0]}" in said
    assert "Traceback" not in said
