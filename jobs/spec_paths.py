"""Paths in a job file, which count from the file's own folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from jobs.model_folder import DEMOS

#: Where a job file names a file or a folder. A number stands for each entry of a list.
_PATHS = (
    ("image",),
    ("shots", 0, "image"),
    ("loras", 0, "path"),
    ("accelerations", "rehash", "profiles"),
    ("accelerations", "fast_attention", "plans"),
)


def from_folder(data: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """What a job file in ``folder`` says, its relative paths counting from the current folder. What
    is no path stays as it is, to be refused by whoever reads it."""
    told: Any = data
    for place in _PATHS:
        told = _at(told, place, lambda path: _joined(folder, path))
    return dict(_at(told, ("model",), lambda name: _model(folder, name)))


def _at(data: Any, place: tuple[str | int, ...], change: Callable[[str], str]) -> Any:
    """``data`` with a text at ``place`` changed; all else shared."""
    if not place:
        return change(data) if isinstance(data, str) else data
    name, *rest = place
    if isinstance(name, int):
        return [_at(each, tuple(rest), change) for each in data] if isinstance(data, list) else data
    if not isinstance(data, Mapping) or name not in data:
        return data
    return {**data, name: _at(data[name], tuple(rest), change)}


def _joined(folder: str, path: str) -> str:
    return path if not path or path.startswith("~") else os.path.join(folder, path)


def _model(folder: str, name: str) -> str:
    """A folder beside the file, or whatever else the name may be."""
    joined = _joined(folder, name)
    is_folder = name not in DEMOS and os.path.isdir(joined)
    return joined if is_folder or name.startswith(("./", "../")) else name
