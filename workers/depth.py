"""In how many slices a worker computes: as its job asks, and in more where memory ran out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from jobs.accelerations import Slicing
from jobs.arrays import Bundle
from jobs.errors import UnitError
from jobs.families.slicing_memory import DECODERS
from jobs.faults import fault_point
from jobs.units import TaskReport, Unit
from workers import machine

#: From here on a tile hardly gets smaller: what is left is its weights, inputs and outputs.
DEEPEST = 64

#: In so many where it was whole before.
_FIRST = 8


class InModel(Exception):
    """Memory ran out in what slices cut."""


class TooLarge(UnitError):
    """Out of memory, where more slices may help."""


@contextmanager
def in_model(unit: Unit) -> Iterator[None]:
    """What of a unit slices cut: a model's pass, not its loading or a file. Raises InModel."""
    try:
        fault_point("worker.before_model", str(unit))
        yield
    except Exception as error:
        if not machine.ran_out_of_memory(error):
            raise
        raise InModel(str(error)) from error


class Depth:
    """Slices by kind of unit: a denoiser's steps and a decoder's pieces are cut apart.

    ``autoencoder`` is the class of the model's. One that decodes a frame at a time is not cut.
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
        recut: Callable[[str, Slicing | None], None],
        ran_out: str,
    ) -> tuple[TaskReport, Bundle]:
        """A unit that failed just now, once more in more slices, and more again; units of its kind
        have as many as let it finish from then on. ``recut`` has `take` called, and cuts the
        models that are loaded.

        Called outside of ``except``: the error's frames hold the tensors that did not fit. Raises
        UnitError, which says that memory ran out, and leaves all as it was.
        """
        before, otherwise = self.of(kind), None
        while otherwise is None and (deeper := self.deeper(kind)) is not None:
            recut(kind, deeper)
            try:
                report, output = attempt()
                return replace(report, deeper=deeper.slices), output
            except TooLarge as error:
                ran_out = str(error)
            except UnitError as error:
                otherwise = error.kind
                ran_out += f"; then, in {deeper.slices} slices: {error}"
        recut(kind, before)
        if otherwise == "bad_job":  # the model, or what else is attached, takes no slices
            self._asked_alone.add(kind)
            otherwise = None
        raise UnitError(otherwise or "out_of_memory", ran_out)
