"""Which worker goes on decoding a shot. Pure.

A causal decoder carries a live context from piece to piece: a *lane*. The worker that holds it
decodes the next piece at once; any other must first warm up, which may take several times as long
as the piece itself. So a piece waits for a lane that will be there sooner than a warm-up.
"""

from __future__ import annotations

from collections.abc import Collection

from jobs.units import Unit
from orchestrator.plan import Plan


class Lanes:
    """For each shot, the piece that each worker's decoder stands before."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._next: dict[int, dict[str, int]] = {}  # shot -> worker -> piece

    def sent(self, piece: Unit, worker: str) -> None:
        """The worker decodes a piece: then it stands before the one after."""
        self._next.setdefault(piece.shot, {})[worker] = piece.index + 1

    def end(self, worker: str, shot: int | None = None) -> None:
        """The worker lost its decoder's context, of one shot or of all."""
        for number, lanes in self._next.items():
            if shot in (None, number):
                lanes.pop(worker, None)

    def worker(
        self, piece: Unit, left: Collection[Unit], avoid: Collection[str] = ()
    ) -> tuple[str | None, bool]:
        """The worker whose lane should take a piece, and whether the piece must wait for it.

        ``left`` are the pieces that are not done: a lane before one that is done has ended.
        (worker, True): only that worker. (None, True): nobody yet, a lane is on its way.
        (None, False): anybody, by warming up.
        """
        before = {
            name: index
            for name, index in self._next.get(piece.shot, {}).items()
            if index <= piece.index and name not in avoid and self._unit(piece, index) in left
        }
        if not before:
            return None, False
        nearest = max(sorted(before), key=lambda name: before[name])
        if before[nearest] == piece.index:
            return nearest, True
        stands_at, _ = self._plan.shots[piece.shot].pieces[before[nearest]]
        return None, stands_at >= self._plan.warm_start(piece)

    def _unit(self, like: Unit, index: int) -> Unit:
        return Unit("decode", like.shot, index=index)
