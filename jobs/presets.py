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

    speed: float  # the full render's operations in all steps over this one's
    psnr_db: float  # mean over prompts
    worst_psnr_db: float  # of the worst prompt
    on: str  # model, steps, prompts
    over_plain: float | None = None  # with a pyramid: the speed over its plain twin's full render


@dataclass(frozen=True, slots=True)
class Preset:
    """A named choice of accelerations: settings for all families but those that have their own."""

    name: PresetName
    description: str
    settings: Accelerations
    by_family: Mapping[str, Accelerations] = field(default_factory=dict)
    #: By family; where its name ends with ``WITH_PYRAMID`` or ``WITH_NOISE``, with that.
    measured: Mapping[str, Measured] = field(default_factory=dict)
    #: Where the scheduler adds noise, by family. Others have none: on AnimateDiff whatever is
    #: skipped then loses more than 25 dB leave.
    with_noise: Mapping[str, Accelerations] = field(default_factory=dict)

    def settings_of(self, family: str) -> Accelerations:
        """For a family's models; with a scheduler that adds noise, ``with_noise`` takes over."""
        return self.by_family.get(family, self.settings)


#: By ``benchmarks/techniques.py``; its result files are dated, and a test holds these to them. The
#: settings were chosen on other prompts, but ``balanced`` where noise is added on the same ones.
_DEMO = "the demo model, 30 steps, 3 prompts"
_PYRAMID = "the pyramid's demo model, 30 steps, 3 prompts"
_ANIMATEDIFF = "the small AnimateDiff model, 25 steps of DDIM, 2 prompts"
_ANIMATEDIFF_PYRAMID = "its pyramid, 25 steps of DDIM, 2 prompts"
_SVD = "a small model, 25 steps, 2 images"
_OTHERS = "a small model, 30 steps, 2 prompts"
_COARSE = "a small model, coarse colours alone, 30 steps, 2 prompts"

#: Of a family with a scheduler that adds noise at each step, as CogVideoX-5b's.
WITH_NOISE = " with noise"

WITH_PYRAMID = " with a pyramid"


def _spectral(threshold: float, *, forecast: bool) -> Accelerations:
    """From a stage's second step on, so that a pyramid's short stages gain too. Forecasts are
    better where few steps are skipped; on Wan's models they are worse where many are."""
    return Accelerations(
        adaptive=Adaptive(form="spectral", threshold=threshold, forecast=forecast, first=1)
    )


def _scalar(threshold: float) -> Accelerations:
    """The last steps matter more where noise is added: three of them always run."""
    return Accelerations(adaptive=Adaptive(form="scalar", threshold=threshold, last=3))


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("exact", "only what cannot change the film", Accelerations()),
        Preset(
            "balanced",
            "faster, with changes that are hard to see",
            _spectral(0.15, forecast=True),
            {
                "animatediff": _spectral(0.2, forecast=True),
                "svd": _spectral(0.3, forecast=True),
                "ltx": _spectral(0.25, forecast=True),
                "cogvideox": _spectral(0.1, forecast=True),
                "hunyuan-video": _spectral(0.2, forecast=True),
            },
            {
                "wan": Measured(1.64, 53.7, 52.9, _DEMO),
                "wan" + WITH_PYRAMID: Measured(2.00, 41.7, 33.4, _PYRAMID, over_plain=3.33),
                "animatediff": Measured(1.47, 46.4, 46.3, _ANIMATEDIFF),
                "animatediff" + WITH_PYRAMID: Measured(
                    1.43, 47.3, 47.2, _ANIMATEDIFF_PYRAMID, over_plain=2.94
                ),
                "svd": Measured(1.39, 49.7, 48.6, _SVD),
                "ltx": Measured(2.31, 50.5, 48.4, _OTHERS),
                "cogvideox": Measured(1.67, 49.4, 48.2, _COARSE),
                "hunyuan-video": Measured(1.82, 53.9, 50.6, _COARSE),
                "cogvideox" + WITH_NOISE: Measured(1.30, 42.1, 41.0, _COARSE),
            },
            {"cogvideox": _scalar(0.01)},
        ),
        Preset(
            "fast",
            "as fast as it goes; changes can be seen",
            _spectral(0.3, forecast=False),
            {
                "animatediff": _spectral(0.5, forecast=True),
                "svd": _spectral(0.7, forecast=True),
                "ltx": _spectral(0.5, forecast=True),
                "cogvideox": _spectral(0.3, forecast=True),
                "hunyuan-video": _spectral(0.5, forecast=True),
            },
            {
                "wan": Measured(2.31, 40.1, 37.4, _DEMO),
                "wan" + WITH_PYRAMID: Measured(2.81, 33.1, 26.4, _PYRAMID, over_plain=4.69),
                "animatediff": Measured(2.78, 34.9, 33.1, _ANIMATEDIFF),
                "animatediff" + WITH_PYRAMID: Measured(
                    2.36, 31.9, 30.2, _ANIMATEDIFF_PYRAMID, over_plain=4.84
                ),
                "svd": Measured(2.50, 41.8, 40.3, _SVD),
                "ltx": Measured(3.00, 43.7, 39.2, _OTHERS),
                "cogvideox": Measured(2.61, 44.1, 42.8, _COARSE),
                "hunyuan-video": Measured(2.86, 42.6, 39.3, _COARSE),
                "cogvideox" + WITH_NOISE: Measured(2.40, 33.6, 33.5, _COARSE),
            },
            {"cogvideox": _scalar(0.05)},
        ),
    )
}


def chosen_by(preset: str, found: Accelerations, family: str) -> frozenset[str]:
    """Those of a job's accelerations that are as its preset has them; all others are its own."""
    of = PRESETS[preset]
    chosen = (of.settings_of(family), of.with_noise.get(family, Accelerations()))
    return frozenset(
        name
        for name, each in found
        if each is not None and each in [getattr(settings, name) for settings in chosen]
    )


def combined(preset: str, own: Accelerations, family: str) -> Accelerations:
    """A preset for a family with a job's own settings, which take the place of the preset's."""
    given = {name: getattr(own, name) for name in type(own).model_fields}
    changes = {name: each for name, each in given.items() if each is not None}
    return PRESETS[preset].settings_of(family).model_copy(update=changes)
