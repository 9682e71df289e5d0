"""What becomes of the renders' figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.techniques import compared, engaged, gain, plot, summaries


def run(speed: float, operations: float, psnr_db: float) -> dict[str, float]:
    return {
        "speed": speed, "fewer_passes": 1.0, "fewer_operations": operations,
        "psnr_db": psnr_db, "ssim": psnr_db / 60,
    }  # fmt: skip


RUNS = {
    ("cache", "0.1"): [run(1.0, 1.4, 50.0), run(1.5, 1.6, 30.0), run(9.0, 1.5, 40.0)],
    ("cache", "0.2"): [run(2.0, 2.0, 30.0), run(2.5, 2.2, 24.0), run(3.0, 2.4, 27.0)],
    ("cache", "0.001"): [run(1.0, 1.0, 60.0)] * 3,
}


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return list(summaries(RUNS, "a peer's"))


def test_a_disturbed_minute_does_not_count_and_the_worst_prompt_does(
    rows: list[dict[str, Any]],
) -> None:
    first = rows[0]
    assert first["speed"] == 1.5 and first["fewer_operations"] == pytest.approx(1.5)
    assert first["psnr_db"] == 40.0 and first["worst_psnr_db"] == 30.0
    assert first["worst_ssim"] == 0.5


def test_what_left_nothing_out_is_no_point(rows: list[dict[str, Any]]) -> None:
    assert [row["value"] for row in engaged(rows)] == ["0.1", "0.2"]


def test_each_line_is_read_at_the_mean_and_at_the_worst_prompt(rows: list[dict[str, Any]]) -> None:
    tables = compared(rows)
    assert tables["speed at psnr_db"]["cache"][36.0] == pytest.approx(1.5 + 4 / 13)
    assert tables["speed at worst_psnr_db"]["cache"][36.0] is None
    assert tables["fewer_operations at worst_psnr_db"]["cache"][28.0] == pytest.approx(
        1.5 + 0.7 / 3
    )


def test_a_pyramid_is_held_against_its_plain_twin(rows: list[dict[str, Any]]) -> None:
    beside = {"over_plain": 6.0, "fewer_operations_than_plain": 5.0}
    assert gain(rows[0] | beside, "speed") == 6.0 and gain(rows[0], "speed") == 1.5
    pyramid = [row | {"over_plain": 2 * row["speed"]} for row in rows]
    assert compared(pyramid)["speed at psnr_db"]["cache"][36.0] == pytest.approx(3 + 8 / 13)


def test_the_plot_is_a_picture(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    plot(rows, tmp_path / "figures" / "plot.png")
    assert (tmp_path / "figures" / "plot.png").read_bytes().startswith(b"\x89PNG")
