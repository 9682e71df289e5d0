"""What becomes of the renders' figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.common import RESULTS
from benchmarks.sweeps import KINDS, OF_NOISE, reuses
from benchmarks.techniques import (
    LABELS,
    compared,
    engaged,
    label,
    measure_pyramid,
    ours,
    plot,
    summaries,
)
from jobs.presets import PRESETS, WITH_NOISE, WITH_PYRAMID


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


def test_a_threshold_that_makes_every_step_a_key_step_is_left_out() -> None:
    alike, unlike = np.ones((4, 4)), np.eye(4)
    assert reuses([alike, unlike], 0.99)
    assert not reuses([unlike, unlike], 0.99)


def test_each_line_is_read_at_the_mean_and_at_the_worst_prompt(rows: list[dict[str, Any]]) -> None:
    tables = compared(rows)
    assert tables["speed at psnr_db"]["cache"][36.0] == pytest.approx(1.5 + 4 / 13)
    assert tables["speed at worst_psnr_db"]["cache"][36.0] is None
    assert tables["fewer_operations at worst_psnr_db"]["cache"][28.0] == pytest.approx(
        1.5 + 0.7 / 3
    )


def test_a_pyramid_has_tables_of_its_own(rows: list[dict[str, Any]]) -> None:
    """Its fidelity is to another full render: its speed over the twin wins no comparison."""
    beside = [
        row
        | {"kind": "pyramid, cache", "over_plain": 2 * row["speed"]}
        | {"fewer_operations_than_plain": 2 * row["fewer_operations"]}
        | {"over_one_window": row["speed"]}
        | {"fewer_operations_than_one_window": row["fewer_operations"]}
        for row in rows
    ]
    tables = compared([*rows, *beside])
    assert list(tables["speed at psnr_db"]) == ["cache"]
    own = {name: table for name, table in tables.items() if name.startswith("pyramid: ")}
    assert all(list(table) == ["pyramid, cache"] for table in own.values())
    once, twice = (own[f"pyramid: {axis} at psnr_db"] for axis in ("speed", "over_plain"))
    assert twice["pyramid, cache"][36.0] == pytest.approx(2 * once["pyramid, cache"][36.0])
    assert once["pyramid, cache"][36.0] == tables["speed at psnr_db"]["cache"][36.0]


def test_a_pyramids_speed_is_also_over_what_a_pipeline_does(tiny_wan: Path) -> None:
    """Several windows of the twin's, or one."""
    plain = {
        "model": str(tiny_wan), "steps": 8, "pyramid": "off", "pixel_frames": 41, "size": [32, 32],
        "window_latent_frames": 5, "overlap_latent_frames": 2,
    }  # fmt: skip
    settings = ours({"pyramid": lambda job: {"alone": {}}}, plain)

    def row(frames: int) -> dict[str, float]:
        told = plain | {"pixel_frames": frames}
        rows = measure_pyramid(told | {"pyramid": 2}, told, [{"prompt": "a hat"}], settings)
        return rows["pyramid", "alone"][0]

    several, one = row(41), row(9)
    flat, whole = "fewer_operations_than_plain", "fewer_operations_than_one_window"
    assert several[whole] != several[flat] and min(several[whole], several[flat]) > 1
    assert one[whole] == one[flat] and one["over_one_window"] == one["over_plain"]


def test_kinds_are_drawn_by_the_names_of_the_page() -> None:
    page = (RESULTS.parents[1] / "docs/figures.md").read_text(encoding="utf-8")
    assert LABELS.keys() == KINDS.keys()
    of_one = [name for name in LABELS.values() if ";" not in name]
    missing = [name for name in of_one if f"| {name} " not in page.replace("`", "")]
    assert missing == ["rehash, every so many steps"], "that is in the picture alone"
    assert label({"kind": "SeaCache", "whose": "a peer's"}) == "peer: SeaCache"
    assert (
        label({"kind": "pyramid, adaptive", "whose": "ours"}) == "pyramid: adaptive, form: tensor"
    )


def test_the_plot_is_a_picture(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    plot(rows, tmp_path / "figures" / "plot.png")
    assert (tmp_path / "figures" / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["balanced", "fast"])
def test_presets_say_what_was_measured(name: str) -> None:
    """The newest results, without a pyramid and with one."""
    preset = PRESETS[name]
    for family, said in preset.measured.items():
        noisy, staged = family.endswith(WITH_NOISE), family.endswith(WITH_PYRAMID)
        plain = family.removesuffix(WITH_NOISE).removesuffix(WITH_PYRAMID)
        settings = preset.with_noise[plain] if noisy else preset.settings_of(plain)
        adaptive = settings.adaptive
        assert adaptive is not None
        file = "" if plain == "wan" else f"_{plain}"
        if noisy:
            file += "_cogvideox-dpm" if plain == "cogvideox" else "_sde-dpm++"
            kind = OF_NOISE
            assert (adaptive.form, adaptive.last) == ("scalar", 3)
        else:
            kind = "adaptive spectral, forecast" if adaptive.forecast else "adaptive spectral"
            assert adaptive.form == "spectral"
        if staged:
            of = {"wan": "", "animatediff": "_32_frames_animatediff"}[plain]
            file, kind = f"_pyramid{of}", f"pyramid, {kind}"
        results = f"techniques{file}_cpu_*.json"
        rows = json.loads(max(RESULTS.glob(results)).read_text())["rows"]
        (row,) = (
            row for row in rows if (row["kind"], row["value"]) == (kind, str(adaptive.threshold))
        )
        found = [row["psnr_db"], row["worst_psnr_db"]]
        assert [said.psnr_db, said.worst_psnr_db] == pytest.approx(found, abs=0.05, rel=0)
        assert said.speed == pytest.approx(row["fewer_operations"], abs=0.005, rel=0)
        over = row.get("fewer_operations_than_plain")
        assert said.over_plain == (over and pytest.approx(over, abs=0.005, rel=0))
