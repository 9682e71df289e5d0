"""What accelerations keep with tiles, where it was made, until the tile's next step.

It may be gigabytes a step. So it leaves its worker only with its tile, or for a checkpoint.
"""

from __future__ import annotations

import threading

import psutil
import torch

from jobs.arrays import Bundle
from jobs.units import Stayed, Unit
from workers.bundles import to_bundle
from workers.carrying import ACCEL, much, together

Tensors = dict[str, torch.Tensor]

#: Of the host's memory, so much stays free beside what waits on shelves.
HOST_FREE = 0.25


class Shelf:
    """The tensors of each tile's last step. Those of the tile that is computed are on the device,
    where a tile's memory is planned for; all others wait in the host's memory, as long as that has
    room: what does not fit goes with its output, into Ray's object store, which can spill.

    Another thread may hand a tile over while this one computes.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._kept: dict[tuple[str, int, int, int], tuple[Stayed, Tensors]] = {}
        self._lock = threading.Lock()

    def waiting_bytes(self, unit: Unit) -> int:
        """In the host's memory, of other tiles than a unit's."""
        with self._lock:
            return sum(
                tensor.nbytes
                for tile, (_, tensors) in self._kept.items()
                for tensor in tensors.values()
                if tensor.device.type == "cpu" and tile != _tile(unit)
            )

    def takes(self, tensors: Tensors) -> bool:
        """Whether they are worth it, and a quarter of the host's memory is free beside them."""
        sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
        host = psutil.virtual_memory()
        on_host = sum(each.nbytes for each in tensors.values() if each.device.type == "cpu")
        left_bytes = host.available - (sum(sizes.values()) - on_host)
        return much(sizes) and left_bytes >= HOST_FREE * host.total

    def put(self, what: Stayed, tensors: Tensors) -> None:
        """In the place of what the tile's step before had left. Empties ``tensors``."""
        own = {name: _alone(tensors.pop(name)) for name in list(tensors)}
        with self._lock:
            self._kept[_tile(what.unit)] = (what, own)

    def get(self, what: Stayed) -> Tensors | None:
        """On the device; it stays here, for a step that fails is computed once more."""
        with self._lock:
            tensors = self._find(what)
        return tensors and {name: tensor.to(self._device) for name, tensor in tensors.items()}

    def hand_over(self, what: Stayed) -> Bundle | None:
        """For another worker; it is here no longer. Copied one by one: it may be gigabytes."""
        with self._lock:
            tensors = self._find(what)
            if tensors is None:
                return None
            del self._kept[_tile(what.unit)]
        copied = Bundle({}, {})
        for name in list(tensors):
            copied = together(copied, to_bundle({f"{ACCEL}{name}": tensors.pop(name)}))
        return copied

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
                if tile != _tile(unit):
                    self._kept[tile] = what, {name: t.cpu() for name, t in tensors.items()}

    def _find(self, what: Stayed) -> Tensors | None:
        kept, tensors = self._kept.get(_tile(what.unit), (None, None))
        return tensors if kept == what else None


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """Without the memory of a larger one that it may be a part of."""
    tensor = tensor.detach()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _tile(unit: Unit) -> tuple[str, int, int, int]:
    return unit.kind, unit.shot, unit.stage, unit.index
