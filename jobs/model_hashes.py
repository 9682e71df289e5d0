"""The hashes that say which model a folder holds, and a cache of them by size and time."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jobs.files import file_sha256, replace_file

#: What is loaded beside the weights. The sidecar is not: a job's defaults end up in its spec.
_PLAIN = ("model_index.json",)
_PLAIN_FOLDERS = (
    "feature_extractor",
    "image_encoder",
    "scheduler",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "transformer",
    "unet",
    "vae",
)


def cache_file() -> Path:
    return Path.home() / ".cache" / "longtake" / "hashes.json"


def hash_files(folder: Path, files: Iterable[str]) -> dict[str, str]:
    """sha256 of each file within the folder. Unchanged files are not read again."""
    cache = _load()
    fresh: dict[str, str] = {}
    hashes = {}
    for name in sorted(files):
        path = (folder / name).resolve()
        stat = path.stat()
        key = f"{path}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
        hashes[name] = cache.get(key) or fresh.setdefault(key, file_sha256(path))
    if fresh:
        _save(fresh)
    return hashes


def identity(folder: Path, weights: Mapping[str, str]) -> str:
    """One sha256 over all that is loaded from the folder, in order of name."""
    hashes = dict(weights)
    for path in _plain_files(folder):
        hashes[path.relative_to(folder).as_posix()] = file_sha256(path)
    text = json.dumps(sorted(hashes.items()), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _plain_files(folder: Path) -> list[Path]:
    """Configs and tokenizer: small files, hashed afresh each time."""
    found = [folder / name for name in _PLAIN]
    for name in _PLAIN_FOLDERS:
        found += (folder / name).glob("*.json")
    for name in ("tokenizer", "tokenizer_2"):
        found += (folder / name).glob("*")
    return sorted({path for path in found if path.is_file()})


def _load() -> dict[str, str]:
    try:
        cached: Any = json.loads(cache_file().read_text("utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    if not isinstance(cached, dict):
        return {}
    return {key: value for key, value in cached.items() if isinstance(value, str)}


def _save(fresh: Mapping[str, str]) -> None:
    """Adds to the cache by an atomic rename. A concurrent writer may drop an entry: it is only
    computed again. A cache that cannot be written is done without."""
    with contextlib.suppress(OSError, RuntimeError):
        replace_file(cache_file(), json.dumps(_load() | dict(fresh)))
