"""Tensors to and from bundles, the arrays that cross process borders."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from jobs.arrays import Bundle


def to_bundle(tensors: Mapping[str, torch.Tensor], meta: Mapping[str, str] | None = None) -> Bundle:
    """Copy tensors into a bundle. numpy has no bfloat16: its bits travel as uint16."""
    arrays: dict[str, np.ndarray] = {}
    dtypes: dict[str, str] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        dtypes[name] = str(tensor.dtype).removeprefix("torch.")
        bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
        arrays[name] = bits.numpy().copy()  # never share memory with a tensor the worker keeps
    return Bundle(arrays=arrays, dtypes=dtypes, meta=dict(meta or {}))


def to_tensor(bundle: Bundle, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
    """A copy of one array: arrays from an object store are read-only."""
    tensor = torch.from_numpy(np.array(bundle.arrays[name]))
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
