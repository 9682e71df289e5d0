"""The journal of a job: what happened, in order, in small files that are never rewritten.

``journal/<sequence number>.json`` each hold a batch of records and the hash of the file before,
so a lost, foreign or altered file is found. A driver begins an epoch before it appends. Whoever
creates the next number goes on; the other learns that it has been replaced.

Numbers are never used twice, even when damaged files were set aside, so a driver that was
replaced can never slip a file in. ``snapshots/<number>.json`` hold the folded records up to a
number. They only save time: one that is missing or damaged is passed over.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.errors import DamagedRecord, StoreConflict, StoreError
from jobs.files import (
    make_folder,
    publish,
    read_file,
    refusal,
    remove,
    seal,
    sync_folder,
    unseal,
)
from jobs.store import JobFolder

log = logging.getLogger(__name__)

FORMAT = 1

Record = dict[str, Any]

#: Folds records into fewer that mean the same; ``fold(fold(a) + b) == fold(a + b)``.
Fold = Callable[[list[Record]], list[Record]]

_ENTRY = re.compile(r"(\d{20})\.json")
_DAMAGED = re.compile(r"(\d{20})\.json\.damaged")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of the journal."""

    seq: int
    epoch: int
    writer: str
    instance: str  # of the writer's Journal object: tells our own file from another driver's
    prev_seq: int  # -1 for the first file
    prev: str  # sha256 of the file before
    time_s: float  # seconds since 1970, by the writer's clock
    records: list[Record]


@dataclass(frozen=True, kw_only=True)
class _Tip:
    """The end of what has been read."""

    seq: int = -1
    epoch: int = 0
    sha256: str = ""


@dataclass
class _Reading:
    """What could be read, and why it ended early, if it did."""

    tip: _Tip = field(default_factory=_Tip)
    records: list[Record] = field(default_factory=list)
    damage: DamagedRecord | None = None


def latest_by_key(records: list[Record]) -> list[Record]:
    """Keep the last record of each ``(type, key)``, and all records without a key, in order."""
    kept: dict[Any, Record] = {}
    for number, record in enumerate(records):
        key = (record.get("type"), record["key"]) if "key" in record else number
        kept.pop(key, None)
        kept[key] = record
    return list(kept.values())


class Journal:
    """The journal of one job, read, and after ``begin_epoch`` also written."""

    def __init__(
        self,
        folder: JobFolder,
        writer: str,
        *,
        fold: Fold = latest_by_key,
        snapshot_every: int = 256,
    ) -> None:
        self._folder = folder
        self._writer = writer
        self._fold = fold
        self._snapshot_every = snapshot_every
        self._instance = uuid.uuid4().hex
        self._tip = _Tip()
        self._records: list[Record] = []
        self._begun = False
        self._repair = False
        self._next = 0
        #: Damaged files that this object has set aside.
        self.set_aside: list[Path] = []

    @classmethod
    def open(
        cls,
        folder: JobFolder,
        writer: str,
        *,
        repair: bool = False,
        fold: Fold = latest_by_key,
        snapshot_every: int = 256,
    ) -> Journal:
        """Read a job's journal. Writes nothing, unless there is damage and ``repair`` is asked.

        With ``repair``, which only the job's driver may ask, a damaged file and all after it are
        renamed ``*.damaged`` and listed in ``set_aside``. Without it they raise DamagedRecord.
        """
        journal = cls(folder, writer, fold=fold, snapshot_every=snapshot_every)
        journal._repair = repair
        journal._read()
        return journal

    @property
    def epoch(self) -> int:
        """The last epoch that was begun, by anyone; 0 if none was."""
        return self._tip.epoch

    def records(self) -> list[Record]:
        """All records, folded. After ``begin_epoch`` none by an earlier driver can follow."""
        self._records = self._fold(self._records)
        return list(self._records)

    def entries(self) -> Iterator[Entry]:
        """Every file from the first, each checked. Raises DamagedRecord at the first damage."""
        tip = _Tip()
        for seq in self._numbers():
            entry, tip = self._load(seq, tip)
            yield entry

    def begin_epoch(self) -> int:
        """Become the job's only writer, and return the new epoch's number.

        Whatever another driver has appended meanwhile is read first.
        """
        while True:
            epoch = self._tip.epoch + 1 + self._burnt_epochs()
            record = {"type": "epoch", "key": epoch, "epoch": epoch, "writer": self._writer}
            if self._try_append([record], epoch):
                self._begun = True
                return epoch
            self._read()

    def append(self, records: Sequence[Record]) -> int:
        """Write one file with these records, durable on return; returns its number.

        Raises StoreConflict if another driver has taken over the job, StoreFull or StoreError if
        the write failed; then it may be called again.
        """
        if not self._begun:
            raise RuntimeError("begin_epoch() comes before append()")
        while not self._try_append(list(records), self._tip.epoch):
            if not self._adopt_own():
                self._begun = False
                raise StoreConflict(
                    f"another driver has taken over job {self._folder.id}: "
                    f"{self._path(self._next)} is not ours. This one stops; the job goes on there"
                )
        if self._tip.seq % self._snapshot_every == self._snapshot_every - 1:
            self._write_snapshot()
        return self._tip.seq

    # -- writing ----------------------------------------------------------------------------

    def _try_append(self, records: list[Record], epoch: int) -> bool:
        entry = Entry(
            seq=self._next,
            epoch=epoch,
            writer=self._writer,
            instance=self._instance,
            prev_seq=self._tip.seq,
            prev=self._tip.sha256,
            time_s=time.time(),
            records=json.loads(json.dumps(records)),  # as a reader will see them
        )
        data = seal({"format": FORMAT, **vars(entry)})
        make_folder(self._folder.journal_path)
        path = self._path(entry.seq)
        try:
            publish(path, data, label="journal", how="create", scratch=self._folder.scratch)
        except FileExistsError:
            return False
        self._advance(entry, data)
        return True

    def _adopt_own(self) -> bool:
        """Take in a file of ours whose write seemed to fail after it had got its name."""
        try:
            entry, tip = self._load(self._next, self._tip)
            if entry.instance != self._instance:
                return False
            sync_folder(self._folder.journal_path)
        except DamagedRecord:
            return False
        except OSError as error:
            raise refusal(error, self._path(self._next)) from error
        self._records.extend(entry.records)
        self._tip, self._next = tip, tip.seq + 1
        return True

    def _advance(self, entry: Entry, data: bytes) -> None:
        self._records.extend(entry.records)
        digest = hashlib.sha256(data).hexdigest()
        self._tip = _Tip(seq=entry.seq, epoch=entry.epoch, sha256=digest)
        self._next = entry.seq + 1

    def _write_snapshot(self) -> None:
        record = {"format": FORMAT, **vars(self._tip), "records": self.records()}
        path = self._folder.snapshots_path / f"{self._tip.seq:020d}.json"
        try:
            make_folder(path.parent)
            publish(
                path, seal(record), label="snapshot", how="create", scratch=self._folder.scratch
            )
            for old in self._snapshots()[2:]:
                remove(old)
        except (StoreError, FileExistsError) as error:
            log.warning("no snapshot of the journal: %s", error)

    # -- reading ----------------------------------------------------------------------------

    def _read(self) -> None:
        reading = self._read_from_snapshot()
        if reading.damage:  # or the files were listed while one was being created
            reading = self._read_from_snapshot()
        if reading.damage and not self._repair:
            raise reading.damage
        if reading.damage:
            self._set_aside_after(reading.tip.seq)
        self._tip, self._records = reading.tip, reading.records
        burnt = self._all_numbers(self._folder.journal_path, _DAMAGED)
        self._next = max([reading.tip.seq, *burnt]) + 1

    def _read_from_snapshot(self) -> _Reading:
        numbers = self._numbers()
        for path in self._snapshots():
            base = self._load_snapshot(path)
            if base and self._goes_on(base.tip, numbers):
                return self._read_after(base, numbers)
        return self._read_after(_Reading(), numbers)

    def _goes_on(self, tip: _Tip, numbers: list[int]) -> bool:
        """Whether the first file after a snapshot continues it, as far as can be told."""
        after = next((seq for seq in numbers if seq > tip.seq), None)
        if after is None:
            return True
        try:
            entry = self._load_unchained(after)[0]
        except DamagedRecord:
            return True
        return (entry.prev_seq, entry.prev) == (tip.seq, tip.sha256)

    def _read_after(self, reading: _Reading, numbers: list[int]) -> _Reading:
        for seq in numbers:
            if seq <= reading.tip.seq:
                continue
            try:
                entry, reading.tip = self._load(seq, reading.tip)
            except DamagedRecord as damage:
                reading.damage = damage
                break
            reading.records.extend(entry.records)
        return reading

    def _load(self, seq: int, tip: _Tip) -> tuple[Entry, _Tip]:
        entry, digest = self._load_unchained(seq)
        if (entry.prev_seq, entry.prev) != (tip.seq, tip.sha256):
            lost = self._path(entry.prev_seq)
            what = "is missing" if entry.prev_seq != tip.seq else "is not the one it followed"
            raise DamagedRecord(f"{self._path(seq)} follows {lost}, which {what}")
        if entry.seq != seq or entry.epoch < tip.epoch:
            raise DamagedRecord(f"{self._path(seq)} holds another file's content")
        return entry, _Tip(seq=seq, epoch=entry.epoch, sha256=digest)

    def _load_unchained(self, seq: int) -> tuple[Entry, str]:
        path = self._path(seq)
        try:
            data = read_file(path)
        except FileNotFoundError:
            raise DamagedRecord(f"{path} is missing") from None
        found = unseal(data, path)
        if found.pop("format", None) != FORMAT:
            raise StoreError(f"{path} was written by another version of Longtake; upgrade it")
        try:
            return Entry(**found), hashlib.sha256(data).hexdigest()
        except TypeError as error:
            raise DamagedRecord(f"{path} is not a file of a journal: {error}") from error

    def _load_snapshot(self, path: Path) -> _Reading | None:
        try:
            found = unseal(read_file(path), path)
            if found["format"] != FORMAT:
                return None
            tip = _Tip(seq=found["seq"], epoch=found["epoch"], sha256=found["sha256"])
            return _Reading(tip=tip, records=found["records"])
        except (StoreError, FileNotFoundError, KeyError) as error:
            log.warning("snapshot passed over: %s", error)
            return None

    def _set_aside_after(self, seq: int) -> None:
        for number in self._numbers():
            if number > seq:
                path = self._path(number)
                self.set_aside.append(path.replace(path.with_name(f"{path.name}.damaged")))
        sync_folder(self._folder.journal_path)

    def _burnt_epochs(self) -> int:
        """At least as many as were begun in files set aside: epoch numbers are not reused."""
        return self._next - 1 - self._tip.seq

    def _path(self, seq: int) -> Path:
        return self._folder.journal_path / f"{seq:020d}.json"

    def _numbers(self) -> list[int]:
        return self._all_numbers(self._folder.journal_path)

    def _snapshots(self) -> list[Path]:
        folder = self._folder.snapshots_path
        numbers = self._all_numbers(folder)
        return [folder / f"{number:020d}.json" for number in reversed(numbers)]

    def _all_numbers(self, folder: Path, pattern: re.Pattern[str] = _ENTRY) -> list[int]:
        try:
            matches = [pattern.fullmatch(each.name) for each in folder.iterdir()]
        except FileNotFoundError:
            return []
        return sorted(int(match[1]) for match in matches if match)
