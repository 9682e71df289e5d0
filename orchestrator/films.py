"""Where a job's film is. Another job may have written its own under the same name since: then this
job's is kept beside it. The films themselves tell whose they are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import av

from jobs.store import JobFolder
from orchestrator import inspect_job
from workers.parts import kept_beside


@dataclass(frozen=True, slots=True)
class Film:
    """``name`` is where it was last to be written, ``path`` where it is, if it is there at all.
    None: not known. ``replaced_by`` is the job whose film has the name now; "" if no other's."""

    name: Path | None
    path: Path | None
    replaced_by: str = ""


def find_film(folder: JobFolder) -> Film:
    """The film of a job. A file that does not tell whose film it is counts as the job's own."""
    name = inspect_job.film_path(folder)
    owner = _job_of(name) if name is not None and name.is_file() else ""
    if name is None or owner in ("", folder.id):
        return Film(name, name if name is not None and name.is_file() else None)
    own = (path for path in kept_beside(name) if _job_of(path) == folder.id)
    newest = max(own, key=lambda path: path.stat().st_mtime, default=None)
    return Film(name, newest, replaced_by=owner)


def _job_of(film: Path) -> str:
    """The job that a file says it is the film of; "" if it says none, or cannot be read."""
    try:
        with av.open(str(film)) as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
        return str(json.loads(tags["comment"])["job"])
    except (OSError, av.error.FFmpegError, ValueError, KeyError, TypeError):
        return ""
