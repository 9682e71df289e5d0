"""What a pass of a transformer costs that a technique leaves out or shortens: ours, and diffusers'
caches that a user would pick instead.

Thresholds are such that every pass after the first two is left out, so that no weights that were
trained are needed: what is said is the most that a technique can save, not how often it may.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import diffusers
import torch

from accel import adaptive, rehash
from accel.handle import TileStep
from benchmarks.attached import cached
from benchmarks.here import Tune
from benchmarks.peers import BRANCHES
from benchmarks.small_models import Forward
from jobs.accelerations import Adaptive, Rehash
from jobs.units import Unit

#: Steps that run in full: what is forecast has two to go on. No run here is as long as ``STEPS``.
FIRST, STEPS = 2, 1000


def ways(
    family: str, model: Any, forward: Forward, latents: torch.Tensor
) -> dict[str, AbstractContextManager[Forward]]:
    """By name, what is entered for a pass, or what stands in for it, to be run again and again.
    ``latents`` [B, C, T, H, W] are what the pass denoises."""
    found = {name: by_peer(tune, model, forward) for name, tune in peers(family).items()}
    return {
        "rehash": by_rehash(model, forward),
        "adaptive": by_adaptive(latents),
        **found,
    }


def peers(family: str) -> dict[str, Tune]:
    """diffusers' caches, each set to leave out all that it can."""
    always = 1e9
    forecasts = partial(
        diffusers.TaylorSeerCacheConfig, cache_interval=STEPS, disable_cache_before_step=FIRST,
        max_order=1, taylor_factors_dtype=torch.float32,
    )  # fmt: skip
    configs = {
        "FirstBlockCache": diffusers.FirstBlockCacheConfig(threshold=always),
        "TaylorSeer": forecasts(cache_identifiers=BRANCHES[family]),
        "TaylorSeer lite": forecasts(use_lite_mode=True),
        "MagCache": diffusers.MagCacheConfig(
            threshold=always, max_skip_steps=STEPS, retention_ratio=FIRST / STEPS,
            num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS,
        ),
    }  # fmt: skip
    return {name: cached(config) for name, config in configs.items()}


@contextmanager
def by_peer(tune: Tune, model: Any, forward: Forward) -> Iterator[Forward]:
    """A pass that the peer shortens, after those that it doesn't."""

    def run() -> Any:
        with model.cache_context("cond"):
            return forward()

    with tune(SimpleNamespace(denoiser=model)):
        for _ in range(FIRST + 2):  # TaylorSeer counts its intervals from the second after those
            run()
        yield run


@contextmanager
def by_rehash(model: Any, forward: Forward) -> Iterator[Forward]:
    """A pass that takes the deep blocks' part from the one before it."""
    handle = rehash.apply(model, Rehash(every=STEPS, first=1))

    def run(step: int, carried: Mapping[str, torch.Tensor]) -> TileStep:
        tile = _tile(step, carried)
        with handle.run(tile, "cond"):
            forward()
        return tile

    try:
        kept = run(0, {}).kept
        yield lambda: run(1, kept)
    finally:
        handle.remove()


@contextmanager
def by_adaptive(latents: torch.Tensor) -> Iterator[Forward]:
    """A step without a pass: the spectral form's decision, and the forecast in its place. Both
    guidance branches are spared at once."""
    config = Adaptive(form="spectral", first=FIRST, forecast=True, most_skips=STEPS)
    carried: dict[str, torch.Tensor] = {}
    for step in range(FIRST):
        tile = _tile(step, carried)
        adaptive.remember(config, tile, latents)
        carried = tile.kept

    def run() -> torch.Tensor:
        tile = _tile(config.first, carried)
        skipped = adaptive.skips(config, tile, latents, latents, lambda step: (0.5, 0.5))
        assert skipped, "latents that stay as they are"
        return adaptive.stand_in(config, tile, latents)

    yield run


def _tile(step: int, carried: Mapping[str, torch.Tensor]) -> TileStep:
    return TileStep(unit=Unit("step", 0, step=step), steps=STEPS, carried=dict(carried))
