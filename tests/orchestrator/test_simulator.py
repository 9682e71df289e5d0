"""Seeded runs of the scheduler on a simulated cluster: every one ends as it must."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from jobs.units import Unit
from orchestrator.roster import Policy
from orchestrator.simcluster import Faults
from orchestrator.simulator import SimReport, Simulation, even_cost
from tests.marks import few
from tests.orchestrator.plans import (
    FATAL,
    FAULTS,
    THEMES,
    cost_by_length,
    frames_for,
    make_plan,
    random_faults,
    random_plan,
    random_policy,
    random_speeds,
)

pytestmark = pytest.mark.slow

QUICK = 300
LONG = 5000
BATCH = 25


def run(seed: int, *, small: bool = False) -> SimReport:
    """One random film on one random cluster, with an end that its faults justify."""
    rng = random.Random(seed)
    plan = random_plan(rng, small=small)
    faults = random_faults(rng, seed, plan)
    policy, speeds, cost = random_policy(rng), random_speeds(rng), cost_by_length(plan)
    report = Simulation(plan, policy, faults, speeds=speeds, cost=cost).run()
    justified = {"done"}
    if faults.poison is not None or any(getattr(faults, kind) for kind in FATAL):
        justified.add("failed")
    if faults.result_damaged or faults.film_damaged:
        justified.add("store_failed")
    assert report.outcome in justified, report
    if report.outcome == "done":
        assert all(report.completed[goal] for goal in plan.goals())
    return report


@pytest.mark.parametrize("first", range(0, QUICK, BATCH))
def test_random_renders_end_as_they_must(first: int) -> None:
    for seed in range(first, first + BATCH):
        try:
            run(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.parametrize("seed", [3641, 4323])
def test_a_write_that_is_overtaken_by_a_later_ones(seed: int) -> None:
    """A later state is durable, the earlier one is lost on its way, and a neighbour needs it: it
    can still be computed from the line before. (Found among thousands.)"""
    run(seed)


@pytest.mark.parametrize("seed", [2045, 3290])
def test_a_lost_state_is_still_on_its_way_in_the_end(seed: int) -> None:
    """One run is stopped while a state that is lost may yet be written; in the other a slow worker
    makes a lost state again when the film is done. (Found among thousands.)"""
    run(seed)


@pytest.mark.parametrize("slowness", [(1, 1, 8), (1, 8, 8), (1, 12), (1, 1, 20), (1, 1, 1, 8)])
def test_a_slow_card_never_makes_a_film_slower(slowness: tuple[int, ...]) -> None:
    """The wavefront must not wait for it with its most urgent units."""
    plan = make_plan(frames_for(12), steps=10)

    def wall_s(*speeds: int) -> float:
        policy = Policy(workers=len(speeds))
        return Simulation(plan, policy, speeds=tuple(1 / each for each in speeds)).run().wall_s

    fast = [each for each in slowness if each == 1]
    assert wall_s(*slowness) <= 1.02 * wall_s(*fast)


@pytest.mark.parametrize("windows", [2, 4, 8])
def test_loading_a_large_text_encoder_makes_no_worker_slow(windows: int) -> None:
    """The one that encodes the prompt is as fast as the other from then on."""
    plan = make_plan(frames_for(windows), steps=14)

    def cost(unit: Unit) -> float:
        return 30.0 if unit.kind == "encode" else even_cost(unit)

    one, two = (
        Simulation(plan, Policy(workers=workers), cost=cost).run().wall_s - 30.0
        for workers in (1, 2)
    )
    assert one / two > 1.6


def test_a_whole_first_stage_makes_no_worker_slow() -> None:
    """The one that computed it, alone, is as fast as the other from then on."""
    plan = make_plan(121, window=8, stage_steps=(4, 4, 4), whole_first_stage=True)
    cost = cost_by_length(plan, 2.0)
    alone_s = sum(cost(Unit("step", 0, step=step)) for step in range(5))
    run = Simulation(plan, Policy(workers=2), cost=cost).run()
    assert run.wall_s < 1.05 * (alone_s + (run.busy_s - alone_s) / 2)


@pytest.mark.long
@pytest.mark.parametrize("first", range(QUICK, LONG, 10 * BATCH))
def test_thousands_of_random_renders_end_as_they_must(first: int) -> None:
    for seed in range(first, first + 10 * BATCH):
        try:
            run(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_a_state_whose_write_was_overtaken_is_made_again_after_a_loss() -> None:
    """The cluster is lost between the write of a later state and its own: of this seed."""
    run(4098)


def test_without_faults_nothing_is_computed_twice() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        plan = random_plan(rng)
        report = Simulation(plan, random_policy(rng), speeds=random_speeds(rng)).run()
        assert report.outcome == "done"
        assert set(report.completed.values()) == {1}
        assert set(report.completed) == set(plan.units())


def test_the_same_seed_gives_the_same_report() -> None:
    for seed in range(12):
        assert run(seed, small=True) == run(seed, small=True)


@pytest.mark.parametrize("kind", FAULTS)
def test_each_kind_of_fault_alone(kind: str) -> None:
    plan = make_plan(frames_for(4), frames_for(2), steps=5)
    chance = 0.01 if kind in ("cluster_lost", "interrupted") else 0.05
    for seed in range(1, 6):
        faults = Faults(seed=seed, **{kind: chance})
        report = Simulation(plan, Policy(workers=3), faults).run()
        assert report.outcome == "done", (seed, report.message)


@pytest.mark.parametrize("theme", range(len(THEMES)))
def test_faults_that_are_worse_together(theme: int) -> None:
    plan = make_plan(frames_for(3), steps=4)
    outcomes = [
        Simulation(plan, Policy(workers=4), Faults(seed=seed, **THEMES[theme])).run().outcome
        for seed in range(1, 9)
    ]
    assert outcomes.count("done") >= 4


def test_a_unit_that_kills_workers_is_named() -> None:
    plan = make_plan(frames_for(4), steps=4)
    poison = Unit("step", 0, 0, 2, 0, 3)
    report = Simulation(plan, Policy(workers=4), Faults(seed=3, poison=poison)).run()
    assert report.outcome == "failed"
    assert "shot 1 window 3 step 3" in report.message


def test_the_first_seconds_are_ready_long_before_the_last() -> None:
    plan = make_plan(frames_for(60), steps=14)
    report = Simulation(plan, Policy(workers=2)).run()
    assert report.first_piece_s < 0.35 * report.wall_s
    assert report.busy_s > 0.95 * 2 * report.wall_s, "both workers are busy to the end"


@pytest.mark.parametrize("workers", few([2, 8], 2))
def test_live_state_does_not_grow_with_the_film(workers: int) -> None:
    peaks = [
        Simulation(make_plan(frames_for(n), steps=14), Policy(workers=workers)).run().peak_held
        for n in (60, 240)
    ]
    assert peaks[1] <= 1.2 * peaks[0]


def test_a_faster_worker_does_more() -> None:
    plan = make_plan(frames_for(40), steps=8)
    slow = Simulation(plan, Policy(workers=2), speeds=(1.0,)).run().wall_s
    mixed = Simulation(plan, Policy(workers=2), speeds=(1.0, 4.0)).run().wall_s
    assert mixed < slow / 2.2, "five times one worker's speed, less the ends"


def test_more_workers_finish_sooner() -> None:
    plan = make_plan(frames_for(64), steps=8)
    one, eight = (Simulation(plan, Policy(workers=n)).run().wall_s for n in (1, 8))
    assert eight < one / 6


def test_a_lost_cluster_costs_what_came_after_the_last_lines() -> None:
    """Per loss at most two lines of each live window: the one begun, and one whose write was
    under way. Windows far behind the wavefront or ahead of it cost nothing."""
    plan = make_plan(frames_for(40), steps=12, checkpoint_every=3)
    units = sum(1 for _ in plan.units())
    for seed in range(1, 9):
        faults = Faults(seed=seed, cluster_lost=0.004)
        report = Simulation(plan, Policy(workers=4), faults).run()
        assert report.outcome == "done"
        redone = sum(report.completed.values()) - units
        live = 12 + 4 * 2  # a window per step of the wavefront, and those being computed
        assert redone <= report.cluster_losses * 2 * plan.checkpoint_every * live


def test_lost_workers_cost_only_their_own_units() -> None:
    plan = make_plan(frames_for(30), steps=8)
    units = sum(1 for _ in plan.units())
    for seed in range(1, 6):
        faults = Faults(seed=seed, worker_dies=0.02)
        report = Simulation(plan, Policy(workers=4), faults).run()
        assert report.outcome == "done"
        assert sum(report.completed.values()) == units, "what had finished is never redone"


def test_a_cluster_far_larger_than_this_machine() -> None:
    plan = make_plan(frames_for(200), steps=10)
    report = Simulation(plan, Policy(workers=100)).run()
    assert report.outcome == "done"
    assert report.busy_s > 0.75 * 100 * report.wall_s


@pytest.mark.long
def test_a_thousand_workers() -> None:
    plan = make_plan(frames_for(2000), steps=20)
    report = Simulation(plan, Policy(workers=1000)).run()
    assert report.outcome == "done"
    assert replace(report, message="").busy_s > 0.7 * 1000 * report.wall_s
