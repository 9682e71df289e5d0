"""Films and other files for the person: whole under their name, or absent.

They are written beside it, under a name that says who writes, and moved there once whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.errors import BadJob, StoreFull
from jobs.faults import fault_point
from jobs.files import STRAY_S, machine, process_start, remove, sync_folder

#: Of a file that is not whole: the film's name, hashed; machine, process and start of its writer.
_PART = re.compile(r"\.longtake-[0-9a-f]{12}-([0-9a-f]{12})-(\d+)-(\w+)-[0-9a-f]{8}\.part")


@contextmanager
def whole_or_absent(out: Path, what: str = "--out") -> Iterator[Path]:
    """Yields a name beside ``out``; moves it there once whole and on storage, or removes it.

    ``what`` the person calls it by, in the message of a write that fails.
    """
    part = part_beside(out)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        fault_point("film.before_publish")
        os.replace(part, out)
        fault_point("film.after_publish")
        with contextlib.suppress(OSError):  # some file systems cannot; the file itself is safe
            sync_folder(out.parent)
    except OSError as error:
        reason = f"{out} cannot be written: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreFull(f"{reason}; free some space, or choose another {what}") from error
        raise BadJob(f"{reason}; choose another {what}") from error
    finally:
        part.unlink(missing_ok=True)


def keep_other(out: Path) -> Path | None:
    """Give a file that stands under the name of ``out`` a second, free one: ``film.1.mp4``. It
    stands under both until another file is moved to the first."""
    if not os.path.lexists(out):
        return None
    for number in itertools.count(1):
        kept = out.with_stem(f"{out.stem}.{number}")
        try:
            os.link(out, kept, follow_symlinks=False)
            return kept
        except FileExistsError:
            if kept.exists() and out.exists() and kept.samefile(out):  # by one that was killed then
                return kept
        except OSError:  # a file system without hard links
            if not os.path.lexists(kept):
                copy = part_beside(kept)
                shutil.copy2(out, copy, follow_symlinks=False)
                copy.rename(kept)
                return kept
    return None


def kept_beside(out: Path) -> list[Path]:
    """The files that ``keep_other`` kept of those that stood under the name of ``out``."""
    numbered = re.compile(rf"{re.escape(out.stem)}\.\d+{re.escape(out.suffix)}")
    return [path for path in out.parent.glob(f"*{out.suffix}") if numbered.fullmatch(path.name)]


def part_beside(out: Path) -> Path:
    """A new name in the folder of ``out`` to write its content under, until it is whole.

    What writers of the same file left there who died before that is removed. The name says who
    writes it; it has the same length for every ``out``.
    """
    prefix = f".longtake-{hashlib.sha256(out.name.encode()).hexdigest()[:12]}"
    for path in out.parent.glob(f"{prefix}-*.part"):
        if _is_abandoned(path):
            remove(path)
    pid = os.getpid()
    writer = f"{machine()}-{pid}-{process_start(pid)}"
    return out.with_name(f"{prefix}-{writer}-{uuid.uuid4().hex[:8]}.part")


def _is_abandoned(part: Path) -> bool:
    """Whether the writer is gone. One on another host cannot be asked: then age decides."""
    match = _PART.fullmatch(part.name)
    if match is None:
        return False
    if match[1] == machine():
        return process_start(int(match[2])) != match[3]
    try:
        return time.time() - part.stat(follow_symlinks=False).st_mtime > STRAY_S
    except OSError:
        return False
