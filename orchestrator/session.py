"""What a driver works with, beside the state of the render."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from jobs.journal import Journal
from orchestrator.cluster import Cluster
from orchestrator.events import Command, Event, Outcome
from orchestrator.plan import Plan
from orchestrator.recipes import Recipes
from orchestrator.state import RenderState
from workers.setup import WorkerSetup


class Watcher(Protocol):
    """Whoever shows the render to a person. Sees everything, decides nothing."""

    def saw(self, event: Event, state: RenderState) -> None: ...

    def did(self, command: Command, state: RenderState) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One driver's: of one render, on one cluster."""

    plan: Plan
    recipes: Recipes
    cluster: Cluster
    journal: Journal
    setup: WorkerSetup  # without worker id; its model as the person named it
    gpu_per_worker: int
    store_uri: str
    out: str
    provenance: dict[str, Any]
    watcher: Watcher
    stop_reason: Callable[[float], tuple[Outcome, str] | None]  # Ctrl-C, lease, timeout
