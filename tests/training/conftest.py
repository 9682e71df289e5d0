"""Fixtures of the trainers' tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from tests.training.test_tpdiff_videos import write_video
from tests.workers.tiny import write_tiny_wan


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number in range(3):
        write_video(folder / f"{number}.mp4", caption=f"sea {number}")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_wan(tmp_path_factory.mktemp("model") / "wan")
    (folder / "longtake.json").write_text(
        json.dumps({"format": 1, "size": [32, 32], "fps": 12, "window_latent_frames": 5,
                    "overlap_latent_frames": 1, "text_tokens": 12, "flow_shift": 3.0})
    )  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def a_process_of_its_own() -> Iterator[None]:
    """accelerate keeps the first precision of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
