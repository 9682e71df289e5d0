"""Whose fault it is that a unit cannot be computed, and what a person can do about it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from jobs.errors import BadJob, CannotRunHere, UnitError
from jobs.units import Unit
from workers import machine
from workers.decoding import NotFinite
from workers.depth import Depth, InModel, TooLarge
from workers.setup import WorkerSetup


@contextmanager
def blame(unit: Unit, setup: WorkerSetup, depth: Depth) -> Iterator[None]:
    """Turn whatever goes wrong in a unit into a UnitError that says whose fault it is."""
    try:
        yield
    except UnitError:
        raise
    except NotFinite:
        what, field = "the decoded pixels", "decoder_dtype"
        raise _not_finite(unit, what, field, setup.decoder_dtype) from None
    except (BadJob, CannotRunHere) as error:
        raise UnitError("bad_job", f"{unit}: {error}") from error
    except InModel as error:
        raise TooLarge("out_of_memory", _ran_out(unit, setup, depth, error)) from error
    except Exception as error:
        if machine.ran_out_of_memory(error):
            raise UnitError("out_of_memory", _ran_out(unit, setup, depth, error)) from error
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise UnitError(
            "worker",
            f"{unit}: {type(error).__name__}: {error} "
            f"(at {Path(where.filename).name}:{where.lineno} in {where.name}: {where.line})",
        ) from error


def _ran_out(unit: Unit, setup: WorkerSetup, depth: Depth, error: Exception) -> str:
    in_model = isinstance(error, InModel)
    even_so = f"even in {depth.slices(unit.kind)} slices " if depth.is_deeper(unit.kind) else ""
    return (
        f"{unit}: {setup.device} of worker {setup.worker} ran out of memory "
        f"{even_so if in_model else ''}with {machine.free_bytes(setup.device) / 2**30:.1f} GiB "
        f"free; {_less_memory(unit, setup, depth if in_model else None)} ({error})"
    )


def _less_memory(unit: Unit, setup: WorkerSetup, depth: Depth | None) -> str:
    """What a person can do about a unit that ran out. With ``depth``, where slices are of use."""
    if unit.kind == "encode":
        fixes = "let a worker with more memory take part, or give a smaller dtype"
        on_processor = ", or numerics: any, which encodes on the processor then"
        would_move = not setup.encoding_bytes and setup.device != "cpu"
        return fixes + (on_processor if would_move else "")
    fixes = "plan smaller windows or a smaller size"
    if unit.kind == "decode" and setup.decoder_dtype == "float32":
        fixes += ", or decoder_dtype: float16 or bfloat16"
    deeper = depth and depth.deeper(unit.kind)
    if deeper is None or setup.deepens:  # then that is what comes next
        return fixes
    fixes += f", or accelerations: {{slicing: {{slices: {deeper.slices}}}}}"
    by_itself = ", or numerics: any, which takes as many slices as it needs"
    return fixes + ("" if setup.encoding_bytes else by_itself)


def check_finite(tensor: torch.Tensor, what: str, unit: Unit, dtype: str) -> None:
    if not torch.isfinite(tensor).all():
        raise _not_finite(unit, what, "dtype", dtype)


def _not_finite(unit: Unit, what: str, field: str, dtype: str) -> UnitError:
    """``field`` of the job is where ``dtype`` was said."""
    if dtype == "float16":
        fix = f"its range is small: use {field} bfloat16 or float32"
    elif dtype == "bfloat16":
        fix = f"try {field} float32"
    else:
        fix = "the model's weights or the guidance may be at fault: try a lower guidance"
    return UnitError("not_finite", f"{unit}: {what} became NaN or infinite in {dtype}; {fix}")
