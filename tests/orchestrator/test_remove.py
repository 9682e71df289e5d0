"""A job that leaves the store takes with it what is its alone, and nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import BadJob, StoreConflict
from jobs.journal import Journal
from jobs.lease import Lease
from jobs.results import Results
from jobs.store import JobFolder, Store
from orchestrator.plan import Plan
from orchestrator.prepare import plan_to_json
from orchestrator.recipes import Recipes
from orchestrator.remove import Belongings, belongings, remove_job
from tests.orchestrator.plans import make_plan


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def submit(store: Store, job: str, plan: Plan) -> tuple[JobFolder, set[str]]:
    """A job with all that it may store, checkpoints among it; and the recipes of that."""
    folder = store.create_job(job, {"job": job}, plan_to_json(plan))
    recipes, results, made = Recipes(plan, job), Results(store), set()
    for unit in filter(plan.is_durable, plan.units()):
        made.add(recipes.key(unit))
        about = {"kind": unit.kind, "numerics": "a", "writer": "w"}
        results.commit(recipes.key(unit), b"x" * 10, **about)
    return folder, made


def note(folder: JobFolder, plan: Plan) -> None:
    """Its journal, as the driver writes it, of all that it may store."""
    recipes, journal = Recipes(plan, folder.id), Journal.open(folder, "driver")
    journal.begin_epoch()
    units = filter(plan.is_durable, plan.units())
    journal.append([{"type": "stored", "key": recipes.key(u), "unit": str(u)} for u in units])


def stored(store: Store) -> set[str]:
    results = Results(store)
    found = {path.name for path in (store.root / "results").glob("*/*")}
    assert all(results.lookup(recipe) for recipe in found)
    return found


PLAN = make_plan(9, 5)


def other_second_shot() -> Plan:
    """As PLAN, but for its second shot."""
    first, second = PLAN.shots
    render = replace(second.render, prompt="something else")
    return replace(PLAN, shots=(first, replace(second, render=render)))


def test_a_job_alone_leaves_nothing(store: Store) -> None:
    folder, made = submit(store, "kite", PLAN)
    assert stored(store) == made
    found = belongings(store, folder)
    assert (set(found.recipes), found.freed_bytes) == (made, 10 * len(made))
    assert stored(store) == made, "looking removes nothing"
    assert remove_job(store, folder) == found
    assert stored(store) == set() and store.jobs() == []
    assert list(store.scratch.iterdir()) == []


def test_what_another_job_shares_stays(store: Store) -> None:
    folder, mine = submit(store, "kite", PLAN)
    _, theirs = submit(store, "kite-again", other_second_shot())
    shared = mine & theirs
    assert shared and mine - theirs and theirs - mine
    found = remove_job(store, folder)
    assert set(found.recipes) == mine - theirs and found.shared == len(shared)
    assert stored(store) == theirs and store.jobs() == ["kite-again"]


def test_a_job_of_the_same_plan_keeps_its_results_but_not_the_others_checkpoints(
    store: Store,
) -> None:
    folder, mine = submit(store, "kite", PLAN)
    _, theirs = submit(store, "kite-again", PLAN)
    assert mine - theirs, "checkpoints name their job"
    remove_job(store, folder)
    assert stored(store) == theirs


def test_two_jobs_removed_at_once_leave_nothing_that_they_share(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes when the first has looked, and not yet deleted: it must wait."""
    one, other = (submit(store, job, PLAN)[0] for job in ("kite", "kite-again"))
    refused = []

    def look(store: Store, folder: JobFolder) -> Belongings:
        found = belongings(store, folder)
        if folder == one:
            try:
                remove_job(store, other)
            except StoreConflict as busy:
                refused.append(str(busy))
        return found

    with monkeypatch.context() as patch:
        patch.setattr("jobs.lease.GUARD_S", -1.0)  # do not wait
        patch.setattr("orchestrator.remove.belongings", look)
        remove_job(store, one)
    for _ in refused:
        remove_job(store, other)
    assert store.jobs() == [] and stored(store) == set()
    assert refused == [
        f"another job is being removed from {store.root}; wait for that, then try again"
    ]


def test_a_job_that_was_removed_meanwhile_is_not_there(store: Store) -> None:
    folder, _ = submit(store, "kite", PLAN)
    remove_job(store, folder)
    with pytest.raises(BadJob, match="no job 'kite'"):
        remove_job(store, folder)


@pytest.mark.parametrize("when", ["job", "plan"])
def test_a_job_that_vanishes_while_it_is_looked_at_needs_nothing(
    store: Store, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, made = submit(store, "kite", PLAN)
    other, _ = submit(store, "kite-again", PLAN)
    of = Store if when == "job" else JobFolder
    plainly = getattr(of, when)

    def too_late(self: Any, *args: Any) -> Any:
        if args == (other.id,) or self == other:
            shutil.rmtree(other.path, ignore_errors=True)
        return plainly(self, *args)

    monkeypatch.setattr(of, when, too_late)
    found = belongings(store, folder)
    assert (set(found.recipes), found.kept_for) == (made, ())


def test_a_job_that_is_rendered_is_not_removed(store: Store) -> None:
    folder, made = submit(store, "kite", PLAN)
    with Lease.acquire(folder.lease_path), pytest.raises(StoreConflict, match="is being rendered"):
        remove_job(store, folder)
    assert stored(store) == made and store.jobs() == ["kite"]
    remove_job(store, folder)


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_text("{")])
def test_what_a_job_that_cannot_be_read_might_share_stays(
    store: Store, spoil: Callable[[Path], object]
) -> None:
    folder, _ = submit(store, "kite", PLAN)
    other, theirs = submit(store, "kite-again", PLAN)
    spoil(other.path / "plan.json")
    found = remove_job(store, folder)
    assert found.kept_for == ("kite-again",)
    assert stored(store) == theirs, "checkpoints are nobody else's"


def test_without_plan_and_journal_a_job_is_removed_and_its_results_stay(store: Store) -> None:
    folder, made = submit(store, "kite", PLAN)
    (folder.path / "plan.json").unlink()
    found = remove_job(store, folder)
    assert (found.recipes, found.planned) == ((), False)
    assert store.jobs() == [] and stored(store) == made


def test_of_a_job_of_another_planner_goes_what_its_journal_names(store: Store) -> None:
    old = replace(PLAN, planner_version=PLAN.planner_version - 1)
    folder, made = submit(store, "kite", old)
    note(folder, old)
    _, theirs = submit(store, "kite-again", PLAN)
    found = remove_job(store, folder)
    assert made & theirs, "prompts are the same for every planner"
    assert (set(found.recipes), found.planned) == (made - theirs, False)
    assert stored(store) == theirs and store.jobs() == ["kite-again"]


def test_what_was_stored_under_recipes_of_before_goes_too(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mine = submit(store, "kite", PLAN)
    note(folder, PLAN)
    other, theirs = submit(store, "kite-again", other_second_shot())
    note(other, other_second_shot())
    monkeypatch.setattr("orchestrator.recipes.RECIPE_VERSION", 0)
    assert Recipes(PLAN, "kite").key(next(PLAN.goals())) not in mine
    found = remove_job(store, folder)
    assert found.planned and set(found.recipes) == mine - theirs
    assert stored(store) == theirs, "and what another job stored by then stays"


def test_checkpoints_of_before_are_nobody_elses(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mine = submit(store, "kite", PLAN)
    note(folder, PLAN)
    other, theirs = submit(store, "kite-again", PLAN)
    (other.path / "plan.json").unlink()
    monkeypatch.setattr("orchestrator.recipes.RECIPE_VERSION", 0)
    assert set(remove_job(store, folder).recipes) == mine - theirs


def test_a_damaged_result_is_removed_too(store: Store) -> None:
    folder, made = submit(store, "kite", PLAN)
    recipe = min(made)
    (store.root / "results" / recipe[:2] / recipe / "record.json").write_text("{")
    remove_job(store, folder)
    assert not list((store.root / "results").glob("*/*"))


def test_killed_on_its_way_a_job_can_be_removed_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = submit(store, "kite", PLAN)
    delete, done = Results.delete, []

    def die(results: Results, recipe: str) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(delete(results, recipe))

    with monkeypatch.context() as patch:
        patch.setattr(Results, "delete", die)
        with pytest.raises(KeyboardInterrupt):
            remove_job(store, folder)
    assert store.jobs() == ["kite"]
    remove_job(store, folder)
    assert store.jobs() == [] and stored(store) == set()


def test_links_are_not_followed(store: Store, tmp_path: Path) -> None:
    folder, _ = submit(store, "kite", PLAN)
    precious = tmp_path / "precious"
    shutil.copytree(folder.logs, precious)
    (precious / "film.mp4").write_text("mine")
    os.symlink(precious, folder.logs / "link")
    remove_job(store, folder)
    assert (precious / "film.mp4").read_text() == "mine"
