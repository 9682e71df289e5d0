"""What the benchmarks share: renders through the real command, times from the workers' logs."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import yaml

from jobs.model_folder import inspect_model, pinned_name, resolve_model
from jobs.store import Store
from jobs.units import Unit
from orchestrator.plan import Plan
from orchestrator.prepare import plan_from_json

RESULTS = Path(__file__).resolve().parent / "results"
LONGTAKE = Path(sys.executable).parent / "longtake"


@dataclass(frozen=True)
class Rendered:
    """A finished render and what its workers logged."""

    plan: Plan
    store: Path
    film: Path
    job: str
    elapsed_s: dict[Unit, float]
    ended_s: dict[Unit, float]  # wall clock
    peak_rss_bytes: dict[str, int]  # by kind of process

    @property
    def span_s(self) -> float:
        """From the first unit's start to the last unit's end: start-up is not in it."""
        first = min(end - self.elapsed_s[unit] for unit, end in self.ended_s.items())
        return max(self.ended_s.values()) - first

    def median_step_s(self) -> float:
        return median(
            seconds
            for unit, seconds in self.elapsed_s.items()
            if unit.kind == "step" and not self.plan.is_last_step(unit)
        )


def render(
    job: Mapping[str, Any],
    *,
    workers: int,
    watch_memory: bool = False,
    env: Mapping[str, str] | None = None,
) -> Rendered:
    """Render a job in a fresh store; ``env`` is set for all processes of the render."""
    folder = Path(tempfile.mkdtemp(prefix="longtake-bench-"))
    spec, store = folder / "job.yaml", folder / "store"
    spec.write_text(yaml.safe_dump({"version": 1, **job}))
    film = folder / ("film.mkv" if job.get("output", {}).get("codec") == "ffv1" else "film.mp4")
    command = [
        str(LONGTAKE), "render", str(spec), "--store", str(store), "--json",
        "--out", str(film), "--workers", str(workers),
    ]  # fmt: skip
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env={**os.environ, **(env or {})}, **pipes) as process:
        peaks = _watch(process) if watch_memory else {}
        out, err = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the render failed with {process.returncode}:\n{err.decode()}")
    job_id = json.loads(out)["id"]
    opened = Store.open(store, create=False)
    elapsed, ended = _read_logs(opened.job(job_id).logs)
    plan = plan_from_json(opened.job(job_id).plan())
    return Rendered(plan, store, film, job_id, elapsed, ended, peaks)


def _read_logs(folder: Path) -> tuple[dict[Unit, float], dict[Unit, float]]:
    elapsed, ended = {}, {}
    for log in folder.glob("*.jsonl"):
        for line in log.read_text().splitlines():
            row = json.loads(line)
            unit = Unit(row["kind"], row["shot"], row["stage"], row["index"], 0, row["step"])
            elapsed[unit], ended[unit] = row["elapsed_s"], row["at_s"]
    return elapsed, ended


def _watch(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """Highest resident memory of the driver, of any worker and of any store keeper."""
    peaks: dict[str, int] = {}
    while process.poll() is None:
        try:
            leader = psutil.Process(process.pid)
            _note(peaks, "driver", leader)
            for child in leader.children(recursive=True):
                if child.name().startswith("ray::LongtakeW"):
                    _note(peaks, "worker", child)
                elif child.name().startswith("ray::LongtakeK"):
                    _note(peaks, "keeper", child)
            process.wait(timeout=0.5)
        except psutil.Error:
            continue
        except subprocess.TimeoutExpired:
            continue
    return peaks


def _note(peaks: dict[str, int], kind: str, process: psutil.Process) -> None:
    memory = process.memory_info()
    private = memory.rss - memory.shared  # outputs lie in memory that all processes share
    for name, size_bytes in ((kind, memory.rss), (f"{kind}_private", private)):
        peaks[name] = max(peaks.get(name, 0), size_bytes)


def machine() -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{library: version(library) for library in ("torch", "diffusers", "ray")},
    }


def code_version(checkout: Path) -> str | None:
    """The git commit of a checkout's code, with "+changes" where files differ from it; results
    are no code. None outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(checkout), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != checkout.resolve():
            return None
        commit = git("rev-parse", "HEAD")
        changes = git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes else "")


#: Asked when a benchmark begins: the checkout may move on while it runs.
CODE = code_version(Path(__file__).resolve().parent.parent)


def model_name(model: str) -> str:
    """What a page may call a model: never the path of a folder, which says more of a machine."""
    folder = resolve_model(model)
    named = pinned_name(model, folder)
    return folder.name if named == str(folder) else named


def model_identity(model: str) -> str:
    """The digest of weights, configs and tokenizer by which recipes and jobs know a model."""
    return inspect_model(resolve_model(model)).identity


def facts(figures: Mapping[str, Any], models: Sequence[str] | None) -> dict[str, Any]:
    """What a result was measured on. Raises ValueError if nothing says of which weights it is."""
    if models is None:
        models = [figures["model"]] if "model" in figures else []
    if not models and "weights" not in figures:
        raise ValueError(
            "a result says of which weights it is: give write_result models=, by name or folder, "
            'or figures["weights"], in words, where there are none'
        )
    told = [{"name": model_name(each), "identity": model_identity(each)} for each in models]
    return machine() | ({"code": CODE} if CODE else {}) | ({"models": told} if told else {})


def rounded(figures: Any, digits: int) -> Any:
    """The same with all numbers in it, however deep, rounded."""
    if isinstance(figures, Mapping):
        return {name: rounded(value, digits) for name, value in figures.items()}
    if isinstance(figures, list):
        return [rounded(value, digits) for value in figures]
    return round(figures, digits) if isinstance(figures, float) else figures


def pretty(figures: Mapping[str, Any]) -> str:
    """JSON for people, with a list of numbers on one line."""
    text = json.dumps(figures, indent=2)
    return re.sub(r"\[\n[-+\s\d.,eE]*\]", lambda found: "".join(found[0].split()), text)


def write_result(
    name: str,
    figures: Mapping[str, Any],
    *,
    models: Sequence[str] | None = None,
    keep: bool = True,
    device: str = "cpu",
) -> None:
    """Print figures, and ``keep`` them in a dated file beside the scripts, named by ``device``.

    ``models`` are those that were measured, by name or folder; if not given, ``figures["model"]``.
    Figures of no trained weights have "weights" that says so.
    """
    print(pretty(figures))
    if not keep:
        return
    RESULTS.mkdir(exist_ok=True)
    said = facts(figures, models)
    if "model" in figures:
        figures = {**figures, "model": model_name(figures["model"])}
    path = RESULTS / f"{name}_{device}_{said['date']}.json"
    path.write_text(pretty({"machine": said, **figures}) + "\n")
    print(f"written to {path}")
