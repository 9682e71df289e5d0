"""Settings that are found on the job itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.sweeps import adaptive_rehash, rehash_profile
from tests.workers.tiny_animatediff import write_tiny_animatediff


def test_kinds_that_ask_for_a_jobs_profile_share_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.sweeps.PROFILED", (0.01, 0.0))  # random weights: little alike
    folder = write_tiny_animatediff(tmp_path / "model")
    (folder / "longtake.json").write_text('{"format": 1, "size": [32, 32]}')
    job = {
        "model": str(folder), "steps": 3, "pyramid": "off", "pixel_frames": 8,
        "told": [{"prompt": "a kite"}, {"prompt": "a gull"}],
    }  # fmt: skip
    alone = {each["rehash"]["profiles"] for each in rehash_profile(job).values()}
    beside = {each["rehash"]["profiles"] for each in adaptive_rehash(job).values()}
    assert alone == beside and len(alone) == 1
    (other,) = {each["rehash"]["profiles"] for each in rehash_profile(job | {"steps": 4}).values()}
    assert other not in alone


@pytest.mark.long
def test_its_folders_go_with_the_process() -> None:
    code = "from benchmarks.sweeps import _new_folder; print(_new_folder(), end='')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout and not Path(ran.stdout).exists()
