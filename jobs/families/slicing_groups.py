"""Groups of operators that run slice by slice, and the elements that they need. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

Size = tuple[int, int, int]  # latent frames, height, width

#: Tensors of a layer's size that its operators hold whole, where nothing else is: input and output.
IN_AND_OUT = 2


class Whole(NamedTuple):
    """What a layer's attention takes that is computed of all tokens in one call."""

    copies: float = 0.0  # live copies of the tokens
    windowed: bool = False


#: All attention is left to the slices.
NOTHING_WHOLE = Whole()


@dataclass(frozen=True, slots=True)
class Group:
    """One group of operators that runs slice by slice, or, with no ``lengths``, whole."""

    held: float  # elements that live whole
    inside: float = 0.0  # elements of the intermediates, if it ran in one slice
    share: float = 1.0  # of the slices, as ``accel.slicing`` gives them by size
    lengths: tuple[int, ...] = ()  # of the axes that are cut
    beside: int = 0  # places of the axis that a slice has on top, for it sees them

    def elements(self, slices: int) -> float:
        count = math.ceil(slices * self.share)
        sizes = ((math.ceil(length / count) + self.beside, length) for length in self.lengths)
        parts = (min(size / length, 1.0) for size, length in sizes)
        return self.held + self.inside * max(parts, default=1.0)
