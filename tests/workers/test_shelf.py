"""What stays with a worker: whose it is, where it waits, and what is told when it is not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.accelerations import Accelerations, FastAttention
from jobs.arrays import Bundle
from jobs.attention_plan import AttentionPlan
from jobs.errors import UnitError
from jobs.units import MUCH_MEMORY, Stayed, Unit, Window
from tests.workers.tiny import encode, step_task, tiny_shot, tiny_worker
from workers.carrying import ACCEL
from workers.shelf import Shelf
from workers.worker import Worker

BIG = MUCH_MEMORY // 4  # float32s


def name(step: int, window: int = 0, attempt: int = 1) -> Stayed:
    return Stayed(Unit("step", 0, index=window, step=step), attempt)


@pytest.fixture
def shelf() -> Shelf:
    shelf = Shelf("cpu")
    shelf.put(name(3), {"x": torch.arange(float(BIG))})
    return shelf


def test_it_is_found_by_its_step_and_attempt(shelf: Shelf) -> None:
    found = shelf.get(name(3))
    assert found is not None and torch.equal(found["x"], torch.arange(float(BIG)))
    assert shelf.get(name(3)) is not None, "a step that fails asks for it again"
    assert shelf.get(name(2)) is shelf.get(name(3, attempt=2)) is shelf.get(name(3, 1)) is None


def test_what_waits_beside_a_unit_is_not_its_own(shelf: Shelf) -> None:
    shelf.put(name(1, window=1), {"x": torch.ones(BIG)})
    assert shelf.make_room(name(3)) == MUCH_MEMORY
    assert shelf.make_room(None) == 2 * MUCH_MEMORY


def test_little_does_not_stay(shelf: Shelf) -> None:
    assert shelf.takes({"x": torch.zeros(BIG)})
    assert not shelf.takes({"x": torch.zeros(BIG - 1)})


def test_a_host_that_is_nearly_full_takes_nothing(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.shelf.HOST_FREE", 1.0)
    assert not shelf.takes({"x": torch.zeros(BIG)}), "it goes with its output"


def test_it_is_handed_over_once(shelf: Shelf) -> None:
    bundle = shelf.hand_over(name(3))
    assert bundle is not None and set(bundle.arrays) == {f"{ACCEL}x"}
    assert np.array_equal(bundle.arrays[f"{ACCEL}x"], np.arange(float(BIG)))
    assert shelf.hand_over(name(3)) is shelf.get(name(3)) is None


def test_only_what_is_named_is_dropped(shelf: Shelf) -> None:
    shelf.drop(name(2))
    assert shelf.get(name(3)) is not None
    shelf.drop(name(3))
    assert shelf.get(name(3)) is None


def test_a_part_does_not_hold_the_whole(shelf: Shelf) -> None:
    shelf.put(name(4), {"x": torch.zeros(8, BIG)[0]})
    found = shelf.get(name(4))
    assert found is not None and found["x"].untyped_storage().nbytes() == MUCH_MEMORY


@dataclass
class OneTile:
    """A tile whose second step shares the attention of its first."""

    worker: Worker
    embeddings: Bundle
    output: Bundle  # of the first
    stayed: Stayed

    def second(self) -> Bundle:
        task = step_task(SHOT, WINDOWS, 0, 1)
        return self.worker.run(task, [self.embeddings, self.output], stayed=self.stayed)[1]


SHOT, WINDOWS = tiny_shot(stage_steps=(3,)), [Window(0, 0, 9)]


@pytest.fixture
def tile(tiny_wan: Path, monkeypatch: pytest.MonkeyPatch) -> OneTile:
    monkeypatch.setattr("workers.carrying.MUCH_MEMORY", 1)
    rows = (("full", "full"), ("share_steps", "share_steps"), ("full", "full"))
    asked = Accelerations(fast_attention=FastAttention(stages=(AttentionPlan(rows, (3, 3, 3)),)))
    worker = tiny_worker(tiny_wan, accelerations=asked)
    embeddings, task = encode(worker, SHOT), step_task(SHOT, WINDOWS, 0, 0)
    report, output = worker.run(task, [embeddings], may_stay=True)
    assert report.stays and report.remembers
    assert not any(array.startswith(ACCEL) for array in output.arrays)
    return OneTile(worker, embeddings, output, Stayed(task.unit, task.attempt))


def test_what_is_gone_is_nobodys_fault(tile: OneTile) -> None:
    tile.worker.shelf.drop(tile.stayed)
    with pytest.raises(UnitError, match="what its tile had kept is gone") as error:
        tile.second()
    assert error.value.kind == "cluster"


def test_a_step_that_fails_at_its_very_end_is_computed_once_more(
    tile: OneTile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a GPU tells of an error late."""
    with monkeypatch.context() as late:
        late.setattr("workers.machine.synchronise", lambda device: 1 / 0)
        with pytest.raises(UnitError, match="ZeroDivisionError"):
            tile.second()
    again = tile.second()
    assert np.isfinite(again.arrays["prediction"]).all()
    with pytest.raises(UnitError, match="is gone"):
        tile.second()
