"""In how many slices a worker computes: as its job asks, and in more where memory ran out."""

from __future__ import annotations

from jobs.accelerations import Slicing
from jobs.families.slicing_memory import DECODERS

#: From here on a tile hardly gets smaller: what is left is its weights, inputs and outputs.
DEEPEST = 64

#: In so many where it was whole before.
_FIRST = 8


class Depth:
    """Slices by kind of unit: a denoiser's steps and a decoder's pieces are cut apart.

    ``autoencoder`` is the class of the model's; of many, pieces are small as they are.
    """

    def __init__(self, asked: Slicing | None, autoencoder: str) -> None:
        self._asked = asked
        kinds = ("step", "decode") if autoencoder in DECODERS else ("step",)
        self._of = dict.fromkeys(kinds, asked)

    def of(self, kind: str) -> Slicing | None:
        return self._of.get(kind, self._asked)

    def slices(self, kind: str) -> int:
        """1 where nothing is cut."""
        slicing = self.of(kind)
        return (slicing and slicing.slices) or 1

    def deeper(self, kind: str) -> Slicing | None:
        """What has twice the slices; None where there is nothing to cut, or no more."""
        now = self.slices(kind)
        if kind not in self._of or now >= DEEPEST:
            return None
        return Slicing(slices=_FIRST if now == 1 else min(2 * now, DEEPEST))

    def take(self, kind: str, slicing: Slicing | None) -> None:
        self._of[kind] = slicing
