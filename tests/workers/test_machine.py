"""The numerics class says what a result's bits depend on besides its recipe."""

from __future__ import annotations

import dataclasses
import pickle
import re
import subprocess
import sys

import numpy
import pytest
import torch
import transformers

from workers import machine
from workers.setup import WorkerSetup

CPUINFO = """\
processor\t: 0
model name\t: Some CPU @ 2.60GHz
flags\t\t: fpu avx2 amx_tile avx512_bf16 amx_bf16 sse avx512_vnni
processor\t: 1
model name\t: Some CPU @ 2.60GHz
"""


@pytest.fixture
def cpu(monkeypatch):
    """Replaces what the system says of its CPU."""

    def replace(text: str) -> None:
        for cached in (machine._cpu_name, machine._cpu_capability):
            cached.cache_clear()
        monkeypatch.setattr(machine, "read_if_there", lambda path: text)

    yield replace
    for cached in (machine._cpu_name, machine._cpu_capability):
        cached.cache_clear()


def numerics():
    return machine.numerics_class(WorkerSetup(worker="w", model="m"))


def test_libraries_and_cpu_are_named(cpu) -> None:
    cpu(CPUINFO)
    found = numerics()
    assert (found.torch, found.numpy) == (torch.__version__, numpy.__version__)
    assert found.transformers == transformers.__version__
    assert found.device == "cpu: Some CPU @ 2.60GHz"
    kernels = torch.backends.cpu.get_cpu_capability()
    assert found.capability == f"{kernels} amx_bf16 amx_tile avx512_bf16 avx512_vnni"
    assert found.driver == ""


def test_every_field_is_part_of_the_digest(cpu) -> None:
    cpu(CPUINFO)
    found = numerics()
    digests = {found.digest()}
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        other = not value if isinstance(value, bool) else value * 2 or "x"
        digests.add(dataclasses.replace(found, **{field.name: other}).digest())
    assert len(digests) == 1 + len(dataclasses.fields(found))
    assert all(re.fullmatch("[0-9a-f]{12}", digest) for digest in digests)


def test_another_cpu_is_another_class(cpu) -> None:
    classes = []
    for text in (CPUINFO, CPUINFO.replace("Some", "Other"), CPUINFO.replace(" amx_bf16", ""), ""):
        cpu(text)
        classes.append(numerics().digest())
    assert len(set(classes)) == 4


def test_the_driver_of_a_gpu_is_read(monkeypatch) -> None:
    line = (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 2025\nGCC 12.2.0 \n"
    )
    monkeypatch.setattr(machine, "read_if_there", lambda path: line)
    assert machine._gpu_driver().endswith("driver 570.86.15")


def test_a_profile_is_read_without_torch() -> None:
    """The driver reads it: importing torch there would stall the render for seconds."""
    code = (
        "import pickle, sys; pickle.loads(bytes.fromhex(sys.argv[1])); "
        "sys.exit('torch' in sys.modules)"
    )
    pickled = pickle.dumps(numerics()).hex()
    assert subprocess.run([sys.executable, "-c", code, pickled]).returncode == 0


def test_the_peak_is_the_most_that_was_held() -> None:
    held = machine.held_bytes("cpu")
    big = torch.ones(2**24)  # 64 MiB
    assert machine.peak_bytes("cpu") > held + 60 * 2**20
    del big
    assert machine.peak_bytes("cpu") > held + 60 * 2**20
