"""Where encoders go that have no room on a worker's device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.units import EncodeTask, Unit
from tests.workers.tiny_families import KINDS, TinyFamily, tiny_family
from workers import machine
from workers.families.loading import place_encoders
from workers.setup import WorkerSetup
from workers.worker import Worker

NEEDED = 10**9
CARD = torch.device("cuda:0")


def worker_of(tiny: TinyFamily) -> Worker:
    images = (tiny.shot.image,) if tiny.shot.image else ()
    setup = WorkerSetup(
        worker="w",
        model=str(tiny.folder),
        family=tiny.name,
        images=images,
        encoding_bytes=NEEDED,
    )
    return Worker(setup)


def has_free(patch: pytest.MonkeyPatch, free_bytes: int) -> None:
    patch.setattr(machine, "free_bytes", lambda device: free_bytes)


@pytest.mark.parametrize("kind", KINDS)
def test_without_room_on_its_card_a_worker_encodes_on_the_processor(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is said once, and is of the processor's class."""
    tiny = tiny_family(kind, tmp_path)
    plain, worker = worker_of(tiny), worker_of(tiny)
    worker._family.device = CARD  # there is none: a part that went there would be an error
    worker._numerics = None  # of the card
    has_free(monkeypatch, NEEDED - 1)
    said = []
    for number in range(2):
        task = EncodeTask(unit=Unit("encode", number), attempt=1, shot=tiny.shot)
        (report, found), (told, expected) = (each.run(task, []) for each in (worker, plain))
        assert report.numerics == told.numerics and not told.on_processor
        for name, array in expected.arrays.items():
            assert np.array_equal(found.arrays[name], array), name
        said.append(report.on_processor)
    assert said == [True, False]


def test_what_is_held_already_needs_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = worker_of(tiny_family("wan", tmp_path))._family
    held = sum(each.numel() * 4 for each in family.denoiser.parameters())
    family.device = CARD
    for free, moves in ((NEEDED - held, False), (NEEDED - held - 1, True)):
        has_free(monkeypatch, free)
        assert place_encoders(family, NEEDED) == moves
        assert family.encodes_on == (torch.device("cpu") if moves else CARD)
