"""Runs the real ``longtake`` command on real local Ray, and kills its processes from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from jobs.store import Store
from jobs.units import Unit
from orchestrator.plan import Plan
from orchestrator.prepare import plan_from_json

LONGTAKE = Path(sys.executable).parent / "longtake"
RUN_LIMIT_S = 300
ROOT = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def environment(**extra: str) -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return env | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"} | extra


def longtake(*args: object, cwd: Path | None = None, **env: str) -> Ran:
    """Run the command to its end."""
    command = [str(LONGTAKE)]
    if "POLICY" in env:
        command, env["PYTHONPATH"] = [sys.executable, "-m", "tests.ray.impatient"], ROOT
    done = subprocess.run(
        [*command, *map(str, args)],
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT_S,
        stdin=subprocess.DEVNULL,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


class Running:
    """The command in the background, as the leader of its own process session."""

    def __init__(self, *args: object, log: Path, **env: str) -> None:
        self._log = log.open("w")
        self.process = subprocess.Popen(
            [str(LONGTAKE), *map(str, args)],
            env=environment(**env),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._family: dict[int, psutil.Process] = {}
        self.log = log

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill_everything()
        self._log.close()

    def family(self) -> list[psutil.Process]:
        """All processes of this run, seen now or before, that still live."""
        with contextlib.suppress(psutil.Error):
            leader = psutil.Process(self.process.pid)
            for process in [leader, *leader.children(recursive=True)]:
                self._family[process.pid] = process
        return [process for process in self._family.values() if _lives(process)]

    def named(self, name: str) -> list[psutil.Process]:
        """``driver``, ``raylet``, ``gcs_server``, or actors by class."""
        if name == "driver":
            return [p for p in self.family() if p.pid == self.process.pid]
        found = []
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                words = " ".join([process.name(), *process.cmdline()[:1]])
                if name in words:
                    found.append(process)
        return found

    def kill_everything(self) -> None:
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=60)

    def wait(self, limit_s: float = RUN_LIMIT_S) -> int:
        self.family()
        return self.process.wait(timeout=limit_s)

    def text(self) -> str:
        return self.log.read_text()


def _lives(process: psutil.Process) -> bool:
    """Orphans may stay as zombies where nobody reaps them: those are dead."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def busy_workers(store: Path) -> set[str]:
    """The workers that computed anything, by their own logs."""
    logs = (store / "jobs").glob("*/logs/*.jsonl")
    return {log.stem for log in logs if log.stat().st_size}


def job_ids(store: Path) -> list[str]:
    folder = store / "jobs"
    return sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []


def load_plan(store: Path) -> Plan:
    """Of the store's first job."""
    opened = Store.open(store, create=False, writable=False)
    return plan_from_json(opened.job(job_ids(store)[0]).plan())


def units_logged(store: Path) -> list[dict[str, Any]]:
    """What the workers themselves say they computed, oldest first."""
    rows = []
    for log in (store / "jobs").glob("*/logs/*.jsonl"):
        for line in log.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line) | {"worker": log.stem})
    return sorted(rows, key=lambda row: row["at_s"])


def step_unit(row: dict[str, Any]) -> Unit:
    return Unit(row["kind"], row["shot"], row["stage"], row["index"], 0, row["step"])


def wait_for_units(store: Path, count: int, running: Running) -> int:
    """Wait until that many units were computed, or the run has ended."""
    while running.process.poll() is None:
        running.family()
        seen = len(units_logged(store))
        if seen >= count:
            return seen
        time.sleep(0.01)
    return len(units_logged(store))


def show(store: Path, job: str) -> dict[str, Any]:
    ran = longtake("show", job, "--store", store, "--json")
    assert ran.code == 0, ran.err
    return ran.json()


def wait_until_gone(running: Running, limit_s: float = 60.0) -> None:
    """After a driver's death its workers and its Ray must die by themselves.

    Ray's two node agents only notice when their own attempts to reach the dead cluster time out,
    a minute or more later; they hold no device and no store.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        left = [each.name() for each in running.family() if "Agent" not in each.name()]
        if not left:
            return
        time.sleep(0.2)
    raise AssertionError(f"still running after the driver died: {left}")
