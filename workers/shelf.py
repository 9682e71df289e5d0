"""What accelerations keep with tiles, where it was made, until the tile's next step.

It may be gigabytes a step. So it leaves its worker only with its tile, or for a checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import MutableMapping

import torch

from jobs.arrays import Bundle
from jobs.host_memory import host_memory
from jobs.units import Stayed
from workers.bundles import to_bundle
from workers.carrying import ACCEL, much, together

Tensors = MutableMapping[str, torch.Tensor]

#: Of the host's memory, so much stays free beside what waits on shelves.
HOST_FREE = 0.25


class Shelf:
    """The tensors that tiles' last steps left. Those of the tile that is computed are on the
    device, where a tile's memory is planned for; all others wait in the host's memory, as long as
    that has room: what does not fit goes with its output, into Ray's object store, which can spill.

    Another thread may hand a tile over while this one computes.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._kept: dict[Stayed, Tensors] = {}
        self._lock = threading.Lock()

    def make_room(self, own: Stayed | None) -> int:
        """On the device: what is not a unit's ``own`` goes to the host's memory. Returns the bytes
        that wait there."""
        with self._lock:
            others = {what: kept for what, kept in self._kept.items() if what != own}
            for what, kept in others.items():
                self._kept[what] = {name: tensor.cpu() for name, tensor in kept.items()}
            return sum(each.nbytes for kept in others.values() for each in kept.values())

    def takes(self, tensors: Tensors) -> bool:
        """Whether they are worth it, and a quarter of the host's memory is free beside them."""
        sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
        if not much(sizes):
            return False
        host = host_memory()
        on_host = sum(each.nbytes for each in tensors.values() if each.device.type == "cpu")
        left_bytes = host.available - (sum(sizes.values()) - on_host)
        return left_bytes >= HOST_FREE * host.total

    def put(self, what: Stayed, tensors: Tensors) -> None:
        """Empties ``tensors``."""
        own = {name: _alone(tensors.pop(name)) for name in list(tensors)}
        with self._lock:
            self._kept[what] = own

    def get(self, what: Stayed) -> Tensors | None:
        """On the device; it stays here, for a step that fails is computed once more."""
        with self._lock:
            kept = self._kept.get(what)
        return kept and {name: tensor.to(self._device) for name, tensor in kept.items()}

    def hand_over(self, what: Stayed) -> Bundle | None:
        """For another worker; it is here no longer. Copied one by one: it may be gigabytes."""
        with self._lock:  # until the device has room for what is computed next
            kept = self._kept.pop(what, None)
            if kept is None:
                return None
            kept = {name: tensor.cpu() for name, tensor in kept.items()}
        copied = Bundle({}, {})
        for name in list(kept):
            copied = together(copied, to_bundle({f"{ACCEL}{name}": kept.pop(name)}))
        return copied

    def drop(self, what: Stayed) -> None:
        with self._lock:
            self._kept.pop(what, None)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """Without the memory of a larger one that it may be a part of."""
    tensor = tensor.detach()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
