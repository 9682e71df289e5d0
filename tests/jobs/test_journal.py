from __future__ import annotations

import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_helpers import at_once, check_store, damages, in_child, memory_folder

from jobs.errors import DamagedRecord, StoreConflict, StoreFull
from jobs.journal import Journal, latest_by_key
from jobs.store import JobFolder, Store


@pytest.fixture
def job():
    with memory_folder() as folder:
        yield Store.open(folder / "store").create_job("film", {}, {})


def begun(job: JobFolder, writer: str = "d1", **options) -> Journal:
    journal = Journal.open(job, writer, **options)
    journal.begin_epoch()
    return journal


def values(journal: Journal) -> list[int]:
    return [each["v"] for each in journal.records() if "v" in each]


def filled(job: JobFolder, count: int = 5, **options) -> Journal:
    journal = begun(job, **options)
    for number in range(1, count + 1):
        journal.append([{"v": number}])
    return journal


def paths(job: JobFolder) -> list:
    return sorted(job.journal_path.glob("*.json"))


def test_records_come_back_in_order(job):
    journal = begun(job)
    assert journal.append([{"v": 1}, {"v": 2}]) == 1
    assert journal.append([{"v": 3}]) == 2
    again = Journal.open(job, "d2")
    assert values(journal) == values(again) == [1, 2, 3]
    assert again.records() == journal.records()
    assert [entry.seq for entry in again.entries()] == [0, 1, 2]
    assert [path.name for path in paths(job)] == [f"{seq:020d}.json" for seq in range(3)]


def test_records_read_the_same_before_and_after_reopening(job):
    journal, record = begun(job), {"v": (1, 2), "more": {"x": 1}}
    journal.append([record])
    record["more"]["x"] = 2
    assert journal.records() == Journal.open(job, "d2").records()


def test_an_empty_journal(job):
    journal = Journal.open(job, "d1")
    assert journal.records() == [] and journal.epoch == 0 and list(journal.entries()) == []


def test_reading_writes_nothing(job):
    filled(job)
    before = sorted(job.path.rglob("*"))
    list(Journal.open(job, "reader").entries())
    assert sorted(job.path.rglob("*")) == before


def test_append_needs_an_epoch(job):
    with pytest.raises(RuntimeError, match="begin_epoch"):
        Journal.open(job, "d1").append([{"v": 1}])


def test_each_epoch_is_one_more(job):
    assert [begun(job, f"d{number}").epoch for number in range(3)] == [1, 2, 3]
    assert [entry.epoch for entry in Journal.open(job, "x").entries()] == [1, 2, 3]


# -- two drivers --------------------------------------------------------------------------------


def test_the_older_driver_loses_its_next_append(job):
    old = filled(job)
    new = begun(job, "d2")
    with pytest.raises(StoreConflict, match="another driver has taken over job film"):
        old.append([{"v": 99}])
    new.append([{"v": 6}])
    assert values(Journal.open(job, "x")) == [1, 2, 3, 4, 5, 6]


def test_what_the_older_driver_wrote_meanwhile_is_read(job):
    old, new = filled(job), Journal.open(job, "d2")
    old.append([{"v": 6}])
    assert new.begin_epoch() == 2
    assert values(new) == [1, 2, 3, 4, 5, 6]


def test_of_many_real_drivers_the_last_epoch_wins_and_no_append_is_lost(job):
    def drive(number):
        journal, done = begun(job, f"d{number}"), []
        try:
            for count in range(30):
                journal.append([{"v": (number, count)}])
                done.append([number, count])
        except StoreConflict:
            return journal.epoch, done, "lost"
        return journal.epoch, done, "won"

    for _ in range(3):
        found = at_once(4, drive)
        journal = Journal.open(job, "x")
        last = max(epoch for epoch, _, _ in found)
        assert sorted(epoch for epoch, _, _ in found) == list(range(last - 3, last + 1))
        assert next(end for epoch, _, end in found if epoch == last) == "won"
        kept = values(journal)
        assert all(each in kept for _, done, _ in found for each in done)
        assert [entry.seq for entry in journal.entries()] == list(range(len(paths(job))))
        for path in [*paths(job), *job.snapshots_path.iterdir()]:
            path.unlink()


def test_the_same_driver_goes_on_after_a_write_that_only_seemed_to_fail(job, monkeypatch):
    journal = filled(job, 1)
    monkeypatch.setenv("LONGTAKE_FAULT", "journal.after_publish:enospc")
    with pytest.raises(StoreFull, match="inished work is kept"):
        journal.append([{"v": 2}])
    monkeypatch.delenv("LONGTAKE_FAULT")
    assert journal.append([{"v": 3}]) == 3
    assert values(journal) == values(Journal.open(job, "x")) == [1, 2, 3]


# -- damage -------------------------------------------------------------------------------------


def test_any_bit_or_cut_of_any_file_is_found(job):
    filled(job, 2)
    for path in paths(job):
        whole = path.read_bytes()
        for damaged in damages(whole, stride=2):
            path.write_bytes(damaged)
            with pytest.raises(DamagedRecord, match=f"{path.name} is damaged"):
                Journal.open(job, "x")
        path.write_bytes(whole)
    assert values(Journal.open(job, "x")) == [1, 2]


@pytest.mark.parametrize("lost", range(5))
def test_a_missing_file_is_found_and_named(job, lost):
    filled(job)
    paths(job)[lost].unlink()
    with pytest.raises(DamagedRecord, match=f"follows .*{lost:020d}.json, which is missing"):
        Journal.open(job, "x")


def test_files_that_changed_places_are_found(job):
    filled(job)
    one, two = paths(job)[2:4]
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    with pytest.raises(DamagedRecord):
        Journal.open(job, "x")


def test_another_jobs_file_is_found(job):
    filled(job)
    other = Store.open(job.path.parents[1]).create_job("other", {}, {})
    filled(other)
    paths(job)[3].write_bytes(paths(other)[3].read_bytes())
    with pytest.raises(DamagedRecord, match="not the one it followed"):
        Journal.open(job, "x")


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("how", ["flip", "cut", "missing"])
def test_repair_keeps_what_is_whole_and_sets_the_rest_aside(job, place, how):
    filled(job)
    path = paths(job)[place]
    after = [each.name for each in paths(job)[place:]]
    if how == "missing":
        path.unlink()
        after = after[1:]
    else:
        data = path.read_bytes()
        path.write_bytes(data[:50] if how == "cut" else data.replace(b'"seq"', b'"sep"'))
    journal = Journal.open(job, "d2", repair=True)
    assert [each.name for each in journal.set_aside] == [f"{name}.damaged" for name in after]
    assert all(each.exists() for each in journal.set_aside)
    kept = list(range(1, place))
    assert values(journal) == (kept if after else [1, 2, 3, 4])
    journal.begin_epoch()
    journal.append([{"v": 7}])
    again = Journal.open(job, "x")
    assert again.set_aside == [] and values(again) == values(journal)
    check_store(job.path.parents[1])


def test_a_driver_replaced_after_a_repair_still_loses(job):
    old = filled(job)
    paths(job)[2].write_bytes(b"rot")
    new = Journal.open(job, "d2", repair=True)
    assert new.begin_epoch() > old.epoch
    for number in range(10):
        with pytest.raises(StoreConflict):
            old.append([{"v": 99}])
        old._begun = True  # a driver that will not take no for an answer
        new.append([{"v": 10 + number}])
    assert values(Journal.open(job, "x")) == [1, *range(10, 20)]


def test_an_epoch_that_was_set_aside_is_not_begun_again(job):
    begun(job, "d1"), begun(job, "d2"), begun(job, "d3")
    paths(job)[0].write_bytes(b"rot")
    for number in range(2):
        journal = Journal.open(job, f"d{4 + number}", repair=True)
        assert len(journal.set_aside) == (3 if number == 0 else 0)
    assert journal.begin_epoch() > 3


def test_a_driver_replaced_during_a_repair_cannot_break_it(job):
    old = filled(job)
    paths(job)[2].write_bytes(b"rot")
    new = Journal.open(job, "d2", repair=True)
    old.append([{"v": 99}])  # before the new epoch: it follows files that were set aside
    new.begin_epoch()
    new.append([{"v": 10}])
    assert values(Journal.open(job, "x")) == [1, 10]


# -- folding and snapshots ----------------------------------------------------------------------

records = st.lists(
    st.fixed_dictionaries(
        {"v": st.integers()},
        optional={"type": st.sampled_from("ab"), "key": st.integers(0, 2)},
    )
)


@given(records, records)
def test_folding_in_parts_is_folding_once(one, two):
    assert latest_by_key(latest_by_key(one) + two) == latest_by_key(one + two)


def test_a_later_record_of_the_same_type_and_key_replaces():
    first, second = {"type": "a", "key": 1, "v": 1}, {"type": "b", "key": 1}
    later, free = {"type": "a", "key": 1, "v": 2}, {"type": "a"}
    assert latest_by_key([first, free, second, free, later]) == [free, second, free, later]


def test_a_snapshot_saves_reading(job):
    filled(job, 20, snapshot_every=4)
    assert [path.name for path in sorted(job.snapshots_path.iterdir())] == [
        f"{15:020d}.json",
        f"{19:020d}.json",
    ]
    for path in paths(job)[:20]:
        path.write_bytes(b"rot")  # not read any more
    journal = Journal.open(job, "x")
    assert values(journal) == list(range(1, 21))
    with pytest.raises(DamagedRecord):
        list(journal.entries())


@pytest.mark.parametrize("last", [19, 20])
def test_a_damaged_snapshot_is_passed_over(job, last):
    filled(job, last, snapshot_every=4)
    logging.disable()
    for path in sorted(job.snapshots_path.iterdir(), reverse=True):
        whole = path.read_bytes()
        for damaged in damages(whole, stride=5):
            path.write_bytes(damaged)
            assert values(Journal.open(job, "x")) == list(range(1, last + 1))
    logging.disable(logging.NOTSET)


def test_a_snapshot_of_files_that_were_set_aside_is_passed_over(job):
    old = filled(job, 6)
    paths(job)[2].write_bytes(b"rot")
    new = Journal.open(job, "d2", repair=True)
    new.begin_epoch()
    old._write_snapshot()  # of a number that the new driver set aside
    new.append([{"v": 10}])
    assert values(Journal.open(job, "x")) == [1, 10]


def test_a_callers_own_fold_is_used(job):
    def total(found):
        return [{"v": sum(each.get("v", 0) for each in found)}]

    journal = filled(job, 9, snapshot_every=2, fold=total)
    assert values(journal) == values(Journal.open(job, "x", fold=total)) == [45]


def test_a_journal_that_cannot_be_written_fails_before_it_changes(job):
    journal = filled(job, 2)

    def work(say):
        for _ in range(2):
            try:
                journal.append([{"v": 3}])
            except StoreFull:
                say("full")

    assert in_child(work, LONGTAKE_FAULT="journal.mid_write:enospc") == (0, ["full"])
    assert values(Journal.open(job, "x")) == [1, 2, 3]


def test_a_long_journal_opens_quickly(job):
    filled(job, 1500)
    start_s = time.perf_counter()
    assert values(Journal.open(job, "x")) == list(range(1, 1501))
    assert time.perf_counter() - start_s < 1.0
