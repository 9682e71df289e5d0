"""What stays with a worker: whose it is, where it waits, and what is told when it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.accelerations import Accelerations, FastAttention
from jobs.attention_plan import AttentionPlan
from jobs.errors import UnitError
from jobs.units import MUCH_MEMORY, Stayed, Unit, Window
from tests.workers.tiny import encode, step_task, tiny_shot, tiny_worker
from workers.carrying import ACCEL
from workers.shelf import Shelf

BIG = MUCH_MEMORY // 4  # float32s


def name(step: int, window: int = 0, attempt: int = 1) -> Stayed:
    return Stayed(Unit("step", 0, index=window, step=step), attempt)


@pytest.fixture
def shelf() -> Shelf:
    shelf = Shelf("cpu")
    assert shelf.put(name(3), {"x": torch.arange(float(BIG))})
    return shelf


def test_it_is_found_by_its_step_and_attempt(shelf: Shelf) -> None:
    found = shelf.get(name(3))
    assert found is not None and torch.equal(found["x"], torch.arange(float(BIG)))
    assert shelf.get(name(3)) is not None, "a step that fails asks for it again"
    assert shelf.get(name(2)) is shelf.get(name(3, attempt=2)) is shelf.get(name(3, 1)) is None


def test_the_next_step_takes_its_place(shelf: Shelf) -> None:
    shelf.put(name(4), {"x": torch.zeros(BIG)})
    shelf.put(name(1, window=1), {"x": torch.ones(BIG)})
    assert shelf.get(name(3)) is None
    assert shelf.host_bytes == 2 * MUCH_MEMORY


def test_little_does_not_stay(shelf: Shelf) -> None:
    assert not shelf.put(name(4), {"x": torch.zeros(BIG - 1)})
    assert shelf.get(name(4)) is None


def test_it_is_handed_over_once(shelf: Shelf) -> None:
    bundle = shelf.hand_over(name(3))
    assert bundle is not None and set(bundle.arrays) == {f"{ACCEL}x"}
    assert shelf.hand_over(name(3)) is None and shelf.host_bytes == 0


def test_only_what_is_named_is_dropped(shelf: Shelf) -> None:
    shelf.drop(name(2))
    assert shelf.get(name(3)) is not None
    shelf.drop(name(3))
    assert shelf.get(name(3)) is None


def test_a_part_does_not_hold_the_whole(shelf: Shelf) -> None:
    shelf.put(name(4), {"x": torch.zeros(8, BIG)[0]})
    found = shelf.get(name(4))
    assert found is not None and found["x"].untyped_storage().nbytes() == MUCH_MEMORY


def test_what_is_gone_is_nobodys_fault(tiny_wan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.shelf.MUCH_MEMORY", 1)
    plan = AttentionPlan((("full", "full"), ("share_steps", "share_steps")), (3, 3, 3))
    asked = Accelerations(fast_attention=FastAttention(stages=(plan,)))
    worker = tiny_worker(tiny_wan, accelerations=asked)
    shot, windows = tiny_shot(stage_steps=(2,)), [Window(0, 0, 9)]
    embeddings = encode(worker, shot)
    first = step_task(shot, windows, 0, 0)
    report, output = worker.run(first, [embeddings], may_stay=True)
    assert report.stays and report.remembers
    assert not any(array.startswith(ACCEL) for array in output.arrays)
    worker.shelf.clear(first.unit)
    with pytest.raises(UnitError, match="no longer has what the tile had kept") as error:
        worker.run(
            step_task(shot, windows, 0, 1), [embeddings, output], stayed=Stayed(first.unit, 1)
        )
    assert error.value.kind == "cluster"
