"""The durable store: one folder that holds every job, its plan, its journal and all results.

store.json                       what this folder is, and its format
remove.lock                      held by the one process that removes a job
jobs/<id>/spec.json, plan.json   what was asked for, and how it is laid out; never rewritten
jobs/<id>/journal/, snapshots/   what happened, in order (jobs.journal)
jobs/<id>/lease.json             which driver owns the job now (jobs.lease)
jobs/<id>/logs/                  for workers' logs; not part of the record
results/<aa>/<recipe>/           what was computed, shared where recipes are equal (jobs.results)
damaged/                         results found damaged, set aside, never deleted
tmp/                             files being written
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from jobs.errors import BadJob, DamagedRecord, NoStore, StoreError
from jobs.faults import fault_point
from jobs.files import (
    contained,
    make_folder,
    publish,
    read_file,
    refusal,
    remove,
    seal,
    sweep,
    sync_folder,
    temporary_name,
    unseal,
)

FORMAT = 1

#: How many jobs are named where one is not found.
SHOWN_IDS = 3

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FOLDERS = ("jobs", "results", "damaged", "tmp")

#: What a folder may hold that is to become a store: another process may be creating the same.
_OWN = (*_FOLDERS, "store.json", "remove.lock", "lost+found")


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job. It was created whole, so spec and plan are always there."""

    id: str
    path: Path
    scratch: Path  # for temporary files, on the same file system

    @property
    def store(self) -> Path:
        """The folder of the store that it lies in."""
        return self.path.parents[1]

    def spec(self) -> dict[str, Any]:
        """What the person asked for. Raises DamagedRecord."""
        return self._record("spec")

    def plan(self) -> dict[str, Any]:
        """How the film is laid out. Raises DamagedRecord."""
        return self._record("plan")

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def journal_path(self) -> Path:
        return self.path / "journal"

    @property
    def snapshots_path(self) -> Path:
        return self.path / "snapshots"

    def created(self) -> datetime.datetime:
        """When the job was submitted, by the store's clock, in local time."""
        spec = self.path / "spec.json"
        written = (spec if spec.exists() else self.path).stat()
        return datetime.datetime.fromtimestamp(written.st_mtime).astimezone()

    @property
    def lease_path(self) -> Path:
        return self.path / "lease.json"

    def _record(self, name: str) -> dict[str, Any]:
        path = self.path / f"{name}.json"
        try:
            record: dict[str, Any] = unseal(read_file(path), path)[name]
        except FileNotFoundError:
            raise DamagedRecord(f"{path} is missing; submit the job again") from None
        return record


@dataclass(frozen=True)
class Store:
    """An open store. Plain data: it can be sent to another process of the same host."""

    root: Path

    @classmethod
    def open(cls, uri: str | Path, *, create: bool = True, writable: bool = True) -> Store:
        """Open the store at a path or file:// URI, after trying what its file system can do.

        ``writable=False`` only reads: it works on a full disk or a read-only mount.

        Raises StoreError for a place that cannot hold a store safely, a store of a newer format,
        StoreFull if the place cannot be written; without ``create``, NoStore if there is none.
        """
        root = _root(uri)
        if root.exists() and not root.is_dir():
            raise StoreError(f"{root} is a file; give a folder for the store")
        store = cls(root)
        if not store._check_format():
            if not (create and writable):
                raise NoStore(
                    f"there is no store at {root}; check the path, or render a film into it"
                )
            store._create()
        if writable:
            store._prepare()
        return store

    @property
    def uri(self) -> str:
        return self.root.as_uri()

    @property
    def scratch(self) -> Path:
        return self.root / "tmp"

    @property
    def remove_lock(self) -> Path:
        return self.root / "remove.lock"

    def jobs(self) -> list[str]:
        """The ids of all jobs, sorted."""
        folder = self.root / "jobs"
        if not folder.is_dir():
            return []
        return sorted(each.name for each in folder.iterdir() if _is_job(each))

    def job(self, job_id: str) -> JobFolder:
        """The folder of a job. Raises BadJob, with ids that exist, if there is no such job."""
        folder = self._folder(job_id)
        if not _is_job(folder):
            ids = self.jobs()
            known, more = ", ".join(ids[:SHOWN_IDS]), len(ids) - SHOWN_IDS
            known += f" and {more} more; `longtake ls` lists them" if more > 0 else ""
            raise BadJob(f"no job {job_id!r} in {self.root}; there are: {known or 'none'}")
        return JobFolder(job_id, folder, self.scratch)

    def create_job(
        self, job_id: str, spec: Mapping[str, Any], plan: Mapping[str, Any]
    ) -> JobFolder:
        """Record a new job, whole or not at all. The same job again is the same folder.

        Raises BadJob if the id is taken by a job with another spec or plan.
        """
        folder = self._folder(job_id)
        records = {"plan": seal({"plan": plan}), "spec": seal({"spec": spec})}
        building = self.scratch / temporary_name()
        try:
            self._build(building, records)
            fault_point("job.before_publish")
            if not _is_job(folder):
                _rename_new(building, folder)
            fault_point("job.after_publish")
            sync_folder(folder.parent)
        except OSError as error:
            raise refusal(error, folder) from error
        finally:
            remove(building)
        return self._same_job(job_id, records)

    def remove_job(self, folder: JobFolder) -> None:
        """Remove a job's folder, whole or not at all; results are not touched. Its lease must be
        held. Raises StoreError."""
        doomed = self.scratch / temporary_name()
        try:
            os.rename(folder.path, doomed)
            sync_folder(folder.path.parent)
        except OSError as error:
            raise refusal(error, folder.path) from error
        remove(doomed)

    def _build(self, building: Path, records: Mapping[str, bytes]) -> None:
        for name in ("logs", "journal", "snapshots"):
            make_folder(building / name)
        for name, data in records.items():
            with open(building / f"{name}.json", "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(building)

    def _same_job(self, job_id: str, records: Mapping[str, bytes]) -> JobFolder:
        job = self.job(job_id)
        for name, data in records.items():
            if read_file(job.path / f"{name}.json") != data:
                raise BadJob(
                    f"job {job_id!r} exists in {self.root} with another {name}; "
                    f"resume that one, or submit this one under another id"
                )
        return job

    def _folder(self, job_id: str) -> Path:
        if not _JOB_ID.fullmatch(job_id):
            raise BadJob(
                f"{job_id!r} cannot name a job; valid: up to 100 letters, digits, '.', '_' and "
                f"'-', starting with a letter or digit"
            )
        return contained(self.root, "jobs", job_id)

    def _check_format(self) -> bool:
        """Whether there is a store. Raises StoreError if this version cannot read it."""
        path = self.root / "store.json"
        try:
            data = read_file(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            found = json.loads(data)["format"]
        except (ValueError, KeyError, TypeError):
            raise DamagedRecord(f"{path} is damaged; it should be {_identity()!r}") from None
        if not isinstance(found, int) or found == FORMAT:
            unseal(data, path)
        if found != FORMAT:
            raise StoreError(
                f"{self.root} has store format {found}, and this Longtake reads format {FORMAT}; "
                f"upgrade Longtake (pip install --upgrade longtake) or use another store"
            )
        return True

    def _create(self) -> None:
        make_folder(self.root)
        strangers = [
            each.name
            for each in self.root.iterdir()
            if each.name not in _OWN and not each.name.startswith(".")
        ]
        if strangers:
            raise StoreError(
                f"{self.root} holds other files ({', '.join(sorted(strangers)[:3])}), so no store "
                f"is made there; name a new or empty folder"
            )
        make_folder(self.scratch)
        _probe(self.scratch)
        try:
            publish(
                self.root / "store.json",
                _identity(),
                label="store",
                how="create",
                scratch=self.scratch,
            )
        except FileExistsError:
            self._check_format()  # another process made the same store meanwhile

    def _prepare(self) -> None:
        for name in _FOLDERS:
            make_folder(contained(self.root, name))
        _probe(self.scratch)
        sweep(self.scratch)
        for job_id in self.jobs():
            sweep(self.root / "jobs" / job_id)


def _root(uri: str | Path) -> Path:
    parts = urlsplit(str(uri))
    if not parts.scheme:
        return Path(uri).expanduser().resolve()
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path:
        raise StoreError(
            f"cannot open a store at {uri}; valid: a folder (renders/) or file:///path/of/folder"
        )
    return Path(unquote(parts.path)).resolve()


def _identity() -> bytes:
    return seal({"format": FORMAT, "what": "Longtake store"})


def _is_job(folder: Path) -> bool:
    return os.path.isfile(folder / "spec.json")  # also False where another user's may not be read


def _rename_new(building: Path, folder: Path) -> None:
    try:
        os.rename(building, folder)
    except OSError:
        if not _is_job(folder):  # else another process made a job with this id
            raise


def _probe(scratch: Path) -> None:
    """Try each operation that the store's promises rest on.

    Raises StoreFull if nothing can be written, StoreError naming the first that does not work.
    """
    one, two, three = (scratch / temporary_name() for _ in range(3))
    try:
        with open(one, "xb") as file:
            file.write(b"probe")
            file.flush()
            with _needed("fsync", scratch):
                os.fsync(file.fileno())
            with _needed("file locks", scratch):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with _needed("hard links", scratch):
            os.link(one, two)
        with _needed("exclusive creation", scratch):
            _must_exist(one, two)
        with _needed("rename", scratch):
            os.replace(two, three)
        with _needed("fsync of folders", scratch):
            sync_folder(scratch)
    except OSError as error:
        raise refusal(error, scratch) from error
    finally:
        for path in (one, two, three):
            remove(path)


@contextmanager
def _needed(what: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreError(
            f"the file system of {folder} cannot hold a store safely: {what} failed "
            f"({error.strerror or error}); use a local disk (ext4, xfs, btrfs, apfs) or NFS 4"
        ) from error


def _must_exist(one: Path, two: Path) -> None:
    try:
        os.link(one, two)
    except FileExistsError:
        return
    raise OSError(errno.ENOTSUP, "a name that was taken was given again")
