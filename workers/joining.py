"""How a worker joins a render: find the model on this host, make sure that it is the same one."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from jobs.errors import BadJob, CannotRunHere
from jobs.images import read_image
from jobs.loras import with_loras
from jobs.model_folder import inspect_model, resolve_model
from workers.devices import device_of
from workers.machine import host_name
from workers.setup import WorkerSetup
from workers.worker import Worker


def join(setup: WorkerSetup, identity: str) -> Worker:
    """A worker for this host. ``setup.model`` is as the person named it; ``identity`` is what
    the plan was made for. Raises BadJob or CannotRunHere if this host has no such model, or lacks
    an image."""
    folder = resolve_model(setup.model)
    try:
        found = with_loras(inspect_model(folder), setup.loras)[0].identity
    except BadJob as error:
        raise CannotRunHere(f"{host_name()}: {error}; copy the adapter there again") from None
    if found != identity:
        raise CannotRunHere(
            f"{host_name()} has other files in {folder} than the job was planned with "
            f"({found[:12]} there, {identity[:12]} planned); copy the model there again"
        )
    for image in setup.images:
        try:
            read_image(image)
        except BadJob as error:
            raise CannotRunHere(f"{host_name()}: {error}; copy the image there again") from None
    return Worker(
        replace(setup, model=str(folder), device=device_of(setup.device), log_dir=_log_dir(setup))
    )


def _log_dir(setup: WorkerSetup) -> str | None:
    """A host that does not see the store logs into a folder of its own."""
    if setup.log_dir is None or Path(setup.log_dir).is_dir():
        return setup.log_dir
    return str(Path(tempfile.gettempdir()) / f"longtake-logs-{os.getuid()}")
