"""How many bytes of tensors live at once: counted storage by storage, or asked of the allocator.

``TensorAccounting`` sees every operator that PyTorch runs, on any device; under
``torch._subclasses.FakeTensorMode`` a model of any size is followed without memory or time. It
counts tensors, so that what an operator allocates and frees inside itself (a convolution's
workspace) and the allocator's rounding are not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class TensorAccounting(TorchDispatchMode):
    """Bytes of the storages that were born inside the block and still live, and their peak.

    A view adds nothing, and a storage lives as long as any tensor on it. What was there before,
    such as weights and inputs, is not counted: ``held_bytes`` gives that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        for tensor in _tensors((args, kwargs or {})):
            self._known.add(tensor.untyped_storage())  # whatever is not born here was there before
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known.add(storage)
                self._born(storage)
        return result

    def _born(self, storage: torch.UntypedStorage) -> None:
        size_bytes = storage.nbytes()
        self.live_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._died, size_bytes)

    def _died(self, size_bytes: int) -> None:
        self.live_bytes -= size_bytes


@dataclass(slots=True)
class Peak:
    """The highest number of bytes above those that lived at the beginning."""

    peak_bytes: int = 0


@contextmanager
def peak_of(device: torch.device) -> Iterator[Peak]:
    """What the block needs on top of what is there: of the allocator on a CUDA device, where the
    accounting cannot see inside operators; counted by ``TensorAccounting`` elsewhere. It is read
    when the block ends."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.peak_bytes = torch.cuda.max_memory_allocated(device) - before
        return
    with TensorAccounting() as accounting:
        yield peak
    peak.peak_bytes = accounting.peak_bytes


def held_bytes(*held: torch.nn.Module | Tensor) -> int:
    """Bytes of the storages of tensors and of modules' parameters and buffers, each once."""
    storages = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for each in held
        for tensor in ([each] if isinstance(each, Tensor) else _state(each))
    }
    return sum(storages.values())


def _state(module: torch.nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))
