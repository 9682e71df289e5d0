"""A worker that is about to take part, whose device may have no room for the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.errors import CannotRunHere
from jobs.numerics import WorkerProfile
from tests.workers.tiny import tiny_worker
from workers.joining import load
from workers.worker import Worker


@pytest.fixture
def worker(tiny_wan: Path) -> Worker:
    return tiny_worker(tiny_wan)


def run_out(worker: Worker, monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Let the memory of its device run out so many times; the tries so far."""
    tries: list[int] = []
    plain = worker.profile

    def profile() -> WorkerProfile:
        tries.append(len(tries))
        if len(tries) <= times:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return plain()

    monkeypatch.setattr(worker, "profile", profile)
    return tries


def test_memory_that_comes_free_in_a_moment_is_waited_for(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = run_out(worker, monkeypatch, times=2)
    assert load(worker, waits_s=(0.0, 0.0)).model_bytes > 0
    assert len(tries) == 3


def test_a_device_without_room_for_the_model_is_refused_by_name(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = run_out(worker, monkeypatch, times=9)
    with pytest.raises(CannotRunHere, match=r"cpu has no memory for the model, with .* GB free; "):
        load(worker, waits_s=(0.0, 0.0))
    assert len(tries) == 3


def test_what_else_fails_is_no_refusal(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> WorkerProfile:
        raise RuntimeError("the driver is gone")

    monkeypatch.setattr(worker, "profile", broken)
    with pytest.raises(RuntimeError, match="driver"):
        load(worker, waits_s=(0.0,))
