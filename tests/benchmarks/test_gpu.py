"""What is prepared for a machine with a GPU runs, small and on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import beside, ratios

ROOT = Path(__file__).parents[2]

REHEARSED = """
import sys
from benchmarks.gpu import main
main()
assert "ray" not in sys.modules, "a machine with a GPU may have none"
"""


def rehearse(part: str) -> dict:
    command = [sys.executable, "-c", REHEARSED, "--quick", "--part", part]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.long
@pytest.mark.parametrize("part", ["wan", "svd", "animatediff"])
def test_a_family(part: str) -> None:
    found = rehearse(part)["bfloat16"]
    rows = next(iter(found["rows"].values()))
    assert rows["reused"]["peak_bytes"] < rows["key"]["peak_bytes"]
    assert rows["sliced"]["peak_bytes"] < rows["stock"]["peak_bytes"]
    assert found["ratios"]["estimate_over_peak_denoiser"]["ours"] == pytest.approx(1, abs=0.3)
    assert ("paper" in found["ratios"]["peak_over_stock"]) == (part != "wan")


@pytest.mark.long
def test_attention() -> None:
    found = rehearse("attention")["bfloat16"]
    assert found["largest_error"] < 0.05
    assert {"dense", "windowed"} <= found["ratios"]["small"].keys()
    assert {"window", "share_steps"} == found["wan"]["times_faster"].keys()


@pytest.mark.long
def test_passes_that_are_left_out() -> None:
    found = rehearse("left_out")["bfloat16"]
    assert found["times_faster"].keys() == found["rows"].keys() - {"full"}


def test_ratios_are_of_the_phase_that_needs_most_with_all_weights() -> None:
    def row(seconds: float, peak: int) -> dict[str, float]:
        return {"seconds": seconds, "peak_bytes": peak}

    rows = {
        "unet": {"stock": row(2, 50), "sliced": row(3, 20), "reused": row(0, 1)},
        "vae": {"stock": row(9, 90), "sliced": row(9, 10)},
    }
    found = ratios(rows, "unet", 10, {"unet": 30, "vae": 10})
    assert found == {
        "peak_over_stock": 0.3, "sliced_time_over_stock": 1.5, "rehash_times_faster": 25 / 13,
        "estimate_over_peak_unet": 1.5, "estimate_over_peak_vae": 1.0,
    }  # fmt: skip
    said = beside({"a": 2.0, "b": 3.0}, {"a": 4.0})
    assert said == {"a": {"ours": 2.0, "paper": 4.0}, "b": {"ours": 3.0}}
