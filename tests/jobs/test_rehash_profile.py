"""The profile of rehash: its file. What is chosen from it: tests/accel/test_rehash.py."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jobs.calibration import CalibrationKey, found_in
from jobs.errors import CannotRunHere
from jobs.rehash_profile import load, save

KEY = CalibrationKey(
    model="a" * 64,
    latent_size=(9, 12, 12),
    stage_steps=(3,),
    stage=0,
    scheduler="ddim",
    flow_shift=None,
    guided=True,
    dtype="bfloat16",
)
SIMILARITY = np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 1 / 3], [0.1, 1 / 3, 1.0]])


def test_a_saved_profile_is_found_by_its_key_to_the_last_bit(tmp_path: Path) -> None:
    save(tmp_path / "plans", KEY, SIMILARITY, {"prompts": []})
    assert np.array_equal(load(tmp_path / "plans", KEY), SIMILARITY)
    other = dataclasses.replace(KEY, scheduler="euler")
    with pytest.raises(
        CannotRunHere, match=r"plans has no rehash profile of this model.* of euler"
    ):
        load(tmp_path / "plans", other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"similarity": [[1.0]]}, "does not hold similarities of 3 steps: calibrate again"),
        ({"similarity": [[float("nan")] * 3] * 3}, "does not hold similarities"),
        ({"similarity": "x"}, "holds no profile"),
        ({"similarity": [[1.0], [1.0, 2.0]]}, "holds no profile"),
        ({"format": 1}, "no rehash profile of format 3"),
        ({"key": {}}, r"was made for .*: calibrate again"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, change: dict, said: str) -> None:
    path = save(tmp_path, KEY, SIMILARITY, {})
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CannotRunHere, match=said):
        load(tmp_path, KEY)


def test_only_what_was_found_whole_counts_as_found(tmp_path: Path) -> None:
    """A search that goes on after a stop writes beside it, and a person may keep files there."""
    whole = tmp_path / "rehash-profile-0123.json"
    whole.write_text('{"similarity": [[1]], "how": {"prompts": ["a"]}}')
    for name, text in {
        "search-0123.json": "{}", "rehash-part-0123.json": "{}", "mine.json": "[]",
        "attention-plan-0123.json": "{",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    assert found_in(tmp_path) == {whole.name: {"similarity": [[1]], "how": None}}
    assert found_in(tmp_path / "none") == {}
