"""The names of the presets and accelerations, and which of them are built. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PresetName = Literal["exact", "balanced", "fast"]


@dataclass(frozen=True, slots=True)
class Preset:
    """A named choice of accelerations."""

    name: PresetName
    built: bool
    description: str


@dataclass(frozen=True, slots=True)
class Acceleration:
    """A technique that makes a render faster or smaller. ``exact``: the film stays the same."""

    name: str
    built: bool
    exact: bool
    description: str


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("exact", True, "only what cannot change the film"),
        Preset("balanced", False, "faster, with changes that are hard to see"),
        Preset("fast", False, "as fast as it goes; changes can be seen"),
    )
}

ACCELERATIONS: dict[str, Acceleration] = {
    acceleration.name: acceleration
    for acceleration in (
        Acceleration("slicing", False, True, "runs operators slice by slice, for small cards"),
        Acceleration("rehash", False, False, "reuses features between key steps"),
        Acceleration("adaptive", False, False, "skips steps in which little changes"),
        Acceleration("fast_attention", False, False, "windowed and shared attention"),
    )
}


def built_presets() -> tuple[str, ...]:
    return tuple(name for name, preset in PRESETS.items() if preset.built)
