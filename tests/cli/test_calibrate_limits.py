"""``longtake calibrate`` where there is little memory, and on what cannot be calibrated on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from accel.slicing import SlicingHandle
from jobs.accelerations import Slicing
from jobs.spec_file import load_spec
from orchestrator.calibrate import _Pace
from orchestrator.prepare import prepare
from tests.cli.conftest import STEPS, Desk, Ran, refusal
from workers import calibration


def test_a_calibration_is_cut_as_its_films_are(
    rehash_job: dict, longtake: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would not fit where they do; what it finds is the same."""
    cut: list[int] = []
    attach = calibration.apply_slicing

    def watched(model: torch.nn.Module, config: Slicing) -> SlicingHandle:
        cut.append(config.slices or 0)
        return attach(model, config)

    monkeypatch.setattr(calibration, "apply_slicing", watched)
    found = []
    for more in ({}, {"slicing": {"slices": 4}}):
        asked = {"rehash": {"threshold": 0.5, "profiles": f"p{len(found)}"}} | more
        Path("film.yaml").write_text(json.dumps(rehash_job | {"accelerations": asked}))
        ran = longtake("calibrate", "film.yaml", "--rehash", "0.5")
        assert ran.code == 0, ran.err
        (file,) = Path(f"p{len(found)}").glob("rehash-profile-*.json")
        found.append(np.array(json.loads(file.read_text())["similarity"]))
    assert cut == [4] and np.allclose(*found, atol=1e-5)


def test_a_calibration_that_has_no_room_is_refused(
    rehash_job: dict, longtake: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*args: object, **more: object) -> None:
        raise torch.cuda.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("workers.profiling.find_profiles", out_of_memory)
        said = refusal(longtake("calibrate", "film.yaml", "--rehash", "0.5"), 6)
        assert "the calibration ran out of memory on" in said and "make it smaller" in said
    needed = prepare(load_spec(Path("film.yaml"), {"accelerations": {}})).plan.peak_bytes
    monkeypatch.setattr("workers.machine.free_bytes", lambda device: 1000)
    said = refusal(longtake("calibrate", "film.yaml", "--rehash", "0.5"), 6)
    assert "a calibration needs about" in said and "slicing in a job file" in said
    monkeypatch.setattr("orchestrator.calibrate.fits", lambda free, asked: asked < needed // 1000)
    monkeypatch.setattr("workers.machine.free_bytes", lambda device: 2 * needed)
    said = refusal(longtake("calibrate", "film.yaml", "--rehash", "0.5"), 6)
    assert f"holds the features of {STEPS} steps at once, about" in said


@pytest.mark.parametrize("shots", [1, 2])
def test_a_search_that_has_no_room_on_the_host_is_refused(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, shots: int
) -> None:
    prompts = [word for n in range(shots) for word in ("--prompt", f"kite {n}")]
    asked = ("calibrate", desk.model, *prompts, "--seconds", "1", "--size", "32x32")
    monkeypatch.setattr("orchestrator.calibrate.fits", lambda free, needed: False)
    said = refusal(desk.run(*asked), 6)
    of, fix = ("a shot", "free; make") if shots == 1 else ("2 shots", "calibrate on fewer shots, ")
    assert f"a search holds what all layers made of {of}, about" in said and fix in said


def test_a_long_calibration_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s, said = [0.0], list[str]()
    monkeypatch.setattr("orchestrator.calibrate.time.monotonic", lambda: clock_s[0])
    pace = _Pace(4, first=1, say=said.append)
    pace.begin(1, "step 2 of 4")
    for layer, at_s in enumerate((10.0, 20.0, 40.0, 50.0), 1):
        clock_s[0] = at_s
        left = pace.left(layer / 4)
        if pace.silent:
            pace.tell(f"layer {layer}{left}")
    assert said == ["layer 3; about 2:15 left"]


def test_a_model_that_gives_no_numbers_is_not_calibrated(
    rehash_job: dict, longtake: Callable[..., Ran]
) -> None:
    (file,) = Path(rehash_job["model"], "unet").glob("*.safetensors")
    weights = load_file(file)
    weights["conv_out.bias"] *= float("nan")
    save_file(weights, file)
    said = refusal(longtake("calibrate", "film.yaml", "--rehash", "0.5"), 3)
    assert "the model's prediction became NaN or infinite in float32" in said
    assert not list(Path("plans").glob("rehash-*"))


def test_shots_with_another_guidance_are_left_out(
    rehash_job: dict, longtake: Callable[..., Ran]
) -> None:
    """Planning looks for what the first of the longest shots needs."""
    shots = [{"prompt": f"kite {n}", "seconds": 1, "guidance": g} for n, g in enumerate((5, 1, 6))]
    film = {name: value for name, value in rehash_job.items() if name not in ("prompt", "seconds")}
    Path("film.yaml").write_text(json.dumps(film | {"shots": shots}))
    ran = longtake("calibrate", "film.yaml", "--rehash", "0.0")
    assert ran.code == 0, ran.err
    assert "shot 2 of 2" in ran.err, "the guided ones"
    ran = longtake("plan", "film.yaml", "--json")
    assert ran.code == 0 or "nothing to reuse" in ran.err, ran.err
