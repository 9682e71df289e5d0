"""A worker's own account of what it computed, whatever becomes of the results."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from jobs.units import Task
from workers import machine
from workers.setup import WorkerSetup


class Account:
    """Lines of ``<worker>.jsonl``. Made before any weight is loaded: what the process holds then is
    the libraries', and no part of a peak."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._on_cpu = torch.device(setup.device).type == "cpu"
        self._bare_bytes = machine.held_bytes(setup.device)
        self._peak_bytes = 0  # beside them
        self._held_bytes = 0  # the most so far, with them and what waited on the shelf

    def note(self, task: Task, elapsed_s: float, *, stays: bool, waiting_bytes: int) -> None:
        """``waiting_bytes``: of other tiles, on the shelf. Raises OSError."""
        if self._setup.log_dir is None:
            return
        unit = task.unit
        self._measure(waiting_bytes)
        line = {
            "unit": str(unit),
            "kind": unit.kind,
            "shot": unit.shot,
            "stage": unit.stage,
            "index": unit.index,
            "step": unit.step,
            "attempt": task.attempt,
            "elapsed_s": elapsed_s,
            "peak_bytes": self._peak_bytes,
            "stays": stays,
            "at_s": time.time(),
        }
        folder = Path(self._setup.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{self._setup.worker}.jsonl", "a") as log:  # closed, hence flushed
            log.write(json.dumps(line) + "\n")

    def _measure(self, waiting_bytes: int) -> None:
        held_bytes = machine.peak_bytes(self._setup.device)
        if held_bytes > self._held_bytes:  # in this unit: what waited beside it is no part of it
            self._held_bytes = held_bytes
            peak_bytes = held_bytes - self._bare_bytes - (waiting_bytes if self._on_cpu else 0)
            self._peak_bytes = max(self._peak_bytes, peak_bytes)
