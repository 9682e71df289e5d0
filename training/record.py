"""What a training leaves beside its weights: how it went, how long it took, and on what."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RECORD = "training.json"


def write_record(
    folder: Path,
    device: torch.device,
    *,
    step: int,
    elapsed_s: float,
    progress: Sequence[Mapping[str, Any]],
    **more: Any,
) -> None:
    """``progress`` are rows of a step and what was measured there; ``elapsed_s`` is of all runs
    that went on from one another, without what a stop lost."""
    said = {
        "steps": step,
        "elapsed_s": round(elapsed_s, 2),
        "hardware": hardware(device),
        "torch": torch.__version__,
        **more,
        "progress": list(progress),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{RECORD}.new").write_text(json.dumps(said, indent=1) + "\n")
    (folder / f"{RECORD}.new").replace(folder / RECORD)


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    processor = platform.processor() or platform.machine()
    return f"{processor}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
