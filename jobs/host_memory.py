"""How much of the host's memory this process may use: a container or a batch system may allow it
less than the host has, and kills what takes more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil


class HostMemory(NamedTuple):
    """In bytes; ``available`` is what can still be taken without swapping."""

    total: int
    available: int


class _Files(NamedTuple):
    """Where a version of Linux's control groups tells of memory, below each group's folder."""

    mount: str
    limit: str
    used: str
    reclaimable: tuple[str, ...]  # lines of memory.stat: what is given up before anybody is killed


_V1 = _Files(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)
_V2 = _Files(
    "sys/fs/cgroup", "memory.max", "memory.current",
    ("inactive_file", "active_file", "slab_reclaimable"),
)  # fmt: skip


def host_memory(root: Path = Path("/")) -> HostMemory:
    """Of the host or of the tightest control group around this process, whichever is less."""
    host = psutil.virtual_memory()
    found = [HostMemory(host.total, host.available), *_groups(root)]
    return HostMemory(min(each.total for each in found), min(each.available for each in found))


def _groups(root: Path) -> Iterator[HostMemory]:
    """Of the group that this process is in and all above it, those that have a limit."""
    for line in read_if_there(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        files = _V2 if number == "0" else _V1
        mount = root / files.mount
        group = mount / path.lstrip("/")
        # Inside a container the path may be the host's, of which only the mount itself is seen; a
        # group that the container made for itself is then missed.
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount) and (told := _told(folder, files)):
                yield told


def _told(folder: Path, files: _Files) -> HostMemory | None:
    """None where nothing is limited."""
    limit, used = read_if_there(folder / files.limit), read_if_there(folder / files.used)
    if not (limit.strip().isdigit() and used.strip().isdigit()):
        return None
    stat = dict(line.split() for line in read_if_there(folder / "memory.stat").splitlines())
    cached = sum(int(stat.get(name, 0)) for name in files.reclaimable)
    return HostMemory(int(limit), max(0, int(limit) - int(used) + cached))


def read_if_there(path: Path) -> str:
    """A file that not every system has."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
