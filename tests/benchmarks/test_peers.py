"""Peers around a render: each leaves something out, and nothing of itself behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from benchmarks.here import Here, render_here
from benchmarks.peers import OF_FAMILY, PEERS, HooksNothing, cached, in_one_batch, mag_ratios
from tests.marks import few
from tests.workers.tiny_animatediff import write_tiny_animatediff
from tests.workers.tiny_cogvideox import write_tiny_cogvideox
from tests.workers.tiny_hunyuan_video import write_tiny_hunyuan_video
from tests.workers.tiny_ltx import write_tiny_ltx
from tests.workers.tiny_svd import FRAMES, write_image, write_tiny_svd

STEPS = 12
#: On random weights most blocks change little from step to step, so the loosest setting engages.
LOOSEST = -1


@pytest.fixture(scope="module")
def job(tiny_wan: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_wan), "steps": STEPS, "pyramid": "off", "pixel_frames": 17,
        "size": [32, 32], "told": [{"prompt": "a hat"}, {"prompt": "two cats"}],
    }  # fmt: skip


def film(job: dict[str, Any], *tune: Any) -> Here:
    told = {name: each for name, each in job.items() if name != "told"}
    shot = {} if "image" in job else {"prompt": "a red ball rolls"}
    return render_here(told | shot, *tune)


def skip_unless_installed(kind: str) -> None:
    """Those from PyPI."""
    name = kind.split(",")[0].split()[0].replace("-", "_")
    if name in ("cache_dit", "para_attn", "DeepCache"):
        pytest.importorskip(name, reason="the extra 'peers'")


@pytest.fixture(scope="module")
def full(job: dict[str, Any]) -> Here:
    return film(job)


@pytest.mark.parametrize("kind", few(OF_FAMILY["wan"], "FirstBlockCache", "MagCache", "PAB"))
def test_a_peer_leaves_something_out_and_nothing_behind(
    kind: str, job: dict[str, Any], full: Here
) -> None:
    skip_unless_installed(kind)
    tune = list(PEERS[kind](job).values())[LOOSEST]
    fast, again, after = film(job, tune), film(job, tune), film(job)
    assert fast.operations < full.operations
    assert not np.array_equal(fast.frames, full.frames)
    assert np.array_equal(again.frames, fast.frames)  # it begins each film anew
    assert np.array_equal(after.frames, full.frames)
    assert after.operations == full.operations and after.passes == full.passes == 2 * STEPS


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Jobs of the other families."""
    folder = tmp_path_factory.mktemp("others")
    image = write_image(folder / "image.png").path
    made = {
        "animatediff": write_tiny_animatediff(folder / "animatediff"),
        "svd": write_tiny_svd(folder / "svd"),
        "ltx": write_tiny_ltx(folder / "ltx", layers=3),
        "cogvideox": write_tiny_cogvideox(folder / "cogvideox", layers=3),
        "hunyuan-video": write_tiny_hunyuan_video(folder / "hunyuan-video", layers=3),
    }
    told = [{"prompt": "a hat"}, {"prompt": "two cats"}]
    asked = {"steps": STEPS, "pyramid": "off", "pixel_frames": 17, "size": [64, 64], "told": told}
    unets = {"pixel_frames": FRAMES, "size": [32, 32]}
    more = {"animatediff": unets, "svd": unets | {"image": image}}
    return {f: asked | more.get(f, {}) | {"model": str(model)} for f, model in made.items()}


@pytest.mark.parametrize(
    ("family", "kind"),
    few(
        [(f, kind) for f, kinds in OF_FAMILY.items() if f != "wan" for kind in kinds],
        ("animatediff", "PAB, UNet"),
        ("hunyuan-video", "TaylorSeer"),
    ),
)
def test_a_peer_leaves_something_out_of_other_families(
    family: str, kind: str, others: dict[str, dict[str, Any]]
) -> None:
    skip_unless_installed(kind)
    job = others[family]
    tune = list(PEERS[kind](job).values())[LOOSEST]
    full, fast, after = film(job), film(job, tune), film(job)
    assert fast.operations < full.operations
    assert not np.array_equal(fast.frames, full.frames)
    assert np.array_equal(after.frames, full.frames) and after.operations == full.operations


def test_a_peer_that_hooks_nothing_is_an_error(job: dict[str, Any]) -> None:
    """TaylorSeer as it comes: its identifiers match whole names, and no module of Wan has one."""
    config = diffusers.TaylorSeerCacheConfig()
    with pytest.raises(HooksNothing, match="TaylorSeerCacheConfig"):
        film(job, cached(config))


def test_a_peer_is_off_again_after_an_error(job: dict[str, Any], full: Here) -> None:
    def fails(family: Any) -> Any:
        with cached(diffusers.FirstBlockCacheConfig(threshold=9.0))(family):
            raise KeyError("on purpose")

    with pytest.raises(KeyError):
        film(job, fails)
    assert np.array_equal(film(job).frames, full.frames)


def test_both_branches_in_one_call_are_the_same_film(job: dict[str, Any], full: Here) -> None:
    """So what is lost under PAB and FasterCache is lost by them. Equal but for rounding."""

    def idle(model: Any, timestep: Any) -> None:
        model.forward = model.forward  # changes nothing, but stands where a peer would

    batched = film(job, lambda family: in_one_batch(family, idle))
    assert batched.passes == STEPS and batched.operations == full.operations
    apart = batched.frames.astype(int) - full.frames
    assert abs(apart).max() <= 1


def test_calibration_finds_a_ratio_for_each_step(job: dict[str, Any]) -> None:
    ratios = mag_ratios(job)
    assert len(ratios) == STEPS and ratios[0] == 1.0
    assert all(0.3 < ratio < 3 for ratio in ratios) and len(set(ratios)) > STEPS // 2
