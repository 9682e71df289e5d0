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
from orchestrator.prepare import prepare
from tests.cli.conftest import STEPS, Ran, refusal
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
