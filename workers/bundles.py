"""Tensors to and from bundles, the arrays that cross process borders."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping

import numpy as np
import torch

from jobs.arrays import Bundle

# An object store's arrays are read-only, and nothing writes to them here.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def to_bundle(tensors: Mapping[str, torch.Tensor], meta: Mapping[str, str] | None = None) -> Bundle:
    """Copy tensors into a bundle, each once: what a tile keeps may be gigabytes. numpy has no
    bfloat16: its bits travel as uint16."""
    arrays: dict[str, np.ndarray] = {}
    dtypes: dict[str, str] = {}
    for name, kept in tensors.items():
        tensor = kept.detach().cpu().contiguous()
        if tensor.data_ptr() == kept.data_ptr():  # never share memory with one the worker keeps
            tensor = tensor.clone()
        dtypes[name] = str(tensor.dtype).removeprefix("torch.")
        bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
        arrays[name] = bits.numpy()
    return Bundle(arrays=arrays, dtypes=dtypes, meta=dict(meta or {}))


def to_tensor(bundle: Bundle, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
    """A copy of one array: arrays from an object store are read-only."""
    array = bundle.arrays[name]
    if torch.device(device).type == "cpu":
        array = np.array(array)
    tensor = torch.from_numpy(array)
    if bundle.dtypes[name] == "bfloat16":
        tensor = tensor.view(torch.bfloat16)
    return tensor.to(device)


def to_tensors(
    bundle: Bundle, prefix: str = "", device: torch.device | str = "cpu"
) -> dict[str, torch.Tensor]:
    """All arrays whose name starts with ``prefix``, without the prefix."""
    return {
        name.removeprefix(prefix): to_tensor(bundle, name, device)
        for name in bundle.arrays
        if name.startswith(prefix)
    }


def piece_bundle(segment: bytes, codec: str, frames: np.ndarray, first: int) -> Bundle:
    """A decoded piece: its file, and of its ``frames`` RGB uint8 [F, H, W, 3] the hashes; ``first``
    is the first one's place in its shot."""
    hashes = [hashlib.sha256(np.ascontiguousarray(frame)).hexdigest() for frame in frames]
    return Bundle.of(
        {"segment": np.frombuffer(segment, dtype=np.uint8)},
        meta={
            "codec": codec,
            "first_pixel_frame": str(first),
            "pixel_frames": str(len(frames)),
            "frame_sha256": json.dumps(hashes),
        },
    )
