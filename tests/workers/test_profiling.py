"""Profiles of Step Rehash, made of what renders keep; an interrupted one goes on."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from accel.memory import TensorAccounting
from accel.rehash import similarity
from jobs.accelerations import Accelerations, Rehash
from jobs.errors import BadJob
from jobs.rehash_profile import load
from jobs.units import Window
from tests.workers.tiny import render_windows, tiny_worker
from tests.workers.tiny_cogvideox import cogvideox_shot, write_tiny_cogvideox
from tests.workers.tiny_families import tiny_family
from tests.workers.tiny_hunyuan_video import hunyuan_shot, write_tiny_hunyuan_video
from tests.workers.tiny_ltx import ltx_shot, write_tiny_ltx
from workers.bundles import to_tensors
from workers.calibration import shot_keys
from workers.families import open_family
from workers.profiling import find_profiles

WHOLE = [Window(0, 0, 5)]


#: Transformers of three layers, as rehash wants them, and the branches that run by themselves.
DEEP = {
    "ltx": (write_tiny_ltx, ltx_shot, ["both"]),
    "cogvideox": (write_tiny_cogvideox, cogvideox_shot, ["both"]),
    "hunyuan-video": (
        partial(write_tiny_hunyuan_video, guidance_embeds=False), hunyuan_shot, ["cond", "uncond"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_a_profile_is_of_what_a_transformers_render_keeps(tmp_path: Path, name: str) -> None:
    write, shot_of, branches = DEEP[name]
    folder = write(tmp_path / name, layers=3)
    shot = shot_of(latent_frames=5, stage_steps=(3,))
    asked = Accelerations(rehash=Rehash(key_steps=((0, 1, 2),)))
    worker = tiny_worker(folder, family=name, accelerations=asked)
    done = render_windows(worker, shot, WHOLE)
    kept = [to_tensors(done[0, step], "accel.rehash.") for step in range(2)]
    family = open_family(name, str(folder), "float32", "cpu")
    (found,) = find_profiles(family, "m", [shot], folder=tmp_path / "plans")
    each = [similarity([step[f"{branch}.feature"] for step in kept]) for branch in branches]
    np.testing.assert_allclose(found[:2, :2], np.mean(each, axis=0), rtol=1e-12)
    assert 0 < found[0, 2] < 1


def test_a_profile_is_of_the_features_that_a_render_keeps(tmp_path: Path) -> None:
    tiny = tiny_family("animatediff", tmp_path)
    shot = dataclasses.replace(tiny.shot, stage_steps=(4,))
    asked = Accelerations(rehash=Rehash(key_steps=((0, 1, 2, 3),)))
    worker = tiny_worker(tiny.folder, family=tiny.name, accelerations=asked)
    done = render_windows(worker, shot, WHOLE)
    kept = [to_tensors(done[0, step], "accel.rehash.")["both.feature"] for step in range(3)]
    family = open_family(tiny.name, str(tiny.folder), "float32", "cpu")
    (found,) = find_profiles(family, "m", [shot], folder=tmp_path / "plans")
    np.testing.assert_allclose(found[:3, :3], similarity(kept), rtol=1e-12)
    assert found.shape == (4, 4) and 0 < found[0, 3] < 1
    (key,) = shot_keys(family, "m", shot)
    np.testing.assert_array_equal(load(tmp_path / "plans", key), found)


def test_every_stage_has_a_profile(tmp_path: Path) -> None:
    tiny = tiny_family("animatediff", tmp_path)
    shot = dataclasses.replace(tiny.shot, stage_steps=(3, 2))
    family = open_family(tiny.name, str(tiny.folder), "float32", "cpu")
    shots, told = [shot, dataclasses.replace(shot, seed=8)], []
    found = find_profiles(family, "m", shots, folder=tmp_path, progress=lambda *at: told.append(at))
    assert [each.shape for each in found] == [(3, 3), (2, 2)]
    steps = {0: 3, 1: 2}
    assert told == [(at, n, step) for at in steps for n in (0, 1) for step in range(steps[at])]
    for key, each in zip(shot_keys(family, "m", shot), found, strict=True):
        np.testing.assert_array_equal(load(tmp_path, key), each)
    alone = [find_profiles(family, "m", [each], folder=tmp_path / "alone") for each in shots]
    for stage, mean in enumerate(found):
        np.testing.assert_allclose(mean, (alone[0][stage] + alone[1][stage]) / 2)


@pytest.mark.long
def test_features_of_one_shot_at_a_time_are_held(tmp_path: Path) -> None:
    tiny = tiny_family("animatediff", tmp_path)
    shot = dataclasses.replace(tiny.shot, stage_steps=(8,))
    family = open_family(tiny.name, str(tiny.folder), "float32", "cpu")
    shots = [dataclasses.replace(shot, seed=seed) for seed in range(4)]
    find_profiles(family, "m", shots[:1], folder=tmp_path)  # loads what is loaded once
    peaks_bytes = []
    for some in (shots[:1], shots):
        with TensorAccounting() as memory:
            find_profiles(family, "m", some, folder=tmp_path / str(len(some)))
        peaks_bytes.append(memory.peak_bytes)
    one, four = peaks_bytes
    assert four < 1.2 * one


#: In which shot, stage and step.
STOPS = [pytest.param(each, marks=pytest.mark.long) for each in ((0, 1, 1), (1, 0, 0))]


@pytest.mark.parametrize("stop_at", [*STOPS, (1, 1, 1)])
def test_it_goes_on_after_an_interruption(tmp_path: Path, stop_at: tuple[int, int, int]) -> None:
    """Two shots through two stages: what each has finished in a stage is not computed again."""
    tiny = tiny_family("animatediff", tmp_path)
    shot = dataclasses.replace(tiny.shot, stage_steps=(3, 2))
    shots = [shot, dataclasses.replace(shot, seed=8)]

    def family():
        return open_family(tiny.name, str(tiny.folder), "bfloat16", "cpu")

    whole = find_profiles(family(), "m", shots, folder=tmp_path / "whole")
    folder = tmp_path / "plans"

    def stop(*at: int) -> None:
        if at == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_profiles(family(), "m", shots, folder=folder, progress=stop)
    assert not list(folder.glob("rehash-profile-*")) or stop_at[0] == 1
    told = list[tuple[int, int, int]]()
    again = find_profiles(family(), "m", shots, folder=folder, progress=lambda *at: told.append(at))
    order = [(stage, number) for stage in (0, 1) for number in (0, 1)]
    assert sorted({at[:2] for at in told}) == order[order.index(stop_at[:2]) :]
    for ours, theirs in zip(again, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    told.clear()
    loaded = family()
    find_profiles(loaded, "m", shots, folder=folder, progress=lambda *at: told.append(at))
    assert told == [] and loaded.loaded_bytes() == 0, "all of it is on file"
    find_profiles(family(), "m", [shots[1]], folder=folder, progress=lambda *at: told.append(at))
    assert told == [], "of a shot in other company, too"


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    tiny = tiny_family("animatediff", tmp_path)
    shot = dataclasses.replace(tiny.shot, stage_steps=(2,))
    family = open_family(tiny.name, str(tiny.folder), "float32", "cpu")
    find_profiles(family, "m", [shot], folder=tmp_path)
    (path,) = tmp_path.glob("rehash-part-*.json")
    record = json.loads(path.read_text())
    (found,) = record["similarities"]  # of both branches as one batch
    other = ([], [found, [[1.0]]], [found[0]], [[[1.0, None], [None, 1.0]]])
    changes = [{"latents": "AAAA"}, *({"similarities": each} for each in other)]
    for text in ("", "{}", *(json.dumps(record | change) for change in changes)):
        path.write_text(text)
        with pytest.raises(
            BadJob, match=r"rehash-part-\w+.json is no part of a profile .*delete it"
        ):
            find_profiles(family, "m", [shot], folder=tmp_path)
    path.write_text(json.dumps(record | {"made_for": {}}))
    with pytest.raises(BadJob, match="is of another calibration; delete it"):
        find_profiles(family, "m", [shot], folder=tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_profile_is_made_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    tiny = tiny_family("animatediff", tmp_path)
    here, there = (
        find_profiles(
            open_family(tiny.name, str(tiny.folder), "float32", device), "m", [tiny.shot],
            folder=tmp_path / device,
        )
        for device in ("cpu", "cuda:0")
    )  # fmt: skip
    np.testing.assert_allclose(there, here, rtol=1e-3)
