from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from store_helpers import at_once, check_store, in_child, running

from jobs.errors import BadJob, DamagedRecord, StoreError, StoreFull
from jobs.files import STRAY_S, publish, seal, temporary_name, unseal
from jobs.results import Results
from jobs.store import Store

SPEC, PLAN = {"prompt": "a heron", "fps": 16.0}, {"windows": [[0, 21], [15, 36]]}
RECIPE = "ab" * 32


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


def test_a_store_opens_by_path_or_uri(tmp_path):
    root = tmp_path / "my store"
    Store.open(root)
    for uri in (root, str(root), root.as_uri(), f"file://localhost{root.as_uri()[7:]}"):
        assert Store.open(uri, create=False).root == root
    assert Store.open(root).uri == f"file://{tmp_path}/my%20store"


@pytest.mark.parametrize("uri", ["s3://bucket/x", "http://host/x", "file://other/x", "memory:"])
def test_other_schemes_are_refused(uri):
    with pytest.raises(StoreError, match=r"valid: a folder .* or file:///"):
        Store.open(uri)


def test_without_create_there_must_be_a_store(tmp_path):
    with pytest.raises(StoreError, match="there is no store at"):
        Store.open(tmp_path / "x", create=False)
    assert not (tmp_path / "x").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        Store.open(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(StoreError, match="is a file; give a folder"):
        Store.open(tmp_path / "x")


def test_a_newer_format_is_refused_with_both_versions_and_the_fix(store):
    (store.root / "store.json").write_text('{"format": 2, "new": {}}')
    with pytest.raises(StoreError, match=r"format 2.*reads format 1; upgrade Longtake \(pip"):
        Store.open(store.root)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": "x"}'])
def test_a_damaged_identity_is_found(store, text):
    (store.root / "store.json").write_text(text)
    with pytest.raises(DamagedRecord, match=r"store\.json is damaged"):
        Store.open(store.root)


def test_many_may_create_the_same_store(tmp_path):
    found = at_once(6, lambda number: Store.open(tmp_path / "deep" / "store"))
    assert found == [Store(tmp_path / "deep" / "store")] * 6
    check_store(tmp_path / "deep" / "store")


def test_a_store_can_be_sent(store):
    assert pickle.loads(pickle.dumps(store)) == store


# -- jobs ---------------------------------------------------------------------------------------


def test_a_job_comes_back(store):
    job = store.create_job("film-1", SPEC, PLAN)
    assert (job.spec(), job.plan()) == (SPEC, PLAN)
    assert store.job("film-1") == job and store.jobs() == ["film-1"]
    assert job.logs.is_dir() and job.journal_path.is_dir()
    check_store(store.root)


def test_the_same_job_again_is_the_same_folder_and_another_is_refused(store):
    job = store.create_job("film", SPEC, PLAN)
    assert store.create_job("film", SPEC, PLAN) == job
    with pytest.raises(BadJob, match="another plan"):
        store.create_job("film", SPEC, PLAN | {"seed": 2})
    with pytest.raises(BadJob, match="another spec"):
        store.create_job("film", SPEC | {"fps": 8}, PLAN)
    assert (job.spec(), job.plan()) == (SPEC, PLAN)


def test_of_many_who_create_a_job_one_wins_whole(store):
    def create(number):
        store.create_job("film", {"by": number}, {"by": number})
        return number

    found = at_once(6, create)
    (winner,) = (each for each in found if isinstance(each, int))
    assert all(isinstance(each, BadJob) for each in found if each != winner)
    job = store.job("film")
    assert job.spec() == job.plan() == {"by": winner}
    assert list(store.scratch.iterdir()) == []


def test_an_unknown_job_names_those_that_exist(store):
    with pytest.raises(BadJob, match="there are: none"):
        store.job("x")
    for number in range(12):
        store.create_job(f"j{number:02}", SPEC, PLAN)
    with pytest.raises(BadJob, match="there are: j00, j01, j02 and 9 more; `longtake ls`"):
        store.job("x")


@pytest.mark.parametrize("name", ["", "..", ".", ".x", "a/b", "/x", "a\0", "x" * 101, "a\n", "-x"])
def test_names_that_could_leave_the_store_are_refused(store, name):
    for use in (store.job, lambda name: store.create_job(name, SPEC, PLAN)):
        with pytest.raises(BadJob, match="cannot name a job"):
            use(name)


def test_a_link_out_of_the_store_is_refused(store, tmp_path):
    outside = tmp_path / "outside"
    (outside / "film").mkdir(parents=True)
    (store.root / "jobs" / "film").symlink_to(outside / "film")
    with pytest.raises(StoreError, match="leads out of the store"):
        store.create_job("film", SPEC, PLAN)
    (store.root / "results" / RECIPE[:2]).symlink_to(outside)
    with pytest.raises(StoreError, match="leads out of the store"):
        Results(store).commit(RECIPE, b"", kind="k", numerics="n", writer="w")
    (store.root / "damaged").rmdir()
    (store.root / "damaged").symlink_to(outside)
    with pytest.raises(StoreError, match="leads out of the store"):
        Store.open(store.root)
    assert list(outside.rglob("*")) == [outside / "film"]


def test_a_damaged_plan_is_found(store):
    path = store.create_job("film", SPEC, PLAN).path / "plan.json"
    path.write_bytes(path.read_bytes().replace(b"21", b"22"))
    with pytest.raises(DamagedRecord, match=r"plan\.json is damaged"):
        store.job("film").plan()
    path.unlink()
    with pytest.raises(DamagedRecord, match=r"plan\.json is missing"):
        store.job("film").plan()


# -- sealed files and temporary files -----------------------------------------------------------


def test_seals_hold_for_any_json(tmp_path):
    for record in ({"x": 1}, {"b": {"10": 1, "9": [None, 0.1, "\n\u2028é"]}, "checksum": "mine"}):
        assert unseal(seal(record), tmp_path) | {"checksum": 0} == record | {"checksum": 0}
    with pytest.raises(ValueError, match="JSON"):
        seal({"x": float("nan")})


def test_create_never_overwrites(tmp_path):
    publish(tmp_path / "x", b"one", label="data", how="create", scratch=tmp_path)
    with pytest.raises(FileExistsError):
        publish(tmp_path / "x", b"two", label="data", how="create", scratch=tmp_path)
    publish(tmp_path / "y", b"one", label="data", how="replace", scratch=tmp_path)
    publish(tmp_path / "y", b"two", label="data", how="replace", scratch=tmp_path)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {
        "x": b"one",
        "y": b"two",
    }


@pytest.mark.parametrize(("how", "call"), [("create", "link"), ("replace", "replace")])
def test_a_file_gets_its_name_after_its_bytes_and_both_are_synced(tmp_path, how, call, monkeypatch):
    order = []

    def watch(name):
        real = getattr(os, name)

        def watched(one, *more):
            order.append((name, Path(f"/proc/self/fd/{one}").is_dir() if name == "fsync" else ""))
            return real(one, *more)

        monkeypatch.setattr(os, name, watched)

    watch("fsync")
    watch(call)
    publish(tmp_path / "x", b"one", label="data", how=how, scratch=tmp_path)
    assert order == [("fsync", False), (call, ""), ("fsync", True)]


def test_only_dead_writers_files_are_swept(store):
    names = []
    in_child(lambda say: names.append(say(temporary_name())))
    _, (dead,) = in_child(lambda say: say(temporary_name()))
    mine = temporary_name()
    machine, pid, start = mine.split("-")[1:4]
    reused = f".tmp-{machine}-{pid}-{int(start) - 1}-{'0' * 12}"
    other, old = (f".tmp-{'f' * 12}-1-1-{digit * 12}" for digit in "01")
    for name in (dead, mine, reused, other, old):
        (store.scratch / name).mkdir()
        (store.scratch / name / "x").touch()
    then = os.stat(store.scratch).st_mtime - STRAY_S - 60
    os.utime(store.scratch / old, (then, then))
    Store.open(store.root)
    assert {each.name for each in store.scratch.iterdir()} == {mine, other}


# -- file systems that refuse -------------------------------------------------------------------


def test_a_file_too_large_for_the_limit_is_refused_and_nothing_is_lost(store):
    results = Results(store)

    def commit(recipe, size):
        return results.commit(recipe, b"x" * size, kind="k", numerics="n", writer="w")

    def work(say):
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        try:
            commit("a" * 64, 8193)
        except StoreFull as error:
            say(str(error))
        commit("b" * 64, 8192)

    code, (message,) = in_child(work)
    assert code == 0 and "File too large" in message and "ulimit" in message
    assert results.lookup("a" * 64) is None and results.read("b" * 64) == b"x" * 8192
    assert list(store.scratch.iterdir()) == []


def test_a_folder_without_permission_is_refused():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root = Path(folder) / "store"

        def work(say):
            if os.getuid() == 0:
                os.setuid(65534)
            else:
                os.chmod(folder, 0o555)
            try:
                Store.open(root)
            except StoreFull as error:
                say(str(error))

        code, said = in_child(work)
        assert code == 0 and "Permission denied" in said[0] and str(root) in said[0]
        assert os.listdir(folder) == []


FULL = """
import sys
from pathlib import Path
from jobs.errors import StoreFull
from jobs.results import Results
from jobs.store import Store

root = Path(sys.argv[1])
def commit(number):
    data = bytes([number]) * 20_000
    Results(store).commit(f"{number:064x}", data, kind="k", numerics="n", writer="w")

if sys.argv[2] == "fill":
    store, number = Store.open(root), 0
    try:
        while True:
            commit(number)
            number += 1
    except StoreFull as error:
        assert "No space left" in str(error) and "MiB free" in str(error), error
    assert number > 5, number
    for each in range(number):
        assert Results(store).read(f"{each:064x}") == bytes([each]) * 20_000
    assert Results(store).lookup(f"{number:064x}") is None
    assert list(store.scratch.iterdir()) == []
    for each in range(3):
        Results(store).delete(f"{each:064x}")
    commit(number)
else:
    try:
        Store.open(root)
    except StoreFull as error:
        assert "Read-only" in str(error) and "mount" in str(error), error
    else:
        raise AssertionError("it opened")
    store = Store.open(root, writable=False)
    assert Results(store).read(f"{4:064x}") == bytes([4]) * 20_000
"""


def test_a_real_full_and_a_real_read_only_file_system(tmp_path):
    fill, look = (
        f"{sys.executable} -c \"$FULL\" '{tmp_path}/store' {what}" for what in ("fill", "look")
    )
    script = f"""
        mount -t tmpfs -o size=400k none '{tmp_path}' 2>/dev/null || exit 77
        {fill} && mount -o remount,ro '{tmp_path}' && {look}
    """
    if not shutil.which("unshare"):
        pytest.skip("no unshare")
    environment = os.environ | {"FULL": FULL, "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], env=environment, capture_output=True, text=True
    )
    if ran.returncode == 77 or "unshare failed" in ran.stderr:
        pytest.skip("may not mount a file system here")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("call", "what"),
    [("link", "hard links"), ("fsync", "fsync failed"), ("replace", "rename")],
)
def test_a_file_system_that_cannot_is_refused_by_name(tmp_path, call, what, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, call, refuse)
    root = tmp_path / "store"
    with pytest.raises(StoreError, match=f"cannot hold a store safely: {what}.*local disk") as info:
        (root / "tmp").mkdir(parents=True)
        Store.open(root)
    assert not isinstance(info.value, StoreFull)
    assert list((root / "tmp").iterdir()) == [] and not (root / "store.json").exists()


def test_a_live_process_keeps_its_temporary_file(store):
    path = store.scratch / "name"
    with running(lambda: path.write_text(temporary_name())):
        name = path.read_text()
        (store.scratch / name).touch()
        Store.open(store.root)
        assert (store.scratch / name).exists()
    Store.open(store.root)
    assert not (store.scratch / name).exists()


def test_json_of_a_job_is_readable_by_a_person(store):
    job = store.create_job("film", SPEC, PLAN)
    assert json.loads((job.path / "spec.json").read_text())["spec"] == SPEC
