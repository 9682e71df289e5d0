"""What ends a render from outside."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jobs.errors import EXIT_CANCELLED, EXIT_INTERRUPTED
from jobs.lease import Lease
from orchestrator.events import Outcome


class Stops:
    """Why a render should stop: Ctrl-C, SIGTERM, a timeout, a lost lease."""

    def __init__(self, lease: Lease, timeout_s: float | None, to_resume: str) -> None:
        self._lease, self._to_resume = lease, to_resume
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._signal: int | None = None

    def reason(self, now_s: float) -> tuple[Outcome, str] | None:
        """The outcome and a word on it, or None to go on."""
        if self._signal == signal.SIGINT:
            return "interrupted", "Ctrl-C"
        if self._signal is not None:
            return "cancelled", "SIGTERM"
        if self._lease.lost:
            return "conflict", (
                "another driver has taken over this job; this one has stopped, nothing is lost"
            )
        if self._deadline_s is not None and now_s > self._deadline_s:
            return "timeout", "the time limit has passed"
        return None

    def sleep(self, seconds: float) -> None:
        """Until the time has passed, or there is a reason to stop."""
        end_s = time.monotonic() + seconds
        while (now_s := time.monotonic()) < end_s and self.reason(now_s) is None:
            time.sleep(0.05)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the first Ctrl-C or SIGTERM; a second one ends the process at once."""
        before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
        self.arm()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def arm(self) -> None:
        """Take the signals; again after Ray was started, which takes SIGTERM for itself."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._caught)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            shown = "\x1b[?25h\n" if sys.stderr.isatty() else ""  # the bars hide the cursor
            os.write(2, f"{shown}longtake: left at once. To go on: {self._to_resume}\n".encode())
            os._exit(EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_CANCELLED)
        self._signal = number
