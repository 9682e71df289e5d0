"""Finished work, found by what it is: ``results/<aa>/<recipe>/``, shared by all jobs.

A recipe is the sha256 of all that a result depends on, so a result that exists need not be
computed again by anyone. (What a job keeps to itself has a recipe that names the job.) A folder
holds data files, each under a name of its own, and one ``record.json`` that names one of them into
truth. The data is durable before its record is written; the first record wins.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.errors import DamagedRecord, StoreError
from jobs.faults import fault_point
from jobs.files import (
    FolderGone,
    contained,
    make_folder,
    publish,
    read_file,
    refusal,
    remove,
    seal,
    sync_folder,
    temporary_name,
    unseal,
)
from jobs.store import Store

log = logging.getLogger(__name__)

FORMAT = 1

_RECIPE = re.compile(r"[0-9a-f]{64}")
_EXT = re.compile(r"[a-z0-9]{1,10}")
_FILE = re.compile(r"[0-9a-f]{32}\.[a-z0-9]{1,10}")


@dataclass(frozen=True, kw_only=True)
class ResultRecord:
    """What is known of a finished result."""

    recipe: str
    kind: str  # of unit: "encode", "step", "decode", ...
    attempt: str  # unique; of the writer that won
    sha256: str  # of the data
    length: int  # bytes of the data
    numerics: str  # digest of the writer's numerics class
    writer: str
    created_s: float  # seconds since 1970, by the writer's clock
    ext: str = "bin"  # the data file is <attempt>.<ext>
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def file(self) -> str:
        return f"{self.attempt}.{self.ext}"


class Results:
    """The results of a store. Any number of processes may use it at once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.disagreements: list[str] = []  # of writers of one numerics class, as sentences

    def commit(
        self,
        recipe: str,
        data: bytes,
        *,
        kind: str,
        numerics: str,
        writer: str,
        extra: Mapping[str, Any] | None = None,
        ext: str = "bin",
    ) -> ResultRecord:
        """Store a result and return the record that holds: the first that anyone committed.

        When this returns, the record and its data are durable and were whole. A damaged result
        in the way is set aside, with a warning. Raises StoreError, StoreFull.
        """
        if not _EXT.fullmatch(ext):
            raise ValueError(f"{ext!r} cannot end a file name; valid: up to 10 of a-z, 0-9")
        mine = ResultRecord(
            recipe=recipe,
            kind=kind,
            attempt="",
            sha256=hashlib.sha256(data).hexdigest(),
            length=len(data),
            numerics=numerics,
            writer=writer,
            created_s=time.time(),
            ext=ext,
            extra=dict(extra or {}),
        )
        for _ in range(8):
            record = self._try_commit(replace(mine, attempt=uuid.uuid4().hex), data)
            if record is not None:
                return record
        raise StoreError(
            f"result {recipe} in {self._folder(recipe)} could not be committed: others kept "
            f"moving its folder; make sure that no other process deletes results, then try again"
        )

    def lookup(self, recipe: str) -> ResultRecord | None:
        """The record of a result, or None if there is none. Does not read the data.

        Raises DamagedRecord.
        """
        path = self._folder(recipe) / "record.json"
        try:
            data = read_file(path)
        except FileNotFoundError:
            return None
        return _record(unseal(data, path), recipe, path)

    def read(self, recipe: str) -> bytes:
        """The data of a result, checked against its record.

        Raises DamagedRecord, naming the file, if it is not what was written; StoreError if there
        is no such result.
        """
        return self._checked(self._known(recipe))

    def path(self, recipe: str) -> Path:
        """The data file of a result, unchecked. Raises like ``lookup``, and StoreError if there
        is no such result."""
        record = self._known(recipe)
        return contained(self._folder(recipe), record.file)

    def quarantine(self, recipe: str, *, force: bool = False) -> Path | None:
        """Move a damaged result to ``damaged/``, so that it can be computed again.

        Returns where it is now. A result that is whole stays (None), as when another process has
        mended it already, unless ``force``.
        """
        if not force and self._is_whole_or_absent(recipe):
            return None
        aside = self._store.root / "damaged" / f"{recipe}.{uuid.uuid4().hex[:12]}"
        moved = self._move(
            recipe, aside, before="result.before_quarantine", after="result.after_quarantine"
        )
        return aside if moved else None

    def delete(self, recipe: str) -> None:
        """Delete a result, if there is one. Killed anywhere, it leaves all of it or nothing."""
        doomed = self._store.scratch / temporary_name()
        self._move(recipe, doomed, before="result.before_delete", after="result.after_delete")
        remove(doomed)

    def _folder(self, recipe: str) -> Path:
        if not _RECIPE.fullmatch(recipe):
            raise StoreError(f"{recipe!r} is not a recipe; valid: 64 hex digits, in lower case")
        return contained(self._store.root, "results", recipe[:2], recipe)

    def _try_commit(self, mine: ResultRecord, data: bytes) -> ResultRecord | None:
        """None if the folder was moved away meanwhile, or has just been cleared of damage."""
        folder = self._folder(mine.recipe)
        try:
            make_folder(folder)
            self._publish(folder / mine.file, data, label="data")
            self._publish(folder / "record.json", _sealed(mine), label="result")
        except FolderGone:
            return None
        except FileExistsError:
            remove(folder / mine.file)
            return self._winner(mine)
        if not (folder / mine.file).exists():  # the folder was moved, then made anew by others
            self.quarantine(mine.recipe)
            return None
        self._remove_others(folder, mine)
        return mine

    def _publish(self, path: Path, data: bytes, *, label: str) -> None:
        publish(path, data, label=label, how="create", scratch=self._store.scratch)

    def _winner(self, mine: ResultRecord) -> ResultRecord | None:
        """The record that was there first; None if that result is damaged and now set aside."""
        try:
            record = self.lookup(mine.recipe)
            if record is None:
                return None
            self._checked(record)
        except FolderGone:
            return None
        except DamagedRecord as error:
            log.warning("%s; set aside at %s", error, self.quarantine(mine.recipe))
            return None
        self._sync(self._folder(mine.recipe))
        if record.numerics == mine.numerics and record.sha256 != mine.sha256:
            self.disagreements.append(
                f"result {mine.recipe}: {record.writer} and {mine.writer} disagree, though both "
                f"have numerics {mine.numerics}; kept the first. One of them computes wrongly, or "
                "began with what another class had computed"
            )
        return record

    def _known(self, recipe: str) -> ResultRecord:
        record = self.lookup(recipe)
        if record is None:
            raise StoreError(
                f"no result {recipe} in {self._store.root}: it was never finished, or was deleted; "
                f"resume the job to compute it"
            )
        return record

    def _checked(self, record: ResultRecord) -> bytes:
        path = contained(self._folder(record.recipe), record.file)
        try:
            data = read_file(path)
        except FileNotFoundError:
            if self.lookup(record.recipe) != record:
                raise FolderGone(f"{path} was deleted meanwhile; resume the job") from None
            raise DamagedRecord(f"{path} is missing, but its record is there") from None
        if len(data) != record.length:
            raise DamagedRecord(f"{path} has {len(data)} bytes; its record says {record.length}")
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise DamagedRecord(f"{path} is damaged: its sha256 is not the one in its record")
        return data

    def _is_whole_or_absent(self, recipe: str) -> bool:
        try:
            record = self.lookup(recipe)
            if record is not None:
                self._checked(record)
        except FolderGone:
            return True
        except DamagedRecord:
            return False
        return True

    def _move(self, recipe: str, to: Path, *, before: str, after: str) -> bool:
        folder = self._folder(recipe)
        try:
            fault_point(before)
            os.rename(folder, to)
            fault_point(after)
            self._sync(folder.parent)
            self._sync(to.parent)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise refusal(error, folder) from error
        return True

    def _sync(self, folder: Path) -> None:
        try:
            sync_folder(folder)
        except FileNotFoundError:
            return  # deleted meanwhile; there is nothing left to keep
        except OSError as error:
            raise refusal(error, folder) from error

    def _remove_others(self, folder: Path, mine: ResultRecord) -> None:
        """Data that writers left who died before their record, or are about to lose."""
        try:
            names = os.listdir(folder)
        except OSError:
            return
        for name in names:
            if _FILE.fullmatch(name) and name != mine.file:
                remove(folder / name)


def _sealed(record: ResultRecord) -> bytes:
    return seal({"format": FORMAT, **asdict(record)})


def _record(found: dict[str, Any], recipe: str, path: Path) -> ResultRecord:
    if found.pop("format", None) != FORMAT:
        raise StoreError(f"{path} was written by another version of Longtake; upgrade Longtake")
    try:
        record = ResultRecord(**found)
    except TypeError as error:
        raise DamagedRecord(f"{path} is not the record of a result: {error}") from error
    if record.recipe != recipe or not _FILE.fullmatch(record.file):
        raise DamagedRecord(f"{path} is the record of another result, {record.recipe}")
    return record
