from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_helpers import CONTEXT, at_once, in_child, memory_folder, running

from jobs.errors import StoreConflict, StoreFull
from jobs.files import seal, unseal
from jobs.lease import STALE_S, Lease


@pytest.fixture
def path() -> Iterator[Path]:
    with memory_folder() as folder:
        (folder / "film").mkdir()
        yield folder / "film" / "lease.json"


def change(path: Path, age_s: float = 0.0, **fields) -> None:
    """Make the lease look as if another process had written it, ``age_s`` ago."""
    found = unseal(path.read_bytes(), path)
    path.write_bytes(seal(found | fields))
    then = time.time() - age_s
    os.utime(path, (then, then))


def until(condition, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def leave(path: Path) -> None:
    """A lease of a process that was killed."""

    def work(say):
        Lease.acquire(path)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work)[0] == -9 and path.exists()


def test_one_owner_at_a_time(path):
    with Lease.acquire(path) as lease:
        assert not lease.lost
        with pytest.raises(StoreConflict, match=rf"film .* process {os.getpid()} on .*--take-over"):
            Lease.acquire(path)
    assert not path.exists()
    Lease.acquire(path).release()


def test_a_live_process_keeps_its_job(path):
    with (
        running(lambda: Lease.acquire(path)) as pid,
        pytest.raises(StoreConflict, match=f"process {pid} on"),
    ):
        Lease.acquire(path)


def test_a_killed_process_frees_its_job_at_once_even_before_it_is_reaped(path):
    def work():
        Lease.acquire(path)
        started.set()
        signal.pause()

    started = CONTEXT.Event()
    process = CONTEXT.Process(target=work)
    process.start()
    assert started.wait(5)
    os.kill(process.pid, signal.SIGKILL)
    assert until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "Z")
    Lease.acquire(path).release()
    process.join()


def test_a_stopped_process_keeps_its_job_until_it_is_taken_over(path):
    with running(lambda: Lease.acquire(path, heartbeat_s=0.01)) as pid:
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(StoreConflict):
            Lease.acquire(path)
        with Lease.acquire(path, take_over=True, heartbeat_s=0.01) as mine:
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.1)
            assert not mine.lost and path.exists()


def test_a_process_id_used_again_is_another_process(path):
    leave(path)
    change(path, pid=os.getpid(), process_start="1")
    Lease.acquire(path).release()


@pytest.mark.parametrize("where", [{"machine": "f" * 12, "host": "other"}, {"machine": "0" * 12}])
def test_on_another_host_the_heartbeat_decides(path, where):
    leave(path)
    change(path, STALE_S - 5, **where)
    with pytest.raises(StoreConflict, match=r"last sign of life 2[56] s ago"):
        Lease.acquire(path)
    change(path, STALE_S + 5, **where)
    Lease.acquire(path).release()


def test_a_damaged_lease_counts_until_it_is_old(path):
    path.write_bytes(b"rot")
    with pytest.raises(StoreConflict, match="its lease file is damaged"):
        Lease.acquire(path)
    change_time = time.time() - STALE_S - 1
    os.utime(path, (change_time, change_time))
    Lease.acquire(path).release()


def test_the_heartbeat_moves(path):
    with Lease.acquire(path, heartbeat_s=0.01):
        os.utime(path, (1, 1))
        assert until(lambda: path.stat().st_mtime > time.time() - 5)


def test_taking_over_is_noticed_and_leaves_the_new_lease_alone(path):
    old = Lease.acquire(path, heartbeat_s=0.01)
    with Lease.acquire(path, take_over=True, heartbeat_s=0.01) as new:
        assert until(lambda: old.lost)
        held = path.read_bytes()
        old.release()
        old.release()
        assert path.read_bytes() == held and not new.lost


def test_a_lease_that_vanishes_is_lost(path):
    with Lease.acquire(path, heartbeat_s=0.01) as lease:
        path.unlink()
        assert until(lambda: lease.lost)


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_processes_exactly_one_wins(path, stale):
    def take(number):
        Lease.acquire(path)
        return number

    for _ in range(5):
        path.unlink(missing_ok=True)
        if stale:
            leave(path)
        # The winner's process must live until all have tried, or its lease is free again.
        done = CONTEXT.Barrier(6)

        def attempt(number, done=done):
            try:
                return take(number)
            finally:
                done.wait(10)

        found = at_once(6, attempt)
        assert sorted(type(each).__name__ for each in found) == ["StoreConflict"] * 5 + ["int"]


def test_a_lease_whose_write_failed_does_not_own_the_job(path, monkeypatch):
    monkeypatch.setenv("LONGTAKE_FAULT", "lease.after_publish:enospc")
    with pytest.raises(StoreFull, match=r"lease\.json"):
        Lease.acquire(path)
    monkeypatch.delenv("LONGTAKE_FAULT")
    Lease.acquire(path).release()


def test_no_temporary_file_is_left(path):
    with Lease.acquire(path):
        assert sorted(each.name for each in path.parent.iterdir()) == [
            "lease.json",
            "lease.json.guard",
        ]
