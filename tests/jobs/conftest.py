"""Fixtures of the model folders' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.model_folders import write_model


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Hashes of weights are kept under the home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def model(tmp_path) -> Path:
    return write_model(tmp_path / "model")
