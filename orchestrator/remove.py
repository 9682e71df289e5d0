"""``longtake remove``: a job leaves the store, with the results that no other job shares.

Results go first, then the job's folder in one rename: killed anywhere, the job is still there and
can be removed again, or it is gone. A film stands outside the store, and stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import CannotRunHere, DamagedRecord, StoreError
from jobs.lease import Lease
from jobs.results import Results
from jobs.store import JobFolder, Store
from orchestrator import inspect_job
from orchestrator.plan import Plan
from orchestrator.prepare import plan_from_json
from orchestrator.recipes import Recipes


@dataclass(frozen=True, slots=True, kw_only=True)
class Belongings:
    """What leaves the store with a job, and what stays."""

    job: str
    recipes: tuple[str, ...]  # of the stored results that are this job's alone
    freed_bytes: int
    shared: int  # stored results that other jobs need, too
    film: Path | None
    kept_for: tuple[str, ...]  # jobs that cannot be read: what they might share stays

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.job,
            "results": len(self.recipes),
            "bytes": self.freed_bytes,
            "results_shared": self.shared,
            "film": str(self.film or ""),
            "unreadable_jobs": list(self.kept_for),
        }


def belongings(store: Store, folder: JobFolder) -> Belongings:
    """What a job has in the store. Of one whose plan cannot be read nothing is known but its
    folder: its results stay."""
    results = Results(store)
    mine = dict(_sizes(results, _recipes(folder) or set()))
    others, unreadable = set[str](), []
    for job in store.jobs():
        if job != folder.id:
            found = _recipes(store.job(job))
            others |= found or set()
            unreadable += [] if found is not None else [job]
    # A checkpoint names its job, and can be nobody else's.
    needed = set(mine) - _checkpoints(folder) if unreadable else others & set(mine)
    alone = {recipe: size for recipe, size in mine.items() if recipe not in needed}
    return Belongings(
        job=folder.id,
        recipes=tuple(sorted(alone)),
        freed_bytes=sum(alone.values()),
        shared=len(mine) - len(alone),
        film=inspect_job.film_path(folder),
        kept_for=tuple(unreadable),
    )


def remove_job(store: Store, folder: JobFolder) -> Belongings:
    """Remove a job and what is its alone. Raises StoreConflict while it is rendered, StoreError."""
    with Lease.acquire(folder.lease_path, fix="wait for it or stop it, then remove it again"):
        found = belongings(store, folder)  # again: another job may share it by now
        results = Results(store)
        for recipe in found.recipes:
            results.delete(recipe)
        store.remove_job(folder)
    return found


def _sizes(results: Results, recipes: set[str]) -> Iterator[tuple[str, int]]:
    """Those of the results that are stored, with the bytes of their data."""
    for recipe in recipes:
        try:
            record = results.lookup(recipe)
        except DamagedRecord:
            yield recipe, 0
            continue
        if record is not None:
            yield recipe, record.length


def _recipes(folder: JobFolder) -> set[str] | None:
    """Of all that a job may have stored; None if its plan cannot be read."""
    plan = _plan(folder)
    if plan is None:
        return None
    recipes = Recipes(plan, folder.id)
    return {recipes.key(unit) for unit in plan.units() if plan.is_durable(unit)}


def _checkpoints(folder: JobFolder) -> set[str]:
    plan = _plan(folder)
    if plan is None:
        return set()
    recipes = Recipes(plan, folder.id)
    units = (unit for unit in plan.units() if plan.is_durable(unit) and unit.kind == "step")
    return {recipes.key(unit) for unit in units if not plan.is_last_step(unit)}


def _plan(folder: JobFolder) -> Plan | None:
    try:
        return plan_from_json(folder.plan())
    except (StoreError, CannotRunHere, OSError):
        return None
