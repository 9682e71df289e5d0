"""Fixtures of the trainers' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.test_tpdiff_videos import write_video


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number in range(3):
        write_video(folder / f"{number}.mp4", caption=f"sea {number}")
    return folder
