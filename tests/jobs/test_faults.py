"""Every commit point of the store: kill, or fail, there; then look with an independent eye."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from store_helpers import check_store, in_child, memory_folder

from jobs.errors import StoreError, StoreFull
from jobs.faults import (
    FAULT_POINTS,
    FAULT_STAGES,
    FAULT_WRITES,
    FILM_POINTS,
    WORKER_POINTS,
    fault_point,
)
from jobs.journal import Journal
from jobs.lease import Lease
from jobs.results import Results
from jobs.store import Store

PRODUCT = ("jobs", "accel", "workers", "orchestrator")
ROOT = Path(__file__).parents[2]
RECIPES = [f"{number:064x}" for number in range(4)]
DELETED, DAMAGED = RECIPES[0], RECIPES[1]

#: The points that the render below passes more than once.
REPEATED = [
    f"{write}.{stage}"
    for write in ("data", "result", "journal", "snapshot")
    for stage in FAULT_STAGES
]


def data_of(recipe: str) -> bytes:
    return recipe.encode() * 10


class Render:
    """A small render: every operation of the store, in the order of a driver."""

    def __init__(self, root: Path, say):
        self.root = root
        self.say = say

    def run(self) -> None:
        """To its end, trying once more what failed."""
        store = self.twice(lambda: Store.open(self.root))
        self.results = Results(store)
        job = self.twice(lambda: store.create_job("film", {"shots": 1}, {"windows": 3}))
        self.say(("job",))
        lease = self.twice(lambda: Lease.acquire(job.lease_path, heartbeat_s=0.001))
        journal = Journal.open(job, "driver", snapshot_every=2)
        self.twice(journal.begin_epoch)
        for recipe in RECIPES:
            self.finish(journal, recipe)
        self.say(("gone", DELETED))
        self.twice(lambda: self.results.delete(DELETED))
        self.say(("gone", DAMAGED))
        self.results.path(DAMAGED).write_bytes(b"")
        self.twice(lambda: self.results.quarantine(DAMAGED))
        lease.release()

    def finish(self, journal: Journal, recipe: str) -> None:
        self.twice(lambda: self.commit(recipe))
        self.say(("result", recipe))
        self.twice(lambda: journal.append([{"type": "done", "key": recipe}]))
        self.say(("record", recipe))

    def commit(self, recipe: str):
        return self.results.commit(
            recipe, data_of(recipe), kind="step", numerics="n", writer="w", extra={"a": [1]}
        )

    def twice(self, work):
        try:
            return work()
        except StoreError as error:
            self.say(("failed", type(error), str(error)))
            return work()


def check_kept(root: Path, said: list) -> None:
    """What was acknowledged can be read, through a store that is opened again."""
    if not (root / "store.json").exists():
        assert ("job",) not in said
        return
    store = Store.open(root, create=False)
    assert list(store.scratch.iterdir()) == []
    results = Results(store)
    gone = {each[1] for each in said if each[0] == "gone"}
    for each in said:
        if each[0] == "result" and each[1] not in gone:
            assert results.read(each[1]) == data_of(each[1])
        if each[0] == "job":
            assert (store.job("film").spec(), store.job("film").plan()) == (
                {"shots": 1},
                {"windows": 3},
            )
    acknowledged = [each[1] for each in said if each[0] == "record"]
    if acknowledged:
        journal = Journal.open(store.job("film"), "checker")
        found = [each["key"] for each in journal.records() if each["type"] == "done"]
        assert found in (acknowledged, RECIPES[: len(acknowledged) + 1])


def check_finished(root: Path) -> None:
    store = Store.open(root)
    results = Results(store)
    for recipe in RECIPES:
        if recipe in (DELETED, DAMAGED):
            assert results.lookup(recipe) is None
        else:
            assert results.read(recipe) == data_of(recipe)
            assert len(list(results.path(recipe).parent.iterdir())) == 2
    film = store.job("film")
    journal = Journal.open(film, "checker")
    assert len(list(journal.entries())) == len(list(film.journal_path.glob("*.json")))
    done = [each["key"] for each in journal.records() if each["type"] == "done"]
    assert done == RECIPES


@pytest.mark.parametrize(
    ("point", "passage"),
    [*((point, 1) for point in FAULT_POINTS), *((point, 2) for point in REPEATED)],
)
def test_killed_at_any_point_nothing_acknowledged_is_lost(point, passage):
    with memory_folder() as folder:
        root = folder / "store"
        fault = f"{point}:kill:{passage}"
        code, said = in_child(lambda say: Render(root, say).run(), LONGTAKE_FAULT=fault)
        assert code == -9
        check_store(root, but=DAMAGED if point == "result.before_quarantine" else "")
        check_kept(root, said)
        Render(root, lambda said: None).run()
        check_store(root)
        check_finished(root)


@pytest.mark.parametrize(
    ("point", "action"),
    [
        *((point, "enospc") for point in FAULT_POINTS),
        *((f"{write}.after_publish", "eio") for write in FAULT_WRITES),
        *((f"{write}.before_write", "erofs") for write in FAULT_WRITES),
    ],
)
def test_a_write_that_fails_at_any_point_says_so_and_can_be_tried_again(point, action):
    with memory_folder() as folder:
        root = folder / "store"
        fault = f"{point}:{action}"
        code, said = in_child(lambda say: Render(root, say).run(), LONGTAKE_FAULT=fault)
        assert code == 0
        failures = [each for each in said if each[0] == "failed"]
        if not point.startswith("snapshot"):  # only a hint: the render goes on without it
            ((_, kind, message),) = failures
            assert kind is (StoreError if action == "eio" else StoreFull)
            assert str(root) in message and "inished work is kept" in message
        check_store(root)
        check_finished(root)


def test_a_fault_fires_at_its_passage_and_only_once_across_restarts(tmp_path):
    def work(say):
        for number in range(3):
            say(number)
            fault_point("data.mid_write")

    faults = {
        "LONGTAKE_FAULT": "data.mid_write:kill:2",
        "LONGTAKE_FAULT_ONCE": str(tmp_path / "fired"),
    }
    assert in_child(work, **faults) == (-9, [0, 1])
    assert in_child(work, **faults) == (0, [0, 1, 2])


def test_a_fault_may_wait_for_one_unit(tmp_path):
    def work(say):
        for unit in ("a", "b", "b"):
            say(unit)
            fault_point("worker.before_unit", unit)

    faults = {"LONGTAKE_FAULT": "worker.before_unit:kill:2", "LONGTAKE_FAULT_ON": "b"}
    assert in_child(work, **faults) == (-9, ["a", "b", "b"])
    assert in_child(work, **faults | {"LONGTAKE_FAULT_ON": "c"}) == (0, ["a", "b", "b"])


@pytest.mark.parametrize(
    "fault", ["data.mid_writ:kill", "data.mid_write:explode", "data.mid_write"]
)
def test_a_fault_that_cannot_be_is_refused(fault, monkeypatch):
    monkeypatch.setenv("LONGTAKE_FAULT", fault)
    with pytest.raises(ValueError, match="LONGTAKE_FAULT"):
        fault_point("data.mid_write")


def test_the_list_of_fault_points_is_the_code():
    labels, stages, names = set(), set(), set()
    for path in (path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py")):
        if path.name == "faults.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("publish"):
                labels |= {ast.literal_eval(key.value) for key in node.keywords if is_label(key)}
            if isinstance(node, ast.JoinedStr) and ast.unparse(node)[1:].strip("'\"").startswith(
                "{label}."
            ):
                stages.add(node.values[-1].value[1:])
            if isinstance(node, ast.Constant) and re.fullmatch(
                r"[a-z]+\.(before|mid|after)_[a-z_]+", str(node.value)
            ):
                names.add(node.value)
    assert labels == set(FAULT_WRITES)
    assert stages == set(FAULT_STAGES)
    writes = {f"{label}.{stage}" for label in labels for stage in stages}
    assert names | writes == {*FAULT_POINTS, *FILM_POINTS, *WORKER_POINTS}


def is_label(key: ast.keyword) -> bool:
    return key.arg == "label" and isinstance(key.value, ast.Constant)
