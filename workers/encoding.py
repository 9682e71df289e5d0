"""Where encoders go, often the largest part of a model: beside the denoiser, or elsewhere."""

from __future__ import annotations

import torch

from jobs.errors import UnitError
from jobs.units import ShotRender
from workers import machine
from workers.families.family import ModelFamily
from workers.families.loading import release

#: Beside weights: for what is between layers, and for what libraries take.
WORKING_BYTES = 2**30

_PROCESSOR = torch.device("cpu")


def is_moved(family: ModelFamily) -> bool:
    """Whether encoders are not where the rest of the model is."""
    return family.encodes_on != family.device


def encode(family: ModelFamily, shot: ShotRender, encoding_bytes: int) -> dict[str, torch.Tensor]:
    """What a shot starts from, after ``place_encoders``; where memory runs out all the same, by the
    processor. Raises UnitError where that has none either."""
    if not family.has_encoders():
        place_encoders(family, encoding_bytes)
    try:
        return family.encode(shot)
    except Exception as error:
        may_move = encoding_bytes and family.encodes_on != _PROCESSOR
        if not (may_move and machine.ran_out_of_memory(error)):
            raise
    _move(family, encoding_bytes)
    return family.encode(shot)


def place_encoders(family: ModelFamily, encoding_bytes: int) -> None:
    """Encoders that have no room beside the denoiser, ``encoding_bytes`` with it, go to the
    processor. 0: they stay. Raises UnitError where that has no room for them either."""
    release(family.device)
    family.encodes_on = family.device
    needed = _needed(family, encoding_bytes) + WORKING_BYTES
    has_room = needed <= machine.free_bytes(str(family.device))
    if encoding_bytes and family.device != _PROCESSOR and not has_room:
        _move(family, encoding_bytes)


def _needed(family: ModelFamily, encoding_bytes: int) -> int:
    return encoding_bytes - family.loaded_bytes("denoiser")


def _move(family: ModelFamily, encoding_bytes: int) -> None:
    family.free_text()
    release(family.device)
    needed, free = _needed(family, encoding_bytes), machine.free_bytes("cpu")
    if needed > free:
        raise UnitError(
            "out_of_memory",
            f"what encodes prompts and images needs {needed / 1e9:.1f} GB; {family.device} has "
            f"{machine.free_bytes(str(family.device)) / 1e9:.1f} GB free, and this machine's "
            f"processor {free / 1e9:.1f}; let a worker with more memory take part",
        )
    family.encodes_on = _PROCESSOR
