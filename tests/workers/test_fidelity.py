"""Fidelity and colours of films, against what can be computed by hand."""

import math

import numpy as np
import pytest

from workers.colours import ColourMeter
from workers.fidelity import compare, psnr_db


def film(frames: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, 200, (frames, 32, 48, 3)).astype(np.uint8)


def test_a_film_is_equal_to_itself() -> None:
    said = compare(film(), film()).summary()
    assert (said["equal_frames"], said["frames"]) == (4, 4)
    assert said["psnr_db"] is None and said["worst_psnr_db"] is None
    assert said["ssim"] == said["worst_ssim"] == 1.0


def test_the_worst_frame_is_found() -> None:
    other = film()
    other[1] += 2
    other[3] += 10
    said = compare(other, film()).summary()
    assert said["worst_psnr_frame"] == 3
    assert said["worst_psnr_db"] == pytest.approx(10 * math.log10(255**2 / 100))
    assert said["psnr_db"] == pytest.approx(10 * math.log10(255**2 / 26))
    assert said["equal_frames"] == 2
    assert psnr_db(100.0) == said["worst_psnr_db"]


def test_a_part_of_a_film_counts_by_itself() -> None:
    other = film()
    other[1] += 2
    other[3] += 10
    found = compare(other, film())
    first, second = found.summary(0, 2), found.summary(2, 4)
    assert (first["frames"], first["worst_psnr_frame"], second["worst_psnr_frame"]) == (2, 1, 3)
    assert first["psnr_db"] == pytest.approx(10 * math.log10(255**2 / 2))
    assert second["worst_ssim_frame"] == 3 and second["equal_frames"] == 1


def test_structure_counts_not_brightness() -> None:
    brighter, blurred = film(), film()
    brighter += 10
    blurred[:] = blurred.mean(axis=(1, 2), keepdims=True).astype(np.uint8)
    blurred[2] = film()[2]
    assert compare(brighter, film()).summary()["worst_ssim"] > 0.95
    said = compare(blurred, film()).summary()
    assert said["worst_ssim"] < 0.1 and said["worst_ssim_frame"] != 2


def test_films_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="the film ends after 3 frames"):
        compare(film()[:3], film())
    with pytest.raises(ValueError, match="the reference ends after 3 frames"):
        compare(film(), film()[:3])
    with pytest.raises(ValueError, match="frame 0 is 48x32, and 48x16 in the reference"):
        compare(film(), film()[:, :16])
    with pytest.raises(ValueError, match="no frames"):
        compare([], [])


def gray_film(levels: list[int]) -> ColourMeter:
    meter = ColourMeter()
    for level in levels:
        meter.add(np.full((16, 16, 3), level, np.uint8))
    return meter


def test_a_film_that_brightens_has_a_slope_in_lightness_alone() -> None:
    # sRGB gray of these levels is L = 50.4, 51.2, ...: about 0.4 a level.
    meter = gray_film([120 + n for n in range(48)])
    drift = meter.drift([(n, n + 12) for n in range(0, 48, 12)], fps=12)
    slope = drift["mean_per_minute"]["L"]["slope"]
    assert slope == pytest.approx(60 * 12 * 0.384, rel=0.05), "levels a second, as L a minute"
    assert abs(drift["mean_per_minute"]["a"]["slope"]) < 0.01 * slope
    assert drift["spread_per_minute"]["L"]["slope"] == pytest.approx(0, abs=1e-6)
    assert drift["first_to_last"] == pytest.approx(36 * 0.384, rel=0.05)
    assert drift["mean_change"]["L"] == pytest.approx(drift["first_to_last"], rel=1e-3)
    assert gray_film([130, 120]).drift([(0, 1), (1, 2)], fps=1)["mean_change"]["L"] < -3


def test_colours_that_come_back_do_not_drift() -> None:
    meter = gray_film([100] * 12 + [140] * 12 + [140] * 12 + [100] * 12)
    drift = meter.drift([(n, n + 12) for n in range(0, 48, 12)], fps=12)
    assert drift["mean_per_minute"]["L"]["slope"] == pytest.approx(0, abs=1e-3)
    assert drift["first_to_last"] == pytest.approx(0, abs=1e-6)
    assert drift["farthest_from_first"] > 10
