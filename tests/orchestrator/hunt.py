"""The hunt for planted bugs: seeded runs until the referee, an invariant, or a render that does not
end betrays one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from orchestrator.simulator import SimReport, Simulation
from tests.orchestrator.plans import (
    FATAL,
    cost_by_length,
    crowded_run,
    random_faults,
    random_plan,
    random_policy,
    random_speeds,
)

Patch = pytest.MonkeyPatch

BUGS: dict[str, Callable[[Patch], None]] = {}
MAX_SEEDS = 1000


def bug(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
    BUGS[plant.__name__] = plant
    return plant


def simulate(seed: int) -> None:
    small(seed)
    if seed % 8 == 7:
        crowded_run(seed)


def small(seed: int) -> SimReport:
    rng = random.Random(seed)
    plan = random_plan(rng, small=True)
    faults = random_faults(rng, seed, plan)
    policy, speeds, cost = random_policy(rng), random_speeds(rng), cost_by_length(plan)
    report = Simulation(plan, policy, faults, speeds=speeds, cost=cost).run()
    may_fail = faults.poison is not None or any(getattr(faults, kind) for kind in FATAL)
    assert report.outcome == "done" or may_fail, report
    return report


def find(seeds: int = MAX_SEEDS) -> tuple[int, str] | None:
    """The number of seeds until something is wrong, and what."""
    for seed in range(seeds):
        try:
            simulate(seed)
        except (AssertionError, KeyError, ValueError, IndexError, RecursionError) as error:
            return seed + 1, f"{type(error).__name__}: {error}".splitlines()[0]
    return None
