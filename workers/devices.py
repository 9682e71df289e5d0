"""The GPUs of this machine, as torch finds them. Cheap to import beside the rest of a worker."""

from __future__ import annotations

import socket

import torch

from jobs.errors import CannotRunHere

#: How torch comes to use the GPU of a machine.
FOR_A_GPU = "install a torch that was built for it (README: on a machine with a GPU)"


def torch_here() -> str:
    """``torch 2.13.0+cpu``"""
    return f"torch {torch.__version__}"


def gpu_count() -> int:
    """How many GPUs torch can use here."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_of(asked: str) -> str:
    """The device that torch knows for ``auto``, ``cpu``, ``cuda`` or one by number, ``cuda:1``.
    Raises CannotRunHere for a GPU that is not there."""
    count = gpu_count()
    if asked == "auto":
        return "cuda:0" if count else "cpu"
    name, _, number = asked.partition(":")
    if name == "cuda" and int(number or 0) >= count:
        few = {0: "no GPU to use", 1: "one GPU, cuda:0"}
        found = few.get(count, f"{count} GPUs, counted from 0")
        raise CannotRunHere(
            f"{socket.gethostname()}: {torch_here()} finds {found}; give --device cpu, or "
            + (FOR_A_GPU if not count else "one of those")
        )
    return "cuda:0" if asked == "cuda" else asked
