"""Named choices of accelerations, with what was measured of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jobs.accelerations import Accelerations, Adaptive

PresetName = Literal["exact", "balanced", "fast"]


@dataclass(frozen=True, slots=True)
class Measured:
    """Speed and fidelity together, against the full computation of the same model."""

    speed: float  # of all steps: the full render's time over this one's
    psnr_db: float  # mean over prompts
    worst_psnr_db: float  # of the worst prompt
    on: str  # model, steps, prompts


@dataclass(frozen=True, slots=True)
class Preset:
    """A named choice of accelerations; the same for all families until one needs its own."""

    name: PresetName
    description: str
    settings: Accelerations
    measured: Mapping[str, Measured] = field(default_factory=dict)  # by family


#: By ``benchmarks/techniques.py``; its result file is dated.
_DEMO = "the demo model, 30 steps, 5 prompts"

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("exact", "only what cannot change the film", Accelerations()),
        Preset(
            "balanced",
            "faster, with changes that are hard to see",
            Accelerations(adaptive=Adaptive(form="scalar", threshold=0.02)),
            {"wan": Measured(1.95, 40.4, 34.0, _DEMO)},
        ),
        Preset(
            "fast",
            "as fast as it goes; changes can be seen",
            Accelerations(adaptive=Adaptive(form="scalar", threshold=0.05)),
            {"wan": Measured(2.3, 37.7, 29.1, _DEMO)},
        ),
    )
}


def combined(preset: str, own: Accelerations) -> Accelerations:
    """A preset with a job's own settings, which take the place of the preset's."""
    given = {name: getattr(own, name) for name in type(own).model_fields}
    changes = {name: each for name, each in given.items() if each is not None}
    return PRESETS[preset].settings.model_copy(update=changes)
