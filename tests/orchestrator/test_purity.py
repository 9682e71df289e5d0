"""The scheduler and the jobs layer need neither torch nor Ray."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
import time

import pytest

import jobs

PURE = (
    "plan",
    "units",
    "state",
    "roster",
    "placement",
    "events",
    "simulator",
    "simcluster",
    "referee",
    "records",
)

SCRIPT = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""


def imported_by(*modules: str) -> set[str]:
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT, *modules], capture_output=True, text=True, check=True
    )
    return set(json.loads(answer.stdout))


def test_the_scheduler_imports_nothing_heavy() -> None:
    names = imported_by(*(f"orchestrator.{name}" for name in PURE))
    assert not names & {"torch", "ray", "diffusers", "numpy", "pyarrow", "workers", "accel"}


def test_jobs_imports_neither_torch_nor_ray() -> None:
    modules = [f"jobs.{found.name}" for found in pkgutil.iter_modules(jobs.__path__)]
    names = imported_by("jobs", *modules)
    assert not names & {"torch", "ray", "diffusers", "workers", "accel", "orchestrator"}


def test_sleeping_is_forbidden_here() -> None:
    with pytest.raises(AssertionError, match="neither sleep"):
        time.sleep(0)
