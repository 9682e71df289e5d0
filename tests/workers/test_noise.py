"""Noise belongs to a place: it depends on its key and on nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from jobs.units import RepeatedNoise
from jobs.versions import NOISE_VERSION
from tests.workers.tiny import tiny_shot
from workers.noise import frame_noise, image_noise, initial_noise, repeated_noise

SHAPE = (4, 8, 8)


def test_any_window_draws_the_same_noise() -> None:
    shot = tiny_shot()
    whole = initial_noise(shot, range(9), 4)
    assert whole.shape == (1, 4, 9, 16, 16)
    assert whole.dtype == torch.float32
    for start, stop in [(0, 1), (3, 7), (8, 9)]:
        assert torch.equal(initial_noise(shot, range(start, stop), 4), whole[:, :, start:stop])


def test_any_window_in_a_row_has_all_of_repeated_noise_once() -> None:
    shot = tiny_shot(repeated_noise=RepeatedNoise(period=5, share=0.5))
    whole = repeated_noise(shot, (0, 5), 4)
    frames = {whole[:, :, n].numpy().tobytes() for n in range(5)}
    assert len(frames) == 5
    for start in range(1, 12):
        window = repeated_noise(shot, (start, start + 5), 4)
        assert {window[:, :, n].numpy().tobytes() for n in range(5)} == frames
    assert torch.equal(repeated_noise(shot, (13, 14), 4), whole[:, :, 3:4])
    own = initial_noise(shot, range(5), 4)
    assert not {own[:, :, n].numpy().tobytes() for n in range(5)} & frames


def test_every_part_of_the_key_matters() -> None:
    keys = [(7, 0, "initial", 0), (8, 0, "initial", 0), (7, 1, "initial", 0)]
    keys += [
        (7, 0, "renoise", 0),
        (7, 0, "initial", 1),
        (1, 11, "initial", 1),
        (11, 1, "initial", 1),
    ]
    draws = [frame_noise(*key, SHAPE).tobytes() for key in keys]
    assert len(set(draws)) == len(keys)


def test_it_is_standard_normal() -> None:
    noise = frame_noise(3, 0, "initial", 0, (16, 64, 64)).astype(np.float64)
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_version_1_never_changes() -> None:
    """A film of years ago must come out the same. If this fails, numpy's generator or our key
    has changed: raise NOISE_VERSION, so that recipes change with it."""
    assert NOISE_VERSION == 1
    digest = hashlib.sha256(frame_noise(7, 3, "initial", 0, SHAPE).tobytes()).hexdigest()
    assert digest == "d9a3bd96ff7be1005fa1dbc6e6fb6ff6d2c053c16a41f0f441f3b1159a772dbb"


def test_an_images_noise_is_its_own() -> None:
    shot = tiny_shot()
    height, width = shot.latent_height, shot.latent_width
    noise, initial = image_noise(shot, height, width), initial_noise(shot, [0], 3)[:, :, 0]
    assert noise.shape == initial.shape == (1, 3, height, width)
    assert not torch.equal(noise, initial)
    assert torch.equal(noise, image_noise(shot, height, width))
