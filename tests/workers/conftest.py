"""Fixtures for worker tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.workers.tiny import write_tiny_wan


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_wan(tmp_path_factory.mktemp("tiny") / "wan")


@pytest.fixture(autouse=True)
def process_switches():
    """A worker sets process-wide switches; put them back for whoever comes next."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(1)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark
    torch.set_num_threads(threads)
