"""What safetensors files say of their tensors, and whether they are whole: no weight is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import CannotRunHere
from jobs.families.family import Shapes

_MAX_HEADER_BYTES = 100_000_000
_DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of safetensors files."""

    shapes: Shapes
    data_bytes: int

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


def read_headers(folder: Path, files: Iterable[str]) -> Header:
    """Of all files of a component, within the folder. Raises CannotRunHere."""
    shapes: Shapes = {}
    total = 0
    for file in files:
        header = read_header(folder / file)
        shapes |= header.shapes
        total += header.data_bytes
    return Header(shapes, total)


def read_header(path: Path) -> Header:
    """The tensors' shapes of a safetensors file that is whole. Raises CannotRunHere."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise _damaged(path, f"its header says {length} bytes, the file has {size}")
        try:
            entries = json.loads(file.read(length))
        except ValueError as error:
            raise _damaged(path, f"its header is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise _damaged(path, "its header is not a JSON object")
    entries.pop("__metadata__", None)
    data_bytes = size - 8 - length
    _check_offsets(path, entries, data_bytes)
    return Header({name: tuple(each["shape"]) for name, each in entries.items()}, data_bytes)


def _check_offsets(path: Path, entries: Mapping[str, Any], data_bytes: int) -> None:
    """Tensors must follow one another without gaps and fill the file exactly."""
    try:
        spans = sorted((*each["data_offsets"], name) for name, each in entries.items())
        position = 0
        for start, stop, name in spans:
            bits = math.prod(entries[name]["shape"]) * _DTYPE_BITS[entries[name]["dtype"]]
            if start != position or (stop - start) * 8 != bits:
                raise _damaged(path, f"tensor {name} has the wrong place or length")
            position = stop
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"its header cannot be understood: {error!r}") from error
    if position != data_bytes:
        raise _damaged(path, f"it should hold {position} bytes of weights, but has {data_bytes}")


def _damaged(path: Path, reason: str) -> CannotRunHere:
    return CannotRunHere(f"{path} is damaged or not copied whole: {reason}; copy it again")
