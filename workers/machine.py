"""What a worker knows of the machine it runs on: flags, memory, numerics class."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import resource
import socket
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import av
import diffusers
import numpy
import psutil
import torch
import transformers
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from jobs.host_memory import host_memory, read_if_there
from jobs.numerics import NumericsClass
from workers.quiet import quiet_libraries
from workers.setup import WorkerSetup


def configure(setup: WorkerSetup) -> None:
    """Set the process-wide switches that a result's bits depend on."""
    torch.set_num_threads(setup.threads)
    choose_kernels(deterministic=setup.deterministic)
    quiet_libraries()


def choose_kernels(*, deterministic: bool = True) -> None:
    """As a worker does: what is calibrated goes by the same arithmetic as what renders."""
    if deterministic:
        # Read when cuBLAS starts, so it must stand before the first use of the device.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = False
    # As torch has them by itself, whatever the process had before: convolutions in float32 multiply
    # in TF32 on GPUs that have it, as in diffusers' pipelines, and products of matrices do not.
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = False
    # Poisons fresh memory with NaN: for finding bugs; a result never depends on it.
    torch.utils.deterministic.fill_uninitialized_memory = False


def numerics_class(setup: WorkerSetup) -> NumericsClass:
    """As found on the device, not as asked for."""
    on_gpu = torch.device(setup.device).type == "cuda"
    return NumericsClass(
        device=device_name(setup.device),
        capability=_gpu_capability(setup.device) if on_gpu else _cpu_capability(),
        dtype=setup.dtype,
        torch=str(torch.__version__),  # plain: its own class would import torch where it is read
        diffusers=str(diffusers.__version__),
        transformers=str(transformers.__version__),
        numpy=numpy.__version__,
        av=av.__version__,
        driver=_gpu_driver() if on_gpu else "",
        peft=importlib.metadata.version("peft") if setup.loras else "",
        images=_image_libraries() if setup.images else "",
        attention=_AttentionBackendRegistry.get_active_backend()[0].value,
        slices=(sliced.slices or 1) if (sliced := setup.accelerations.slicing) else 1,
        threads=torch.get_num_threads(),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def cores() -> int:
    """That this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextlib.contextmanager
def all_cores() -> Iterator[None]:
    """For what is no worker's usual work. Its results are of a class with so many threads."""
    usual = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def device_name(device: str) -> str:
    on_gpu = torch.device(device).type == "cuda"
    return torch.cuda.get_device_name(device) if on_gpu else f"cpu: {_cpu_name()}"


def _image_libraries() -> str:
    """``pillow 13.0.0``; where torchvision is installed, transformers prepares images with it."""
    found = [f"pillow {importlib.metadata.version('pillow')}"]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found.append(f"torchvision {importlib.metadata.version('torchvision')}")
    return ", ".join(found)


def _gpu_capability(device: str) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _gpu_driver() -> str:
    """``cuda 12.8, cudnn 91002, driver 570.86.15``"""
    found = re.search(r"\s(\d+(?:\.\d+)+)\s", read_if_there(Path("/proc/driver/nvidia/version")))
    driver = found[1] if found else "unknown"
    return f"cuda {torch.version.cuda}, cudnn {torch.backends.cudnn.version()}, driver {driver}"


@cache
def _cpu_name() -> str:
    named = re.search(
        r"^model name\s*:\s*(.+)$", read_if_there(Path("/proc/cpuinfo")), re.MULTILINE
    )
    return named[1].strip() if named else platform.processor() or platform.machine()


@cache
def _cpu_capability() -> str:
    """``AVX512 amx_bf16 avx512_bf16``: which kernels torch takes, and the units for reduced
    precision, which oneDNN uses where they are found."""
    flags = re.search(
        r"^(?:flags|Features)\s*:(.*)$", read_if_there(Path("/proc/cpuinfo")), re.MULTILINE
    )
    units = [
        flag
        for flag in sorted(set(flags[1].split() if flags else ()))
        if flag.startswith("amx_") or flag.endswith(("bf16", "fp16", "_vnni", "sve", "i8mm"))
    ]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *units])


def free_bytes(device: str) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return host_memory().available


def held_bytes(device: str) -> int:
    """What this process holds: of the allocator on a GPU, resident memory on a processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def peak_bytes(device: str) -> int:
    """The most that this process has held so far, as ``held_bytes`` counts."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    told = re.search(r"^VmHWM:\s*(\d+) kB$", read_if_there(Path("/proc/self/status")), re.MULTILINE)
    if told:
        return int(told[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def synchronise(device: str) -> None:
    """Wait until the device has finished what was queued."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


#: What CUDA's libraries, and torch on a CPU, say in a RuntimeError of no class of its own.
_RAN_OUT = re.compile(
    r"CU[A-Z]+_STATUS_ALLOC_FAILED|CUDA error: out of memory|CUFFT_ALLOC_FAILED|"
    # cuDNN without room for the workspace of any of its kernels
    r"unable to find an engine to execute this computation|"
    r"DefaultCPUAllocator: (can't allocate|not enough) memory"
)


def ran_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _RAN_OUT.search(str(error)) is not None


def host_name() -> str:
    return socket.gethostname()
