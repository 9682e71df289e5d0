"""The scheduler and the jobs layer need neither torch nor Ray."""

from __future__ import annotations

import ast
import json
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jobs
import orchestrator

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
    "lanes",
    "recipes",
)

#: What each of our packages may import of the others; and which modules of the orchestrator stand
#: around the driver, where it meets workers, films and Ray.
LAYERS = {
    "jobs": set(),
    "accel": {"jobs"},
    "workers": {"jobs", "accel"},
    "orchestrator": {"jobs"},
    "training": {"jobs", "accel", "workers"},
}
AROUND_THE_DRIVER = {
    "actors", "driver", "session", "render", "verify", "report", "report_page", "report_seams",
    "export", "calibrate", "films", "here", "room", "try_presets", "cli_models",
}  # fmt: skip

#: What decides: these have no clock, no files and no random numbers either.
DECIDING = (
    "plan", "units", "state", "roster", "placement", "events", "records", "lanes", "handing",
)  # fmt: skip
WORLDLY = {"time", "datetime", "random", "secrets", "uuid", "os", "io", "pathlib", "socket", "sys"}

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


@pytest.mark.parametrize("name", DECIDING)
def test_what_decides_sees_nothing_of_the_world(name: str) -> None:
    tree = ast.parse((Path(orchestrator.__file__).parent / f"{name}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "print", "input", "__import__"), node.lineno
    assert not found & WORLDLY


def test_jobs_imports_neither_torch_nor_ray() -> None:
    modules = [f"jobs.{found.name}" for found in pkgutil.iter_modules(jobs.__path__)]
    names = imported_by("jobs", *modules)
    assert not names & {"torch", "ray", "diffusers", "workers", "accel", "orchestrator"}


def test_sleeping_is_forbidden_here() -> None:
    with pytest.raises(AssertionError, match="neither sleep"):
        time.sleep(0)


def test_imports_point_one_way() -> None:
    """jobs <- accel <- workers <- orchestrator, wherever in a file they stand."""
    root = Path(orchestrator.__file__).parent.parent
    packages = {*LAYERS, "benchmarks", "tests"}
    wrong = []
    for package, allowed in LAYERS.items():
        for path in sorted((root / package).rglob("*.py")):
            around = package == "orchestrator" and path.stem in AROUND_THE_DRIVER
            may = {package, *allowed, *({"workers"} if around else ())}
            named = _imported(ast.parse(path.read_text())) & packages
            wrong += [f"{path.relative_to(root)}: {name}" for name in named - may]
    assert not wrong


def _imported(tree: ast.AST) -> set[str]:
    """The packages that a file imports anywhere."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return {name.split(".")[0] for name in names}
