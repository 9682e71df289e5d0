"""Workers: which may take part, when one counts as hanging, when there will be none."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from jobs.accelerations import Accelerations, Slicing
from jobs.units import Unit
from orchestrator import events as e
from orchestrator.simcluster import profile
from tests.orchestrator.bare import ENCODE, Bare, only, step
from tests.orchestrator.plans import frames_for, make_plan

ONE = make_plan(6, steps=2, checkpoint_every=1)
THREE = make_plan(frames_for(3), steps=2, checkpoint_every=2, decode_context=0)


@pytest.mark.parametrize(
    ("changes", "ways"),
    [
        (
            {},
            "slice it (accelerations: {slicing: {slices: 8}}), decode it in half precision "
            "(decoder_dtype: bfloat16), ",
        ),
        (
            {
                "accelerations": Accelerations(slicing=Slicing(slices=4)),
                "decoder_dtype": "bfloat16",
            },
            "slice it (accelerations: {slicing: {slices: 8}}), ",
        ),
    ],
)
def test_a_worker_that_is_too_small_is_refused_with_numbers(changes: dict, ways: str) -> None:
    plan = replace(make_plan(6, tile_bytes=9 * 10**9), **changes)
    bare = Bare(plan)
    bare.start()
    message = (
        "a tile needs about 9.00 GB, w1 has 2.00 GB free after loading the model: 7.00 GB short; "
        f"as a new job {ways}render it smaller, or where there is more memory"
    )
    assert bare.joins("w1", free_bytes=2 * 10**9) == [
        e.StopWorker("w1", message),
        e.EndRender("cannot_run", message),
    ]


def test_a_decoder_that_is_yet_to_be_loaded_needs_room_too() -> None:
    """The model in the profile is what is loaded by then: the denoiser."""
    for free, joins in ((4 * 10**9, True), (4 * 10**9 - 1, False)):
        bare = Bare(replace(make_plan(6, tile_bytes=3 * 10**9), model_bytes=10**9))
        bare.start()
        commands = bare.joins("w1", free_bytes=free)
        assert isinstance(commands[0], e.StopWorker) is not joins
        if not joins:
            assert "a tile and the decoder need about 4.00 GB" in commands[0].reason


def test_a_first_stage_that_is_too_long_is_told_how_to_be_shorter() -> None:
    for whole in (False, True):
        plan = make_plan(
            61, window=8, stage_steps=(2, 2), tile_bytes=2**20, whole_first_stage=whole
        )
        bare = Bare(plan)
        bare.start()
        (refusal, _) = bare.joins("w1", free_bytes=0)
        assert ("cut its longest shot in two, say pyramid_first" in refusal.reason) == whole


def test_a_small_worker_does_not_end_a_render_while_others_start() -> None:
    plan = make_plan(6, tile_bytes=2**20)
    bare = Bare(plan, workers=2)
    bare.start()
    commands = bare.joins("w1", free_bytes=0)
    assert [type(command) for command in commands] == [e.StopWorker]
    assert only(bare.joins("w2"), e.RunUnit), "the large one renders alone"
    assert only(bare.passes(1000.0), e.StartWorker) == [], "the small one is not tried again"


def test_after_a_loss_a_refused_device_is_tried_again() -> None:
    """The lost worker's device may be the one that fits: both places are filled again."""
    plan = make_plan(6, tile_bytes=2**20)
    bare = Bare(plan, workers=2)
    bare.start()
    bare.joins("w1", free_bytes=0)
    bare.joins("w2")
    bare.happens(e.WorkerLost, worker="w2", message="power cut")
    bare.passes(10.0)
    assert set(bare.state.workers) == {"w3", "w4"}
    bare.joins("w3", free_bytes=0)
    assert only(bare.joins("w4"), e.RunUnit)


def test_workers_on_one_hosts_processors_share_its_memory() -> None:
    bare = Bare(make_plan(frames_for(3), tile_bytes=10**9, steps=1), workers=4)
    bare.start()
    room = {"free_bytes": 2 * 10**9}
    assert not only(bare.joins("w1", device="cpu: x", host="one", **room), e.StopWorker)
    assert not only(bare.joins("w2", device="cpu: x", host="one", **room), e.StopWorker)
    refusal = only(bare.joins("w3", device="cpu: x", host="one", **room), e.StopWorker)[0].reason
    assert "3 tiles, one a worker, need about 3.00 GB, one has 2.00 GB" in refusal
    assert not only(bare.joins("w4", device="cpu: x", host="two", **room), e.StopWorker)


def test_the_memory_of_a_tile_at_work_is_counted_once() -> None:
    """It is missing from what the next worker measures; an encoded prompt's is not."""
    bare = Bare(make_plan(6, tile_bytes=2**20), workers=3)
    bare.start()
    room = {"device": "cpu: x", "host": "one", "free_bytes": 2**20}
    bare.joins("w1", **room)
    assert only(bare.joins("w2", **room), e.StopWorker), "w1 will need this room"
    bare.finishes(ENCODE)
    assert bare.sent(step(0, 0)).worker == "w1"
    assert not only(bare.joins("w3", **room), e.StopWorker)


def test_prompts_are_read_where_there_is_room_for_what_reads_them() -> None:
    plan, card = replace(make_plan(6, tile_bytes=2**20), encoding_bytes=14 * 10**9), "a card"
    for sizes, taker in (((8, 24), "w3"), ((24, 8), "w2"), ((8, 8), "w2")):
        bare = Bare(plan, workers=3)
        bare.start()
        assert only(bare.joins("w1", device=card, free_bytes=8 * 10**9), e.RunUnit), "it is alone"
        for name, size in zip(("w2", "w3"), sizes, strict=True):
            bare.joins(name, device=card, free_bytes=size * 10**9)
        bare.happens(e.WorkerLost, worker="w1", message="power cut")
        assert bare.sent(ENCODE).worker == taker, sizes


def test_a_worker_with_room_takes_over_from_one_that_encodes_without() -> None:
    plan = replace(make_plan(6, 6, 6, tile_bytes=2**20), encoding_bytes=14 * 10**9)
    bare = Bare(plan, workers=2)
    bare.start()
    bare.joins("w1", device="a card", free_bytes=8 * 10**9)
    bare.joins("w2", device="a card", free_bytes=24 * 10**9)
    bare.finishes(ENCODE)
    for shot in (1, 2):
        assert bare.sent(Unit("encode", shot)).worker == "w2"
        bare.finishes(Unit("encode", shot))


def test_a_long_window_says_nothing_of_a_workers_speed() -> None:
    """It may be the only one, and takes many times as long; but it does take a tile's memory."""
    plan = make_plan(61, window=8, stage_steps=(2, 2), whole_first_stage=True, checkpoint_every=1)
    bare = Bare(plan).ready()
    bare.finishes(ENCODE)
    worker = bare.state.workers["w1"]
    for number in range(2):
        bare.finishes(step(0, number), elapsed_s=1000.0)
    assert (worker.step_s, worker.steps, worker.holds_a_tile) == (0.0, 2, True)
    bare.finishes(step(0, 2), elapsed_s=1000.0)
    bare.is_stored(step(0, 2))
    bare.finishes(Unit("step", 0, 1, 0, 0, 0), elapsed_s=7.0)
    assert worker.step_s == 7.0


def test_gpus_of_one_host_have_memory_of_their_own() -> None:
    bare = Bare(make_plan(6, tile_bytes=2**20), workers=2)
    bare.start()
    for name in ("w1", "w2"):
        joined = bare.joins(name, device="a card", host="one", free_bytes=2**20)
        assert not only(joined, e.StopWorker)


def test_all_workers_too_small_is_said_once() -> None:
    bare = Bare(make_plan(6, tile_bytes=2**20), workers=2)
    bare.start()
    bare.joins("w1", free_bytes=0)
    commands = bare.joins("w2", free_bytes=5)
    assert commands[-1].outcome == "cannot_run"  # type: ignore[union-attr]
    assert "w1 has" in commands[-1].message  # type: ignore[union-attr]
    assert "w2 has" in commands[-1].message  # type: ignore[union-attr]


def test_pinned_numerics_refuse_another_class() -> None:
    bare = Bare(make_plan(6, numerics="pinned"), workers=2)
    bare.start()
    bare.joins("w1", device="one card")
    refusal = only(bare.joins("w2", device="another card"), e.StopWorker)[0].reason
    assert "the job pins numerics class" in refusal
    assert profile("x", device="one card").numerics.digest() in refusal
    assert "numerics: any" in refusal


def test_a_resumed_job_keeps_its_pinned_class() -> None:
    bare = Bare(make_plan(6, numerics="pinned"), pinned="0" * 12)
    bare.start()
    assert bare.joins()[-1].outcome == "cannot_run"  # type: ignore[union-attr]


def test_starts_that_fail_are_repeated_ever_more_slowly_and_end() -> None:
    bare = Bare(ONE, max_barren_losses=3)
    bare.start()
    starts = [0.0]
    while bare.state.outcome is None:
        bare.happens(e.WorkerLost, worker=next(iter(bare.state.workers)), message="no driver found")
        while bare.state.outcome is None and not bare.state.workers:
            if only(bare.passes(1.0), e.StartWorker):
                starts.append(bare.now_s)
    assert bare.state.message == "workers keep dying: no driver found"
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert gaps == sorted(gaps)
    assert gaps[-1] > gaps[0]


def test_a_host_of_eight_devices_may_be_lost_at_once() -> None:
    bare = Bare(ONE, workers=8).ready()
    for worker in list(bare.state.workers):
        bare.happens(e.WorkerLost, worker=worker, message="host rebooted")
    assert bare.state.outcome is None
    bare.passes(600.0)
    assert len(bare.state.workers) == 8


# -- deadlines


def test_a_worker_that_hangs_is_stopped_and_its_unit_given_to_another() -> None:
    bare = Bare(ONE, workers=2, first_unit_limit_s=100.0).ready()
    assert bare.passes(100.0) == []
    commands = bare.passes(1.0)
    assert only(commands, e.StopWorker) == [
        e.StopWorker("w1", "hangs: shot 1 prompts has taken more than 100 s")
    ]
    assert only(commands, e.RunUnit)[0].worker == "w2"


def test_the_limit_follows_what_was_measured() -> None:
    bare = Bare(make_plan(6, steps=4), hang_factor=30.0, hang_floor_s=120.0).ready()
    bare.finishes(ENCODE)
    bare.finishes(step(0, 0), elapsed_s=10.0)
    assert only(bare.passes(300.0), e.StopWorker) == []
    assert len(only(bare.passes(1.0), e.StopWorker)) == 1


def test_what_encoding_takes_one_worker_says_nothing_of_another() -> None:
    """Whose encoders may be on its processor."""
    limits = {"first_unit_limit_s": 3600.0, "hang_floor_s": 120.0, "hang_factor": 30.0}
    bare = Bare(make_plan(6, 6, 6, 6), workers=2, **limits).ready()
    bare.finishes(ENCODE)
    assert bare.sent(Unit("encode", 1)).worker == "w1"
    bare.fails(Unit("encode", 1), "worker")
    bare.finishes(step(0, 0))  # w2's
    assert bare.sent(Unit("encode", 1)).worker == "w2"
    stopped = {each.worker for each in only(bare.passes(3000.0), e.StopWorker)}
    assert stopped == {"w1"}, "whose own took a second"


def whole(*shots: int) -> Bare:
    """A render of whole first stages, whose first one's prompts are encoded."""
    plan = make_plan(
        *shots, window=8, stage_steps=(2, 1), whole_first_stage=True, checkpoint_every=9
    )
    bare = Bare(plan, depth=1, first_unit_limit_s=200.0, hang_floor_s=1.0).ready()
    bare.computes(*(Unit("encode", shot) for shot in range(len(shots))))
    return bare


def limit_s(bare: Bare, unit: Unit) -> float:
    return bare.state.roster._limit_s(bare.state.workers["w1"], unit)


def test_a_long_window_may_take_long() -> None:
    """The first of all, and one in a second shot when only usual windows are known."""
    bare = whole(15, 15 + 64)
    assert (limit_s(bare, step(0, 0)), limit_s(bare, step(0, 0, shot=1))) == (200, 1000)
    roster, record = bare.state.roster, bare.state.workers["w1"]
    roster.finished(record, Unit("step", 0, 1), 8.0)
    assert limit_s(bare, Unit("step", 0, 1, 1)) == 30 * 8.0
    assert limit_s(bare, step(0, 0, shot=1)) == 30 * 8.0 * 5**2, "with attention alone"


def test_long_and_usual_windows_have_limits_of_their_own() -> None:
    bare = whole(79)
    bare.finishes(step(0, 0), elapsed_s=50.0)
    assert limit_s(bare, step(0, 1)) == 30 * 50.0
    assert limit_s(bare, Unit("step", 0, 1)) == 200.0, "not known yet"


def test_a_queued_unit_does_not_hang_before_its_turn() -> None:
    bare = Bare(make_plan(frames_for(4)), depth=2, first_unit_limit_s=100.0).ready()
    bare.computes(ENCODE)
    bare.now_s += 90
    bare.finishes(step(0, 0))
    assert only(bare.passes(90.0), e.StopWorker) == []


def test_a_worker_that_never_joins_is_replaced() -> None:
    bare = Bare(ONE, join_limit_s=60.0)
    bare.start()
    assert bare.passes(61.0) == [e.StopWorker("w1", "did not join within 60 s")]
    assert e.StartWorker("w2") in bare.passes(10.0)
    assert bare.joins("w1") == [e.StopWorker("w1", "it joined after it had been given up")]
