"""Writing files that are whole or absent, and knowing whose temporary files they were.

All of the store's durable files go through ``publish``, so its promises are kept in one place:
a reader sees all of a file or none of it, and when ``publish`` returns, the file survives a
power loss. Small JSON records carry a checksum over their own bytes (``seal``, ``unseal``).
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jobs.errors import DamagedRecord, StoreError, StoreFull
from jobs.faults import fault_point

#: A temporary file of another host is swept once it is this old: its writer cannot be asked.
STRAY_S = 24 * 3600.0

_REFUSED = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space or raise the quota",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "mount the file system writable",
    errno.EACCES: "give this user write permission",
    errno.EPERM: "give this user write permission",
}

_TEMPORARY = re.compile(r"\.tmp-([0-9a-f]{12})-(\d+)-(\w+)-[0-9a-f]{12}")
_SEAL = re.compile(rb',"checksum":"([0-9a-f]{64})"\}\n')
_SEAL_BYTES = len(b',"checksum":""}\n') + 64


class FolderGone(StoreError):
    """The folder of a write was moved or deleted meanwhile."""


def replace_file(path: Path, text: str) -> None:
    """A file that can be made again, whole or as it was: of caches and plans, never of a store.
    Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(temporary_name())
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def publish(
    final: Path, data: bytes, *, label: str, how: Literal["create", "replace"], scratch: Path
) -> None:
    """Write ``data`` to ``final``, whole or not at all, and return once it is durable.

    ``create`` never overwrites: FileExistsError if the name is taken. ``scratch`` is a folder of
    the same file system for the temporary file. ``label`` names the write in ``jobs.faults``.

    Raises StoreFull if the file system refuses the write, FolderGone if the folder has vanished,
    StoreError for any other failure. After an error the file may exist, whole, but the caller
    must not call it done.
    """
    temporary = scratch / temporary_name()
    try:
        fault_point(f"{label}.before_write")
        _write_durably(temporary, data, f"{label}.mid_write")
        fault_point(f"{label}.before_publish")
        if how == "create":
            _link(temporary, final)
        else:
            os.replace(temporary, final)
        fault_point(f"{label}.after_publish")
        sync_folder(final.parent)
        fault_point(f"{label}.after_write")
    except FileExistsError:
        raise
    except OSError as error:
        raise refusal(error, final) from error
    finally:
        remove(temporary)


def refusal(error: OSError, path: Path) -> StoreError:
    """What to tell the person of a failed write: where, why, what is kept, and the fix."""
    said = f"cannot write {path}: {error.strerror or error}"
    if error.errno == errno.ENOENT:
        return FolderGone(f"{said}; its folder is gone, or takes no files")
    fix = _REFUSED.get(error.errno or 0)
    if fix is None:
        return StoreError(f"{said}. Finished work is kept. Check the disk, then resume the job")
    return StoreFull(
        f"{said}{_space(path)}. Nothing is half written and finished work is kept. "
        f"To go on: {fix}, or copy the store to another disk; then resume the job"
    )


def make_folder(folder: Path) -> None:
    """Create a folder and its parents so that they survive a power loss."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        try:
            each.mkdir(exist_ok=True)
            sync_folder(each.parent)
        except OSError as error:
            raise refusal(error, each) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_files(folder: Path) -> None:
    """Make all files of a folder, and their names, durable, where others have written them."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(path)
    sync_folder(folder)
    sync_folder(folder.parent)


def read_file(path: Path) -> bytes:
    """All bytes of a regular file; never through a link at its name.

    Raises FileNotFoundError, or StoreError if it exists but cannot be read.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        for _ in range(3):  # whoever had looked its name up before it was moved may write into it
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                break
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # a stray temporary file: the next opening of the store sweeps it


def contained(root: Path, *parts: str) -> Path:
    """``root/parts...``, refused if a link would lead it out of ``root`` (itself resolved)."""
    path = root.joinpath(*parts)
    if not path.resolve().is_relative_to(root):
        raise StoreError(f"{path} leads out of the store {root}; remove that link")
    return path


# -- sealed records -----------------------------------------------------------------------------


def seal(record: Mapping[str, Any]) -> bytes:
    """A JSON object on one line whose last field is the sha256 of all that stands before it."""
    body = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + f',"checksum":"{digest}"}}\n'.encode()


def unseal(data: bytes, path: Path) -> dict[str, Any]:
    """The record in a sealed file. Raises DamagedRecord, naming the file, if any bit differs."""
    body, tail = data[:-_SEAL_BYTES] + b"}", data[-_SEAL_BYTES:]
    match = _SEAL.fullmatch(tail)
    if not match or match[1].decode() != hashlib.sha256(body).hexdigest():
        raise DamagedRecord(f"{path} is damaged: its {len(data)} bytes are not what was written")
    record: dict[str, Any] = json.loads(body)
    return record


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- whose file is it ---------------------------------------------------------------------------


@functools.cache
def machine() -> str:
    """Twelve hex digits that name this boot of this host, as seen from this container.

    Process ids can be compared only between processes with the same machine.
    """
    parts = [socket.gethostname()]
    for read in (_boot, _process_namespace):
        try:
            parts.append(read())
        except OSError:
            parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def process_start(pid: int) -> str | None:
    """When the process with this id started, in a unit of its system's own; None if it is gone.

    With the id it names a process for good: ids are used again, pairs are not. A killed process
    that its parent has not yet reaped is gone.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except ProcessLookupError:
        return None
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _process_start_elsewhere(pid)
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def temporary_name() -> str:
    """A new name that says which process of which machine writes the file."""
    pid = os.getpid()
    return f".tmp-{machine()}-{pid}-{process_start(pid)}-{uuid.uuid4().hex[:12]}"


def sweep(folder: Path) -> None:
    """Remove the temporary files that dead writers left in a folder."""
    for path in folder.glob(".tmp-*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and match[1] == machine():
            stray = process_start(int(match[2])) != match[3]
        else:
            stray = _age_s(path) > STRAY_S
        if stray:
            remove(path)


def _write_durably(path: Path, data: bytes, mid: str) -> None:
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        view, half = memoryview(data), len(data) // 2
        _write(handle, view[:half])
        fault_point(mid)
        _write(handle, view[half:])
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(handle: int, view: memoryview) -> None:
    while view:
        view = view[os.write(handle, view) :]


def _link(temporary: Path, final: Path) -> None:
    try:
        os.link(temporary, final)
    except FileExistsError:
        # On a network file system the reply of a link that worked may be lost and sent again.
        if not os.path.samefile(temporary, final):
            raise


def _space(path: Path) -> str:
    for folder in path.parents:
        if folder.is_dir():
            return f" ({shutil.disk_usage(folder).free / 2**20:.0f} MiB free)"
    return ""


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat(follow_symlinks=False).st_mtime
    except OSError:
        return 0.0


def _boot() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    if boot.exists():
        return boot.read_text().strip()
    import psutil

    return str(int(psutil.boot_time()))


def _process_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def _process_start_elsewhere(pid: int) -> str | None:
    import psutil  # only where there is no /proc

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.0f}"
    except psutil.NoSuchProcess:
        return None
