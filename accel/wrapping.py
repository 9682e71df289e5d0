"""Standing in front of a module's ``forward``, and leaving it as it was found."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

#: Gets the forward that it stands before, and the call's own arguments.
Around = Callable[..., Any]


class LastLayers(partial[torch.Tensor]):
    """An up-block's forward that runs as many of its layers, the last ones, as it is given skip
    connections. Slicing puts it in the block's place, which calls its layers' parts by themselves
    and so passes by what stands in front of a layer; rehash asks it for the last layer alone."""


class LeftToSlices:
    """An attention's forward in a sliced block. It gives None: the block goes through the attention
    slice by slice, by itself. A technique that stands in front of it and changes or keeps what the
    attention gives takes ``whole`` in its place, with the same arguments."""

    def __init__(self, whole: Callable[..., Any]) -> None:
        self._whole = whole

    def __call__(self, *args: Any) -> None:
        """None, whatever the arguments."""

    def whole(self, *args: Any) -> Any:
        """What the attention's own forward gives, of the block's arguments; tensors of a batch and
        tuples of them."""
        return self._whole(*args)


class Wrapped:
    """A module whose calls go through ``around(forward, *args, **kwargs)``, until removed."""

    def __init__(self, module: torch.nn.Module, around: Around) -> None:
        self._module = module
        self._before = vars(module).get("forward")  # of another technique, which is not ours
        plain = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return around(plain, *args, **kwargs)

        module.forward = forward  # type: ignore[method-assign]

    def remove(self) -> None:
        """Techniques leave in the reverse of the order in which they came."""
        if self._before is None:
            del self._module.forward
        else:
            self._module.forward = self._before  # type: ignore[method-assign]
