"""``longtake remove``, as a command."""

from __future__ import annotations

import io

import pytest

from jobs.lease import Lease
from jobs.store import Store
from orchestrator.show import removal_text
from tests.cli.conftest import Desk, refusal


class Terminal(io.StringIO):
    """A person who answers."""

    def isatty(self) -> bool:
        return True


def jobs(desk: Desk) -> list[str]:
    return Store.open(desk.store).jobs()


def test_a_job_is_removed_if_the_person_says_so(
    desk: Desk, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    ran = desk.run("remove", stored, "--store", desk.store)
    assert (ran.code, jobs(desk)) == (4, [stored])
    assert "kite-1: 0 results of its own, 0.0 MiB" in ran.err and "nothing is removed" in ran.err
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    ran = desk.run("remove", stored, "--store", desk.store)
    assert (ran.code, jobs(desk)) == (0, [])
    assert ran.out == "removed: kite-1: 0 results of its own, 0.0 MiB\n"


def test_where_nobody_can_be_asked_it_must_be_said(
    desk: Desk, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    ran = desk.run("remove", stored, "--store", desk.store)
    assert (ran.code, ran.out, jobs(desk)) == (2, "", [stored])
    assert "longtake: there is nobody to ask here; say --yes" in ran.err
    ran = desk.run("remove", stored, "--store", desk.store, "--yes", "--json")
    assert (ran.code, ran.err, jobs(desk)) == (0, "", [])
    assert ran.json() == {
        "id": "kite-1", "results": 0, "bytes": 0, "results_shared": 0, "film": "",
        "unreadable_jobs": [], "plan_readable": True,
    }  # fmt: skip


def test_what_stays_is_told() -> None:
    told = {"id": "kite", "results": 1, "bytes": 3 * 2**20, "results_shared": 1, "film": "a.mp4"}
    told |= {"plan_readable": True}
    said = removal_text(told | {"unreadable_jobs": []})
    assert said.splitlines() == [
        "kite: 1 result of its own, 3.0 MiB",
        "  left there: 1 result that other jobs share",
        "  the film stays: a.mp4",
    ]
    said = removal_text(told | {"unreadable_jobs": ["one", "two"]})
    assert "1 result that jobs that cannot be read may share (one, two)" in said


def test_that_a_plan_cannot_be_read_is_told(desk: Desk, stored: str) -> None:
    (desk.store / "jobs" / stored / "plan.json").unlink()
    ran = desk.run("remove", stored, "--store", desk.store, "--yes")
    assert (ran.code, jobs(desk)) == (0, [])
    assert "its plan cannot be read: results of it that its journal does not name" in ran.out


def test_a_job_that_is_rendered_is_refused(desk: Desk, stored: str) -> None:
    with Lease.acquire(Store.open(desk.store).job(stored).lease_path):
        said = refusal(desk.run("remove", stored, "--store", desk.store, "--yes"), 7)
    assert "kite-1 is being rendered by process" in said
    assert said.endswith("wait for it or stop it, then remove it again")
    assert "--take-over" not in said, "an option of resume"
    assert jobs(desk) == [stored]


def test_a_job_that_is_not_there(desk: Desk, stored: str) -> None:
    said = refusal(desk.run("remove", "kite-2", "--store", desk.store, "--yes"), 2)
    assert f"no job 'kite-2' in {desk.store}; there are: {stored}" in said
