"""How a worker joins a render: find the model on this host, make sure that it is the same one."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.errors import BadJob, CannotRunHere
from jobs.images import read_image
from jobs.loras import with_loras
from jobs.model_folder import inspect_model, resolve_model
from jobs.numerics import WorkerProfile
from workers.devices import device_of
from workers.families.loading import release
from workers.machine import free_bytes, host_name, ran_out_of_memory
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


#: A process that was killed may hold its device's memory for a moment longer.
WAITS_S = (2.0, 8.0)


def load(worker: Worker, waits_s: Sequence[float] = WAITS_S) -> WorkerProfile:
    """The profile of a worker, its model loaded. Raises CannotRunHere where the device, after some
    tries, has no memory for it."""
    for wait_s in (*waits_s, None):
        try:
            return worker.profile()
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            if wait_s is None:
                raise CannotRunHere(_too_large(worker.setup, error)) from error
        release(worker.setup.device)
        time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


def _too_large(setup: WorkerSetup, error: Exception) -> str:
    free_gb = free_bytes(setup.device) / 1e9
    return (
        f"{host_name()}: {setup.device} has no memory for the model, with {free_gb:.1f} GB free; "
        f"leave it out, or give a smaller dtype than {setup.dtype} ({error})"
    )


def _log_dir(setup: WorkerSetup) -> str | None:
    """A host that does not see the store logs into a folder of its own."""
    if setup.log_dir is None or Path(setup.log_dir).is_dir():
        return setup.log_dir
    return str(Path(tempfile.gettempdir()) / f"longtake-logs-{os.getuid()}")
