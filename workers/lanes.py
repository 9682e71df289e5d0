"""A decoder's live context, carried from piece to piece of a shot.

Causal video autoencoders decode batch after batch of latent frames, and their convolutions keep
the last frames that they saw. A lane holds that context of one shot between pieces. A lane without
context warms up: it decodes the latent frames before its piece that can reach it, and throws their
pixels away; after that its context equals the one that a decode of the whole shot would have.

Shapes: z_BCTHW latents, x_BCFHW pixels, with B = 1.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch

#: A decoder's context is as large as what a piece makes, so only a few shots keep theirs.
LANES_KEPT = 2


class Lane(ABC):
    """A decoder's context at one latent frame of a shot."""

    def __init__(self, start: int = 0) -> None:
        self._seen: list[bytes] = []  # digests of the latent frames decoded, since `_first`
        self._first = start

    @property
    def position(self) -> int:
        """The latent frame that comes next."""
        return self._first + len(self._seen)

    def continues(self, latents: torch.Tensor, warm_start: int, start: int) -> bool:
        """Whether this context is the one that decoding ``latents`` [from warm_start, up to start)
        gives. Compared by content, so a context never crosses into other latents."""
        if self.position != start or self._first > warm_start:
            return False
        warm = [_digest(latents[:, :, i : i + 1]) for i in range(start - warm_start)]
        return self._seen[len(self._seen) - len(warm) :] == warm

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels x_BCFHW in [-1, 1] of the next latent frames, as the denoiser left them."""
        return torch.cat(list(self._decode(latents)), dim=2)

    def skip(self, latents: torch.Tensor) -> None:
        """Decode without keeping pixels."""
        for _ in self._decode(latents):
            pass

    @torch.no_grad()
    def _decode(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        done = 0
        while done < latents.shape[2]:
            batch = latents[:, :, done : done + self.next_batch()]
            pixels = self.decode_batch(batch)
            self._seen += [_digest(frame) for frame in batch.split(1, dim=2)]
            done += batch.shape[2]
            yield pixels

    @abstractmethod
    def next_batch(self) -> int:
        """How many of the next latent frames are decoded together."""

    @abstractmethod
    def decode_batch(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels of one batch; moves the context on."""

    @abstractmethod
    def to(self, device: torch.device | str) -> None:
        """Move the context there. Its bits stay."""


def go_on(
    make: Callable[[int], Lane],
    latents: torch.Tensor,
    *,
    warm_start: int,
    start: int,
    lane: Lane | None,
) -> tuple[torch.Tensor, Lane]:
    """Pixels of latent frames from ``start``, and the lane to go on with.

    ``latents`` begin at ``warm_start``. A lane that does not stand at ``start`` is replaced by one
    that ``make`` begins at ``warm_start``.
    """
    if lane is None or not lane.continues(latents, warm_start, start):
        lane = make(warm_start)
        lane.skip(latents[:, :, : start - warm_start])
    return lane.decode(latents[:, :, start - warm_start :]), lane


class LaneKeeper:
    """The lanes of the few shots that were decoded last. They wait in the host's memory: on a GPU
    nothing is planned for them beside a tile, or another shot's piece."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[int, Lane] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lanes)

    def take(self, shot: int, device: torch.device | str) -> Lane | None:
        """Out of the keeper: a context that an error leaves half advanced is never met again."""
        lane = self._lanes.pop(shot, None)
        while len(self._lanes) >= LANES_KEPT:
            self._lanes.popitem(last=False)
        if lane is not None:
            lane.to(device)
        return lane

    def keep(self, shot: int, lane: Lane) -> None:
        lane.to("cpu")
        self._lanes[shot] = lane


def moved(context: Any, device: torch.device | str) -> Any:
    """A context with its tensors, however deep in lists and dictionaries, on a device."""
    if isinstance(context, torch.Tensor):
        return context.to(device)
    if isinstance(context, list):
        return [moved(each, device) for each in context]
    if isinstance(context, dict):
        return {name: moved(each, device) for name, each in context.items()}
    return context


def _digest(latent: torch.Tensor) -> bytes:
    bits = latent.detach().cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.blake2b(bits.tobytes(), digest_size=16).digest()
