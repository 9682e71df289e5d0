"""Memory that a container or a batch system allows, from trees of files as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from jobs.host_memory import host_memory

GB = 10**9


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _group(folder: str, limit: str, used: int, cached: int) -> dict[str, str]:
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": (
            f"anon 5\ninactive_file {cached - 7}\nactive_file 4\nslab_reclaimable 3\n"
        ),
    }


def test_without_groups_it_is_the_hosts(tmp_path: Path) -> None:
    told = host_memory(tmp_path)
    host = psutil.virtual_memory()
    assert told.total == host.total
    assert told.available == pytest.approx(host.available, rel=0.2)


def test_a_groups_limit_counts_with_its_cached_files_given_up(tmp_path: Path) -> None:
    group = _group("sys/fs/cgroup/slice/job", str(GB), 700 * 10**6, 300 * 10**6)
    root = _write(tmp_path, {"proc/self/cgroup": "0::/slice/job\n"} | group)
    assert host_memory(root) == (GB, 600 * 10**6)


def test_the_tightest_of_the_groups_above_counts(tmp_path: Path) -> None:
    groups = _group("sys/fs/cgroup/slice/job", "max", 10**8, 0)
    groups |= _group("sys/fs/cgroup/slice", str(GB), 9 * 10**8, 0)
    root = _write(tmp_path, {"proc/self/cgroup": "0::/slice/job\n"} | groups)
    assert host_memory(root) == (GB, 10**8)


def test_a_container_that_shows_the_hosts_path_is_told_by_its_mount(tmp_path: Path) -> None:
    told = {"proc/self/cgroup": "0::/docker/abc\n"} | _group("sys/fs/cgroup", str(GB), 2 * GB, 0)
    assert host_memory(_write(tmp_path, told)) == (GB, 0)


def test_version_one(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory/job"
    files = {
        "proc/self/cgroup": "8:pids:/\n4:cpu,memory:/job\n1:cpu:/job\n",
        f"{folder}/memory.limit_in_bytes": f"{GB}\n",
        f"{folder}/memory.usage_in_bytes": f"{4 * 10**8}\n",
        f"{folder}/memory.stat": (
            "inactive_file 1\ntotal_inactive_file 99999999\ntotal_active_file 1\n"
        ),
        # As it is where nothing is limited: more than any host has.
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "5\n",
    }
    assert host_memory(_write(tmp_path, files)) == (GB, 7 * 10**8)
