"""AdaptiveDiffusion's decisions, fixed by scripted latents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from pydantic import ValidationError

from accel.adaptive import Noise, changes_evenly, remember, skips, stand_in
from accel.handle import TileStep
from jobs.accelerations import Adaptive
from jobs.units import Unit

CLEAN = (1.0, 0.0)  # latents without noise are seen as they are
OFF = 1e-9  # a threshold that asks for the model at any change of pace


def trace(*values: float | tuple[float, ...]) -> list[torch.Tensor]:
    """Latents [1, C, 1, 1, 1] of a step each, oldest first."""
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    return [torch.tensor(row).view(1, -1, 1, 1, 1) for row in rows]


def decide(
    config: Adaptive, latents: list[torch.Tensor], noises: Sequence[Noise] | None = None
) -> str:
    """ "x" where the model runs and "." where a tile skips, going through the steps of a stage;
    ``noises`` are those that the scheduler added at the end of each."""
    said, carried = "", {}
    for step, now in enumerate(latents):
        tile = TileStep(unit=Unit("step", 0, step=step), steps=len(latents), carried=carried)
        added = noises[step - 3 : step][::-1] if noises and step >= 3 else ()
        before = latents[step - 1] if step else None
        skip = skips(config, tile, now, before, lambda step: CLEAN, added)
        assert tile.engaged == {"adaptive.skipped" if skip else "adaptive.computed": 1}
        said += "." if skip else "x"
        carried = tile.kept
    return said


@pytest.mark.parametrize("form", ["tensor", "scalar"])
def test_what_moves_evenly_is_skipped_between_the_protected_ends(form: str) -> None:
    even = trace(*range(12))
    assert decide(Adaptive(form=form, most_skips=99), even) == "xxx........x"
    assert decide(Adaptive(form=form, most_skips=99, first=5, last=3), even) == "xxxxx....xxx"
    assert decide(Adaptive(form=form, most_skips=99, last=0), even) == "xxx........."


@pytest.mark.parametrize(
    ("most", "said"), [(1, "xxx.x.x.x.xx"), (2, "xxx..x..x..x"), (4, "xxx....x...x")]
)
def test_no_more_than_so_many_skips_in_a_row(most: int, said: str) -> None:
    """What the released code reads otherwise: there a first row may be one longer."""
    assert decide(Adaptive(most_skips=most), trace(*range(12))) == said


def test_the_papers_condition_to_the_letter() -> None:
    """x = s^3: d_s = 3s^2 - 3s + 1, and its second difference is 6: at step s the ratio is
    6 / d_(s-1)."""
    ratio = 6 / (3 * 4**2 - 3 * 4 + 1)  # at step 5
    cubes = trace(*(float(s**3) for s in range(9)))
    assert changes_evenly(Adaptive(threshold=ratio * 1.001), cubes[5:1:-1])
    assert not changes_evenly(Adaptive(threshold=ratio * 0.999), cubes[5:1:-1])
    assert decide(Adaptive(threshold=ratio * 1.001, most_skips=9, last=0), cubes) == "xxxxx...."


def test_the_released_codes_condition_to_the_letter() -> None:
    """Half of the same difference, of the changes' mean sizes: half the ratio in one dimension."""
    ratio = 3 / (3 * 4**2 - 3 * 4 + 1)
    cubes = trace(*(float(s**3) for s in range(9)))
    assert changes_evenly(Adaptive(form="scalar", threshold=ratio * 1.001), cubes[5:1:-1])
    assert not changes_evenly(Adaptive(form="scalar", threshold=ratio * 0.999), cubes[5:1:-1])


def test_only_the_tensor_form_sees_a_change_of_direction() -> None:
    circle = trace(*((math.cos(s), math.sin(s)) for s in range(8)))
    turns = Adaptive(threshold=0.3, most_skips=99)
    assert decide(turns, circle) == "xxxxxxxx"
    steps = trace((0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (2.0, 1.0), (2.0, 2.0), (2.0, 3.0))
    assert decide(turns.model_copy(update={"form": "scalar"}), steps) == "xxx..x"
    assert decide(turns, steps) == "xxxxxx"


def with_noise(
    quiet: Sequence[float], scales: Sequence[float], seed: int
) -> tuple[list[torch.Tensor], list[Noise]]:
    """Latents that go as ``quiet`` says, but for the noise of every step; and that noise."""
    generator, total = torch.Generator().manual_seed(seed), torch.zeros(1, 4, 2, 8, 8)
    latents, noises = [], []
    for value, scale in zip(quiet, scales, strict=True):
        latents.append(value + total)
        noises.append(Noise(scale, torch.randn(total.shape, generator=generator)))
        total = total + scale * noises[-1].drawn
    return latents, noises


EVEN_NOISE = [0.5] * 12


@pytest.mark.parametrize("form", ["tensor", "scalar"])
def test_fresh_noise_hides_no_even_change_whatever_its_seed(form: str) -> None:
    config = Adaptive(form=form, most_skips=99)
    for seed in range(5):
        latents, noises = with_noise(range(12), EVEN_NOISE, seed)
        assert decide(config, latents, noises) == "xxx........x"
    told_nothing = decide(Adaptive(most_skips=99), latents)
    assert told_nothing == "x" * 12, "the paper's first estimator, on the latents as they are"


@pytest.mark.parametrize("form", ["tensor", "scalar"])
def test_fresh_noise_hides_no_uneven_change_either(form: str) -> None:
    uneven = [0, 1, 2, 3, 4, 5, 5, 5, 8, 9, 10, 11]
    said = {decide(Adaptive(form=form, most_skips=99), trace(*map(float, uneven)))}
    for seed in range(5):
        latents, noises = with_noise(uneven, EVEN_NOISE, seed)
        said.add(decide(Adaptive(form=form, most_skips=99), latents, noises))
    assert said == {"xxx...xxxxxx"}


@pytest.mark.parametrize("form", ["tensor", "scalar"])
def test_noise_whose_scale_jumps_asks_for_the_model(form: str) -> None:
    """The second estimator: what is added at the end of step 5 is another size than before."""
    scales = [0.5] * 5 + [0.9] + [0.5] * 6
    for seed in range(5):
        latents, noises = with_noise(range(12), scales, seed)
        assert decide(Adaptive(form=form, most_skips=99), latents, noises) == "xxx...xxx..x"


def test_nothing_that_changes_at_all_passes_a_tiny_threshold() -> None:
    noise = list(torch.randn(10, 1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert decide(Adaptive(threshold=OFF), noise) == "x" * 10


def test_a_stage_begins_with_no_past() -> None:
    """The step after a jump carries nothing, whatever its number in the shot."""
    tile = TileStep(unit=Unit("step", 0, stage=1, step=0), steps=9)
    assert not skips(Adaptive(threshold=100.0), tile, torch.ones(1, 1, 1, 1, 1), None, None)
    assert set(tile.kept) == {"adaptive.skips"}


def spectral(threshold: float, **more: object) -> Adaptive:
    return Adaptive(form="spectral", threshold=threshold, most_skips=99, **more)


@pytest.mark.parametrize(
    ("threshold", "said"), [(0.005, "xxxxxxxxx"), (0.015, "xxx.x.x.x"), (0.035, "xxx...x.x")]
)
def test_small_changes_add_up_from_the_last_step_that_ran(threshold: float, said: str) -> None:
    """Each step changes by a hundredth of what is there."""
    assert decide(spectral(threshold), trace(*(1.01**s for s in range(9)))) == said


def test_the_spectral_form_looks_back_one_step() -> None:
    still = trace(*[1.0] * 6)
    assert decide(spectral(0.1, first=1), still) == "x....x"
    with pytest.raises(ValidationError, match="looks 3 steps back"):
        Adaptive(form="scalar", first=2)


def predict(config: Adaptive, values: str, first: float, slope: float) -> list[float]:
    """A tile's predictions where those that are computed lie on a line over steps."""
    carried: dict[str, torch.Tensor] = {}
    out: list[torch.Tensor] = []
    for step, kind in enumerate(values):
        tile = TileStep(unit=Unit("step", 0, step=step), steps=len(values), carried=carried)
        if kind == "x":
            out.append(torch.tensor([first + slope * step]))
            remember(config, tile, out[-1])
            carried = tile.kept
        else:
            out.append(stand_in(config, tile, out[-1]))
    return [float(each) for each in out]


def test_a_forecast_goes_on_where_predictions_went() -> None:
    on, off = Adaptive(forecast=True), Adaptive()
    assert predict(on, "x.x..x.", 5.0, 2.0) == pytest.approx([5, 5, 9, 11, 13, 15, 17])
    assert predict(off, "x.x..x.", 5.0, 2.0) == [5, 5, 9, 9, 9, 15, 15]


def test_without_a_forecast_no_prediction_is_kept() -> None:
    tile = TileStep(unit=Unit("step", 0, step=4), steps=9)
    remember(Adaptive(), tile, torch.ones(1))
    assert not tile.kept


@pytest.mark.parametrize(
    "bad", [{"threshold": 0.0}, {"first": 2}, {"most_skips": 0}, {"last": -1}, {"form": "norm"}]
)
def test_settings_that_cannot_be(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Adaptive(**bad)  # type: ignore[arg-type]
