"""In how many slices a worker computes: as its job asks, and in more where memory ran out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from jobs.accelerations import Slicing
from jobs.arrays import Bundle
from jobs.errors import UnitError
from jobs.families.slicing_memory import DECODERS
from jobs.units import TaskReport

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
        self._asked_alone = set[str]()

    def of(self, kind: str) -> Slicing | None:
        return self._of.get(kind, self._asked)

    def is_deeper(self, kind: str) -> bool:
        """Than the job asks for."""
        return self.of(kind) != self._asked

    def slices(self, kind: str) -> int:
        """1 where nothing is cut."""
        slicing = self.of(kind)
        return (slicing and slicing.slices) or 1

    def deeper(self, kind: str) -> Slicing | None:
        """What has twice the slices; None where there is nothing to cut, or no more."""
        now = self.slices(kind)
        if kind not in self._of or kind in self._asked_alone or now >= DEEPEST:
            return None
        return Slicing(slices=_FIRST if now == 1 else min(2 * now, DEEPEST))

    def take(self, kind: str, slicing: Slicing | None) -> None:
        self._of[kind] = slicing

    def retry(
        self,
        kind: str,
        attempt: Callable[[], tuple[TaskReport, Bundle]],
        take: Callable[[str, Slicing | None], None],
        ran_out: str,
    ) -> tuple[TaskReport, Bundle]:
        """A unit once more, in more slices, and more again; units of its kind have as many as let
        it finish from then on. ``take`` is ``take`` of this, for all who compute by it.

        Called outside of ``except``: the error's frames hold the tensors that did not fit. Raises
        UnitError, ``ran_out`` or what was said last, and leaves all as it was.
        """
        before = self.of(kind)
        while (deeper := self.deeper(kind)) is not None:
            take(kind, deeper)
            try:
                report, output = attempt()
                return replace(report, deeper=deeper.slices), output
            except UnitError as error:
                blamed, said = error.kind, str(error)
            if blamed == "out_of_memory":
                ran_out = said
            elif blamed == "bad_job":  # the model, or what else is attached, takes no slices
                self._asked_alone.add(kind)
            else:
                take(kind, before)
                raise UnitError(blamed, said)
        take(kind, before)
        raise UnitError("out_of_memory", ran_out)
