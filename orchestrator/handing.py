"""What tiles remember, on its way from the worker that has it to the one that goes on with it.

A worker that is asked and does not answer hangs, not the one that waits for it. Each worker's time
begins anew with every answer, for it hands over one tile after the other, and anew for all when one
is given up, for whom the others may have waited.
"""

from __future__ import annotations

from typing import Any


class HandOvers:
    """``limit_s``: how long a worker may be silent. An answer is known by a reference to it."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._asked: dict[Any, str] = {}
        self._heard_s: dict[str, float] = {}

    def asked(self, answer: Any, worker: str, now_s: float) -> None:
        if worker not in self._asked.values():
            self._heard_s[worker] = now_s
        self._asked[answer] = worker

    def answered(self, answer: Any, now_s: float) -> None:
        worker = self._asked.pop(answer, None)
        if worker is not None:
            self._heard_s[worker] = now_s

    def silent(self, now_s: float) -> str | None:
        """A worker that has been silent for too long; it is not waited for any more."""
        for worker in sorted(set(self._asked.values())):
            if now_s - self._heard_s[worker] > self.limit_s:
                self._asked = {ref: name for ref, name in self._asked.items() if name != worker}
                self._heard_s = dict.fromkeys(self._heard_s, now_s)
                return worker
        return None
