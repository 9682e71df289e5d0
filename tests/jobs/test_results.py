from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import random

import pytest
from store_helpers import at_once, check_store, damages, memory_folder

from jobs.errors import DamagedRecord, StoreError
from jobs.results import ResultRecord, Results
from jobs.store import Store

RECIPE = "0123456789abcdef" * 4
DATA = b"latents" * 9


@pytest.fixture
def results():
    with memory_folder() as folder:
        yield Results(Store.open(folder / "store"))


def commit(results, data=DATA, recipe=RECIPE, writer="w1", **more) -> ResultRecord:
    return results.commit(recipe, data, kind="step", numerics="n1", writer=writer, **more)


def files(results) -> list[str]:
    return sorted(each.suffix for each in results.path(RECIPE).parent.iterdir())


def test_a_result_comes_back(results):
    record = commit(results, extra={"frames": ["a", "b"]}, ext="mp4")
    assert record == results.lookup(RECIPE)
    assert (record.kind, record.numerics, record.writer) == ("step", "n1", "w1")
    assert (record.length, record.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    assert record.extra == {"frames": ["a", "b"]} and record.ext == "mp4"
    assert results.read(RECIPE) == results.path(RECIPE).read_bytes() == DATA
    assert files(results) == [".json", ".mp4"]
    assert pickle.loads(pickle.dumps(record)) == record


def test_an_empty_result_is_a_result(results):
    commit(results, b"")
    assert results.read(RECIPE) == b""


def test_no_result(results):
    assert results.lookup(RECIPE) is None
    assert results.quarantine(RECIPE) is None
    results.delete(RECIPE)
    for use in (results.read, results.path):
        with pytest.raises(StoreError, match="never finished, or was deleted"):
            use(RECIPE)


@pytest.mark.parametrize("recipe", ["", "../" * 21 + "x", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_what_is_not_a_recipe_is_refused(results, recipe):
    for use in (results.lookup, results.read, results.delete, results.quarantine):
        with pytest.raises(StoreError, match="64 hex digits"):
            use(recipe)
    with pytest.raises(ValueError, match="cannot end a file name"):
        commit(results, ext="../x")


def test_the_first_commit_wins_and_leaves_no_other_file(results):
    first = commit(results, writer="w1")
    assert commit(results, writer="w2") == first
    assert results.lookup(RECIPE) == first and files(results) == [".bin", ".json"]


def test_a_result_that_differs_in_the_same_numerics_is_told(results):
    commit(results, b"one", writer="w1")
    commit(results, b"one", writer="w2")
    assert not results.disagreements
    commit(results, b"two", writer="w3")
    (told,) = results.disagreements
    assert "w1 and w3 disagree" in told and results.read(RECIPE) == b"one"


def test_of_many_real_processes_one_wins_and_all_know_it(results):
    logging.disable()
    for number in range(5):
        recipe = f"{number:064x}"
        found = at_once(
            6, lambda who, recipe=recipe: commit(results, bytes([who]) * 99_999, recipe, f"w{who}")
        )
        assert all(each == results.lookup(recipe) for each in found), found
        winner = int(found[0].writer[1:])
        assert results.read(recipe) == bytes([winner]) * 99_999
        assert len(list(results.path(recipe).parent.iterdir())) == 2
    logging.disable(logging.NOTSET)


def test_what_a_dead_writer_left_is_cleared_by_the_winner(results):
    record = commit(results)
    stray = results.path(RECIPE).with_name("f" * 32 + ".bin")
    (results.path(RECIPE).parent / "record.json").unlink()
    results_folder = stray.parent
    stray.write_bytes(b"half of it was")
    again = commit(results)
    assert again.attempt != record.attempt and len(list(results_folder.iterdir())) == 2


# -- damage -------------------------------------------------------------------------------------


def test_any_bit_or_cut_of_the_record_is_found(results):
    commit(results, extra={"frames": ["a"]})
    path = results.path(RECIPE).parent / "record.json"
    for damaged in damages(path.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(DamagedRecord, match=r"record\.json is damaged"):
            results.lookup(RECIPE)


def test_any_bit_or_cut_of_the_data_is_found(results):
    commit(results)
    path = results.path(RECIPE)
    for damaged in damages(DATA):
        path.write_bytes(damaged)
        with pytest.raises(DamagedRecord, match=path.name):
            results.read(RECIPE)
    path.write_bytes(DATA + b"\0")
    with pytest.raises(DamagedRecord, match="64 bytes; its record says 63"):
        results.read(RECIPE)
    path.unlink()
    with pytest.raises(DamagedRecord, match="is missing"):
        results.read(RECIPE)


def test_another_results_record_is_found(results):
    commit(results)
    other = "f" * 64
    commit(results, recipe=other)
    mine = results.path(RECIPE).parent / "record.json"
    (results.path(other).parent / "record.json").write_bytes(mine.read_bytes())
    with pytest.raises(DamagedRecord, match="record of another result"):
        results.lookup(other)


def test_a_record_of_another_version_is_not_called_damage(results):
    from jobs.files import seal

    commit(results)
    path = results.path(RECIPE).parent / "record.json"
    path.write_bytes(seal(json.loads(path.read_bytes()) | {"format": 2}))
    with pytest.raises(StoreError, match="another version") as info:
        results.lookup(RECIPE)
    assert not isinstance(info.value, DamagedRecord)


def test_quarantine_keeps_the_damaged_files_and_makes_room(results):
    commit(results)
    path = results.path(RECIPE)
    path.write_bytes(b"rot")
    aside = results.quarantine(RECIPE)
    assert (aside / path.name).read_bytes() == b"rot" and (aside / "record.json").exists()
    assert results.lookup(RECIPE) is None
    commit(results)
    assert results.read(RECIPE) == DATA


def test_quarantine_leaves_what_is_whole_unless_forced(results):
    commit(results)
    assert results.quarantine(RECIPE) is None and results.read(RECIPE) == DATA
    assert results.quarantine(RECIPE, force=True) and results.lookup(RECIPE) is None


@pytest.mark.parametrize("which", ["record", "data", "missing"])
def test_a_commit_over_a_damaged_result_mends_it(results, which, caplog):
    commit(results, writer="w1")
    path = results.path(RECIPE)
    if which == "missing":
        path.unlink()
    else:
        (path if which == "data" else path.with_name("record.json")).write_bytes(b"rot")
    assert commit(results, writer="w2").writer == "w2"
    assert results.read(RECIPE) == DATA and "set aside at" in caplog.text


def test_delete_takes_all_of_it(results):
    commit(results)
    folder = results.path(RECIPE).parent
    results.delete(RECIPE)
    assert results.lookup(RECIPE) is None and not folder.exists()


def test_many_who_commit_delete_and_set_aside_leave_only_whole_results(results):
    def work(number):
        chance = random.Random(number)
        for _ in range(40):
            what = chance.choice([commit, commit, results.delete, results.quarantine])
            what(results, DATA) if what is commit else what(RECIPE)
        return "done"

    logging.disable()
    assert at_once(5, work) == ["done"] * 5
    logging.disable(logging.NOTSET)
    commit(results)
    assert results.read(RECIPE) == DATA
    check_store(results._store.root)
    assert list(results._store.scratch.iterdir()) == []


def test_a_deleted_result_that_is_written_to_meanwhile_leaves_nothing(results, monkeypatch):
    """A writer that looked the folder up before it was moved may link a file into it after."""
    commit(results)
    rmdir, late = os.rmdir, []

    def emptied_too_early(path, **where):
        for moved in () if late else results._store.scratch.iterdir():
            late.append(moved / "late.bin")
            late[-1].write_bytes(DATA)
        rmdir(path, **where)

    monkeypatch.setattr(os, "rmdir", emptied_too_early)
    results.delete(RECIPE)
    assert len(late) == 1 and list(results._store.scratch.iterdir()) == []
