"""Named arrays and their bytes, bit exact: what a unit's output is in the store.

The bytes are an Arrow IPC stream with one row: a column per array, a list of all its values in
C order. Any Arrow reader can open it. The schema's metadata holds, as JSON under ``longtake``,
the shape and the true dtype of each array. Arrow has no bfloat16 and no float8, so those travel
as unsigned integers with the same bits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.errors import DamagedRecord

FORMAT = 1

#: numpy dtype -> Arrow type of its values. Arrow packs booleans into bits, so they go as bytes.
_ARROW: dict[str, pa.DataType] = {
    "bool": pa.uint8(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "float16": pa.float16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
}

#: True dtype -> numpy dtype with the same bits, for those that numpy lacks.
TAGGED = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


@dataclass(frozen=True, eq=False)
class Bundle:
    """Named arrays. ``dtypes`` says what each one truly is: its numpy dtype's name, or a name in
    ``TAGGED`` for an array that holds the bits of such numbers. ``meta`` is for small facts."""

    arrays: dict[str, np.ndarray]
    dtypes: dict[str, str]
    meta: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        arrays: Mapping[str, np.ndarray],
        dtypes: Mapping[str, str] | None = None,
        meta: Mapping[str, str] | None = None,
    ) -> Bundle:
        """A bundle whose dtypes, where not given, are those that numpy sees."""
        seen = {name: array.dtype.name for name, array in arrays.items()}
        return cls(dict(arrays), seen | dict(dtypes or {}), dict(meta or {}))

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


def encode_bundle(bundle: Bundle) -> bytes:
    """The bytes of a bundle. Equal bundles give equal bytes, whatever their dicts' order.

    Raises ValueError for a dtype that cannot be stored.
    """
    _check_dtypes(bundle)
    columns, fields, arrays = [], [], {}
    for name in sorted(bundle.arrays):
        array = bundle.arrays[name]
        column = _column(array)
        columns.append(column)
        fields.append(pa.field(name, column.type, nullable=False))
        arrays[name] = {"shape": list(array.shape), "dtype": bundle.dtypes[name]}
    about = {"format": FORMAT, "arrays": arrays, "meta": bundle.meta}
    text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    schema = pa.schema(fields, metadata={"longtake": text})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        if columns:
            stream.write_batch(pa.record_batch(columns, schema=schema))
    return bytes(sink.getvalue().to_pybytes())


def decode_bundle(data: bytes) -> Bundle:
    """The bundle that ``encode_bundle`` was given; its arrays are writable copies.

    Raises DamagedRecord if the bytes are not a whole bundle.
    """
    try:
        return _decode(data)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedRecord(f"these {len(data)} bytes are not a whole bundle: {error}") from error


def _check_dtypes(bundle: Bundle) -> None:
    if bundle.arrays.keys() != bundle.dtypes.keys():
        raise ValueError(f"arrays {sorted(bundle.arrays)}, but dtypes {sorted(bundle.dtypes)}")
    for name, array in bundle.arrays.items():
        held, true = array.dtype.name, bundle.dtypes[name]
        if held not in _ARROW:
            raise ValueError(f"array {name!r} is {held}; valid: {', '.join(_ARROW)}")
        if true != held and TAGGED.get(true) != held:
            valid = [held, *(tag for tag, bits in TAGGED.items() if bits == held)]
            raise ValueError(f"array {name!r} of {held} cannot be {true}; valid: {valid}")


def _column(array: np.ndarray) -> pa.Array:
    flat = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1)
    kind = _ARROW[array.dtype.name]
    values = pa.Array.from_buffers(kind, flat.size, [None, pa.py_buffer(flat)])
    offsets = pa.array([0, flat.size], type=pa.int64())
    return pa.LargeListArray.from_arrays(offsets, values)


def _decode(data: bytes) -> Bundle:
    with pa.ipc.open_stream(data) as stream:
        about = json.loads(stream.schema.metadata[b"longtake"])
        if about["format"] != FORMAT:
            raise ValueError(f"bundle format {about['format']}; this version reads {FORMAT}")
        batches = list(stream)
    arrays = {}
    for name, said in about["arrays"].items():
        (batch,) = batches
        batch.validate(full=True)
        arrays[name] = _array(batch.column(name), said)
    dtypes = {name: said["dtype"] for name, said in about["arrays"].items()}
    return Bundle(arrays, dtypes, about["meta"])


def _array(column: pa.Array, said: dict[str, Any]) -> np.ndarray:
    dtype = np.dtype(TAGGED.get(said["dtype"], said["dtype"]))
    values = column.flatten()
    if values.type != _ARROW[dtype.name] or len(values) != math.prod(said["shape"]):
        raise ValueError(f"{len(values)} values of {values.type} are not {said}")
    flat: np.ndarray = values.to_numpy(zero_copy_only=True).view(dtype)
    return flat.reshape(said["shape"]).copy()
