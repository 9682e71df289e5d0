"""The filter through which a step's change is measured."""

from __future__ import annotations

import pytest
import torch

from accel.spectral import change, seen


def draw(seed: int) -> torch.Tensor:
    return torch.randn(1, 3, 5, 6, 8, generator=torch.Generator().manual_seed(seed))


def wave(axis: int, cycles: int) -> torch.Tensor:
    """One wave along an axis of [1, 1, 8, 8, 8]."""
    along = torch.cos(2 * torch.pi * cycles * torch.arange(8) / 8)
    return along.view([-1 if n == axis else 1 for n in range(5)]).expand(1, 1, 8, 8, 8)


def test_latents_without_noise_are_seen_as_they_are() -> None:
    assert torch.allclose(seen(draw(0), (1.0, 0.0)), draw(0), atol=1e-5)


@pytest.mark.parametrize("sigma", [0.02, 0.4, 0.97])
def test_the_filter_is_diffusers(sigma: float) -> None:
    theirs = pytest.importorskip("diffusers.hooks.sea_cache")._apply_sea_filter
    latents = draw(1)
    expected = theirs(latents[0].movedim(0, -1), sigma, 3.0).movedim(-1, 0)
    assert torch.allclose(seen(latents, (1 - sigma, sigma))[0], expected, atol=1e-5)


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_what_may_be_noise_counts_less(axis: int) -> None:
    """The same change, slow and quick along an axis, of latents that are mostly noise."""
    early, still = (0.1, 0.9), torch.ones(1, 1, 8, 8, 8)
    slow, quick = (change(still + 0.1 * wave(axis, n), still, early, early) for n in (1, 4))
    assert slow > 3 * quick > 0
    plain = [change(still + 0.1 * wave(axis, n), still, (1, 0), (1, 0)) for n in (1, 4)]
    assert plain[0] < plain[1]


def test_nothing_changes_where_nothing_changes_but_for_scale() -> None:
    assert change(draw(2), draw(2), (0.3, 0.7), (0.3, 0.7)) == 0
    assert change(2 * draw(2), draw(2), (0.3, 0.7), (0.3, 0.7)) == pytest.approx(1.0)


def test_pure_noise_can_be_looked_at() -> None:
    assert torch.isfinite(seen(draw(3), (0.0, 1.0))).all()
