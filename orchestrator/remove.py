"""``longtake remove``: a job leaves the store, with the results that no other job shares.

Results go first, then the job's folder in one rename: killed anywhere, the job is still there and
can be removed again, or it is gone. A film stands outside the store, and stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import BadJob, CannotRunHere, DamagedRecord, StoreError
from jobs.lease import Lease, locked
from jobs.results import Results
from jobs.store import JobFolder, Store
from orchestrator import inspect_job
from orchestrator.films import find_film
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
    planned: bool  # whether its plan can be read; else only its journal tells of results

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.job,
            "results": len(self.recipes),
            "bytes": self.freed_bytes,
            "results_shared": self.shared,
            "film": str(self.film or ""),
            "unreadable_jobs": list(self.kept_for),
            "plan_readable": self.planned,
        }


def belongings(store: Store, folder: JobFolder) -> Belongings:
    """What a job has in the store: by its plan, and by its journal, which knows results whose
    recipes were other ones then, or whose plan cannot be read now."""
    own = _keys(folder)
    mine = dict(_sizes(Results(store), own.may_be_stored))
    others, unreadable = set[str](), []
    for job in store.jobs():
        if job != folder.id:
            found = _keys_of_another(store, job)
            others |= found.may_be_stored
            unreadable += [] if found.planned else [job]
    # A checkpoint names its job, and can be nobody else's.
    needed = set(mine) - own.checkpoints if unreadable else others & set(mine)
    alone = {recipe: size for recipe, size in mine.items() if recipe not in needed}
    return Belongings(
        job=folder.id,
        recipes=tuple(sorted(alone)),
        freed_bytes=sum(alone.values()),
        shared=len(mine) - len(alone),
        film=find_film(folder).path,
        kept_for=tuple(unreadable),
        planned=own.planned,
    )


def remove_job(store: Store, folder: JobFolder) -> Belongings:
    """Remove a job and what is its alone, one job of the store at a time: of two that share a
    result each would leave it to the other.

    Raises StoreConflict while it is rendered, or another is removed; BadJob if it is gone;
    StoreError.
    """
    busy = f"another job is being removed from {store.root}; wait for that, then try again"
    fix = "wait for it or stop it, then remove it again"
    with locked(store.remove_lock, busy), Lease.acquire(store.job(folder.id).lease_path, fix=fix):
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


@dataclass(frozen=True, slots=True)
class _Keys:
    """The recipes of what a job may have stored, and of its checkpoints among them as far as they
    can be told."""

    may_be_stored: set[str]
    checkpoints: set[str]
    planned: bool


def _keys_of_another(store: Store, job: str) -> _Keys:
    """A job that was removed since it was listed, or while it was read, needs nothing."""
    try:
        found = _keys(store.job(job))
        store.job(job)  # is it there still?
        return found
    except BadJob:
        return _Keys(set(), set(), planned=True)


def _keys(folder: JobFolder) -> _Keys:
    stored, plan = inspect_job.stored_units(folder), _plan(folder)
    if plan is None:
        return _Keys(set(stored), set(), planned=False)
    recipes = Recipes(plan, folder.id)
    durable = {recipes.key(unit): unit for unit in plan.units() if plan.is_durable(unit)}
    units = {key: str(unit) for key, unit in durable.items()} | stored
    passing = {str(u) for u in durable.values() if u.kind == "step" and not plan.is_last_step(u)}
    checkpoints = {key for key, unit in units.items() if unit in passing}
    return _Keys(set(units), checkpoints, planned=True)


def _plan(folder: JobFolder) -> Plan | None:
    try:
        return plan_from_json(folder.plan())
    except (StoreError, CannotRunHere, OSError):
        return None
