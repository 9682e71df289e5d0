"""Whether what a command computes in its own process has room here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jobs.accelerations import Accelerations
from jobs.errors import CannotRunHere
from jobs.spec import JobSpec
from orchestrator.placement import fits
from orchestrator.plan import Plan
from orchestrator.sizes import gb

_SMALLER = "make it smaller (--size), cut it into slices (accelerations: slicing in a job file)"


def lossless(spec: JobSpec) -> Accelerations:
    """What a job asks for so that it fits: that stays."""
    return Accelerations(slicing=spec.accelerations.slicing)


def check_room(plan: Plan, device: str, what: str) -> None:
    """Before a weight loads. Raises CannotRunHere with what is missing."""
    from workers.machine import free_bytes

    on_card = device.startswith("cuda")  # encoders without room there go to the processor
    free, needed = free_bytes(device), plan.rendering_bytes if on_card else plan.peak_bytes
    if not fits(free, needed):
        raise CannotRunHere(
            f"{what} needs about {gb(needed)}, {device} has {gb(free)} free: "
            f"{gb(needed - free)} short; {_SMALLER}, or try it where there is more memory"
        )


@contextmanager
def told_to_make_it_smaller(what: str, device: str) -> Iterator[None]:
    """Raises CannotRunHere where ``what`` runs out of memory all the same."""
    from workers.machine import ran_out_of_memory

    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        raise CannotRunHere(
            f"{what} ran out of memory on {device}; {_SMALLER}, or let nothing else use the "
            f"memory ({error})"
        ) from error
