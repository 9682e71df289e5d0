"""What accelerations keep with tiles, where it was made, until the tile's next step.

It may be gigabytes a step. So it leaves its worker only with its tile, or for a checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import torch

from jobs.arrays import Bundle
from jobs.units import MUCH_MEMORY, Stayed, Unit
from workers.bundles import to_bundle
from workers.carrying import ACCEL

Tensors = Mapping[str, torch.Tensor]


class Shelf:
    """The tensors of each tile's last step. Those of the tile that is computed are on the device,
    where a tile's memory is planned for; all others wait in the host's memory.

    Another thread may hand a tile over while this one computes.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._kept: dict[tuple[int, int, int], tuple[Stayed, Tensors]] = {}
        self._lock = threading.Lock()

    @property
    def host_bytes(self) -> int:
        with self._lock:
            return sum(
                tensor.nbytes
                for _, tensors in self._kept.values()
                for tensor in tensors.values()
                if tensor.device.type == "cpu"
            )

    def put(self, what: Stayed, tensors: Tensors) -> bool:
        """In the place of what the tile's step before had left; False if it is not worth it."""
        own = {name: _alone(tensor) for name, tensor in tensors.items()}
        if sum(tensor.nbytes for tensor in own.values()) < MUCH_MEMORY:
            return False
        with self._lock:
            self._kept[_tile(what.unit)] = (what, own)
        return True

    def get(self, what: Stayed) -> dict[str, torch.Tensor] | None:
        """On the device; it stays here, for a step that fails is computed once more."""
        with self._lock:
            tensors = self._find(what)
        return tensors and {name: tensor.to(self._device) for name, tensor in tensors.items()}

    def hand_over(self, what: Stayed) -> Bundle | None:
        """For another worker; it is here no longer."""
        with self._lock:
            tensors = self._find(what)
            if tensors is not None:
                del self._kept[_tile(what.unit)]
        return tensors and to_bundle({f"{ACCEL}{name}": t for name, t in tensors.items()})

    def drop(self, what: Stayed) -> None:
        with self._lock:
            if self._find(what) is not None:
                del self._kept[_tile(what.unit)]

    def clear(self, unit: Unit) -> None:
        """Of whatever is kept of the unit's tile."""
        with self._lock:
            self._kept.pop(_tile(unit), None)

    def make_room(self, unit: Unit) -> None:
        """On the device, for a unit: what is not its own tile's goes to the host's memory."""
        with self._lock:
            for tile, (what, tensors) in self._kept.items():
                if unit.kind != "step" or tile != _tile(unit):
                    self._kept[tile] = what, {name: t.cpu() for name, t in tensors.items()}

    def _find(self, what: Stayed) -> Tensors | None:
        kept, tensors = self._kept.get(_tile(what.unit), (None, None))
        return tensors if kept == what else None


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """Without the memory of a larger one that it may be a part of."""
    tensor = tensor.detach()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _tile(unit: Unit) -> tuple[int, int, int]:
    return unit.shot, unit.stage, unit.index
