"""Where encoders go that have no room on a worker's device."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.errors import UnitError
from jobs.units import EncodeTask, Unit
from tests.workers.tiny_families import KINDS, TinyFamily, tiny_family
from workers import machine
from workers.encoding import WORKING_BYTES, encode, is_moved, place_encoders
from workers.setup import WorkerSetup
from workers.worker import Worker

NEEDED = 10**9
CARD, PROCESSOR = torch.device("cuda:0"), torch.device("cpu")


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


def has_free(patch: pytest.MonkeyPatch, card_bytes: int, host_bytes: int = 2**60) -> None:
    free = {"cuda:0": card_bytes, "cpu": host_bytes}
    patch.setattr(machine, "free_bytes", free.__getitem__)


@pytest.fixture
def family(tmp_path: Path) -> Any:
    """A model that takes itself for one on a card. There is none: a part that went there would be
    an error."""
    family = worker_of(tiny_family("wan", tmp_path))._family
    family.device = CARD
    return family


@pytest.mark.parametrize("kind", KINDS)
def test_without_room_on_its_card_a_worker_encodes_on_the_processor(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is said once, and is of the processor's class, with all its cores."""
    tiny = tiny_family(kind, tmp_path)
    plain, worker = worker_of(tiny), worker_of(tiny)
    worker._family.device = CARD
    worker._numerics = dataclasses.replace(worker._numerics, device="a card")
    has_free(monkeypatch, NEEDED)
    said = []
    for number in range(2):
        task = EncodeTask(unit=Unit("encode", number), attempt=1, shot=tiny.shot)
        (report, found), (told, expected) = (each.run(task, []) for each in (worker, plain))
        assert not told.on_processor
        there = dataclasses.replace(plain._numerics, threads=machine.cores())
        assert report.numerics == there.digest()
        for name, array in expected.arrays.items():
            assert np.allclose(found.arrays[name], array, atol=1e-5), name
        said.append(report.on_processor)
    assert said == [True, False]
    assert torch.get_num_threads() == plain._numerics.threads, "as before"


def test_what_the_denoiser_holds_already_needs_no_room(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What decodes is no part of what encoding was planned to take."""
    family.device = PROCESSOR
    held = sum(each.numel() * 4 for each in family.denoiser.parameters())
    assert family.vae is not None
    family.device = CARD
    for short, moves in ((0, False), (1, True)):
        has_free(monkeypatch, NEEDED + WORKING_BYTES - held - short)
        place_encoders(family, NEEDED)
        assert (is_moved(family), family.encodes_on) == (moves, PROCESSOR if moves else CARD)


def test_pinned_numerics_keep_them_where_the_model_is(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_free(monkeypatch, 0)
    place_encoders(family, 0)
    assert not is_moved(family)


def test_memory_that_runs_out_all_the_same_costs_a_retry_on_the_processor(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, cls = tiny_family("wan", tmp_path / "again"), type(family)
    plain, embed, load = worker_of(tiny)._family.encode(tiny.shot), cls.embed, cls._load_encoders

    def runs_out(self: Any, pipeline: Any, shot: Any) -> Any:
        if self.encodes_on == CARD:
            raise torch.cuda.OutOfMemoryError
        return embed(self, pipeline, shot)

    def loaded(self: Any) -> Any:
        return "on the card" if self.encodes_on == CARD else load(self)

    has_free(monkeypatch, 2**60)
    monkeypatch.setattr(cls, "embed", runs_out)
    monkeypatch.setattr(cls, "_load_encoders", loaded)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        encode(family, tiny.shot, 0)  # with pinned numerics
    family.free_text()
    found = encode(family, tiny.shot, NEEDED)
    assert is_moved(family)
    for name, tensor in plain.items():
        assert torch.allclose(found[name], tensor, atol=1e-5)


def test_a_host_without_room_either_is_told_with_numbers(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_free(monkeypatch, 2 * 10**8, 3 * 10**8)
    said = r"needs 1\.0 GB; cuda:0 has 0\.2 GB free, and this machine's processor 0\.3;"
    with pytest.raises(UnitError, match=said) as caught:
        place_encoders(family, NEEDED)
    assert caught.value.kind == "out_of_memory"
