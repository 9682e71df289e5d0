"""The decisions of a render, event by event."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.units import Unit
from orchestrator import events as e
from tests.orchestrator.bare import ENCODE, Bare, only, piece, step
from tests.orchestrator.plans import frames_for, make_plan

ONE = make_plan(6, steps=2, checkpoint_every=1)
THREE = make_plan(frames_for(3), steps=2, checkpoint_every=2, decode_context=0)


def to_last_piece(bare: Bare) -> Bare:
    """One window, up to its running piece."""
    bare.ready().computes(ENCODE, step(0, 0), step(0, 1), step(0, 2))
    bare.is_stored(step(0, 2))
    return bare


# -- a render without trouble


def test_from_start_to_film() -> None:
    bare = Bare(ONE)
    assert bare.start() == [e.StartWorker("w1")]
    assert bare.joins() == [e.RunUnit(ENCODE, 1, "w1", ())]
    assert bare.finishes(ENCODE) == [
        e.StoreOutput(ENCODE, 1),
        e.RunUnit(step(0, 0), 2, "w1", ((ENCODE, 1),)),
    ]
    assert bare.is_stored(ENCODE) == []
    assert bare.finishes(step(0, 0)) == [
        e.RunUnit(step(0, 1), 3, "w1", ((ENCODE, 1), (step(0, 0), 2))),
    ]
    assert bare.finishes(step(0, 1)) == [
        e.StoreOutput(step(0, 1), 3),
        e.DropOutput(ENCODE, 1),
        e.RunUnit(step(0, 2), 4, "w1", ((step(0, 1), 3),)),
    ]
    assert bare.is_stored(step(0, 1)) == [e.DropOutput(step(0, 0), 2)]
    assert bare.finishes(step(0, 2)) == [
        e.StoreOutput(step(0, 2), 4),
        e.DropOutput(step(0, 1), 3),
    ]
    assert bare.is_stored(step(0, 2)) == [
        e.DeleteResult(step(0, 1)),
        e.RunUnit(piece(0), 5, "w1", ((step(0, 2), 4),)),
    ]
    assert bare.finishes(piece(0)) == [e.StoreOutput(piece(0), 5), e.DropOutput(step(0, 2), 4)]
    assert bare.is_stored(piece(0)) == [e.DropOutput(piece(0), 5), e.StitchFilm()]
    assert bare.happens(e.FilmStitched, path="a.mp4") == [e.EndRender("done", "a.mp4")]
    assert bare.passes(1e6) == []


def test_earliest_film_time_goes_first() -> None:
    bare = Bare(THREE, depth=1).ready().computes(ENCODE)
    order = [step(0, 0), step(1, 0), step(0, 1), step(2, 0), step(1, 1), step(0, 2), step(2, 1)]
    for unit in order:
        bare.finishes(unit)
    runs = only(bare.log, e.RunUnit)
    assert [run.unit for run in runs[1:8]] == order


def test_a_worker_gets_no_more_than_its_depth() -> None:
    bare = Bare(make_plan(frames_for(5)), depth=2).ready()
    assert len(only(bare.finishes(ENCODE), e.RunUnit)) == 2
    assert len(only(bare.finishes(step(0, 0)), e.RunUnit)) == 1


# -- reports that do not count


def test_a_late_report_is_ignored_and_its_output_dropped() -> None:
    bare = Bare(ONE, workers=2).ready()
    old = bare.sent(ENCODE)
    commands = bare.happens(e.WorkerLost, worker=old.worker, message="power cut")
    new = bare.sent(ENCODE)
    assert new in commands
    assert (new.worker, new.attempt) != (old.worker, old.attempt)
    late = {"unit": ENCODE, "attempt": old.attempt, "worker": old.worker, "elapsed_s": 1.0}
    assert bare.happens(e.UnitFinished, **late) == [e.DropOutput(ENCODE, old.attempt)]
    assert bare.state.book.records[ENCODE].status == "running"


def test_a_report_that_comes_twice_keeps_the_output() -> None:
    bare = Bare(ONE).ready()
    bare.finishes(ENCODE)
    run = bare.sent(ENCODE)
    twice = {"unit": ENCODE, "attempt": run.attempt, "worker": run.worker, "elapsed_s": 1.0}
    assert bare.happens(e.UnitFinished, **twice) == []


def test_a_late_failure_blames_nobody() -> None:
    bare = Bare(ONE, workers=2).ready()
    old = bare.sent(ENCODE)
    bare.happens(e.WorkerLost, worker=old.worker, message="power cut")
    late = {"unit": ENCODE, "attempt": old.attempt, "worker": old.worker, "message": "?"}
    assert bare.happens(e.UnitFailed, kind="bad_job", **late) == []


# -- losses


def test_a_lost_worker_gives_back_its_own_units_only() -> None:
    bare = Bare(make_plan(frames_for(8)), workers=2, depth=2).ready().computes(ENCODE)
    bare.finishes(bare.state.workers["w2"].queue[0])
    queues = {name: list(w.queue) for name, w in bare.state.workers.items()}
    assert sorted(len(queue) for queue in queues.values()) == [2, 2]
    bare.happens(e.WorkerLost, worker="w1", message="power cut")
    for unit in queues["w1"]:
        assert bare.state.book.records[unit].status == "ready"
    assert list(bare.state.workers["w2"].queue) == queues["w2"]


def test_a_loss_is_charged_to_the_unit_being_computed() -> None:
    bare = Bare(make_plan(frames_for(4)), workers=1, depth=2).ready().computes(ENCODE)
    head, behind = bare.state.workers["w1"].queue
    bare.happens(e.WorkerLost, worker="w1", message="power cut")
    assert bare.state.book.records[head].deaths == 1
    assert bare.state.book.records[behind].deaths == 0


def test_a_unit_that_kills_workers_ends_the_render() -> None:
    bare = Bare(ONE, max_deaths=2, workers=3).ready()
    for _ in range(2):
        bare.now_s += 10.0
        commands = bare.happens(e.WorkerLost, worker=bare.sent(ENCODE).worker, message="segfault")
    assert commands == [
        e.EndRender("failed", "shot 1 prompts: 2 workers died on it, the last: segfault")
    ]


def test_lost_nodes_are_not_the_fault_of_what_they_computed() -> None:
    bare = Bare(ONE, max_deaths=2, max_cluster_failures=3, max_barren_losses=9, workers=4).ready()
    for lost in range(3):
        assert bare.state.outcome is None, lost
        bare.now_s += 10.0
        worker = bare.sent(ENCODE).worker
        bare.happens(e.WorkerLost, worker=worker, message="its node was lost", node=True)
    assert bare.state.message.startswith("shot 1 prompts: the cluster failed again and again")


def test_a_lost_input_is_computed_again_and_its_reader_waits() -> None:
    bare = Bare(ONE, workers=2).ready().computes(ENCODE, step(0, 0))
    first = bare.sent(step(0, 0)).attempt
    commands = bare.fails(step(0, 1), "cluster", lost=(step(0, 0),))
    assert commands[0] == e.DropOutput(step(0, 0), first)
    assert [run.unit for run in only(commands, e.RunUnit)] == [step(0, 0)]
    assert bare.state.book.records[step(0, 1)].status == "waiting"
    assert all(worker.faults == 0 for worker in bare.state.workers.values())


def test_a_stale_loss_does_not_drop_the_new_output() -> None:
    """Two readers miss the same output; the second says so when it has been made again."""
    plan = make_plan(frames_for(2), steps=2, checkpoint_every=9)
    bare = Bare(plan, workers=2, depth=1).ready()
    bare.computes(ENCODE, step(0, 0), step(1, 0))
    late = bare.sent(step(1, 1))
    bare.fails(step(0, 1), "cluster", lost=(step(0, 0),))
    bare.finishes(step(0, 0))
    again = bare.attempt(step(0, 0))
    assert again not in {attempt for _, attempt in late.inputs}
    commands = bare.fails(step(1, 1), "cluster", lost=(step(0, 0),))
    assert only(commands, e.DropOutput) == []
    assert bare.state.book.records[step(0, 0)].status == "held"


def test_a_durable_output_that_is_lost_is_read_back() -> None:
    bare = Bare(ONE).ready().computes(ENCODE)
    bare.is_stored(ENCODE)
    commands = bare.fails(step(0, 0), "cluster", lost=(ENCODE,))
    assert only(commands, e.LoadOutput) == [e.LoadOutput(ENCODE)]
    assert only(bare.is_loaded(ENCODE), e.RunUnit)[0].inputs == ((ENCODE, 0),)


def test_an_output_lost_while_written_is_computed_again() -> None:
    bare = to_last_piece(Bare(ONE)).computes(piece(0))
    commands = bare.happens(e.OutputLost, unit=piece(0), attempt=5)
    assert commands[0] == e.DropOutput(piece(0), 5)
    assert bare.state.book.records[step(0, 2)].status == "loading"


def test_a_write_that_succeeds_after_all_saves_the_work() -> None:
    """The object vanished while it was written, and yet the write had come through."""
    bare = to_last_piece(Bare(ONE)).computes(piece(0))
    bare.happens(e.OutputLost, unit=piece(0), attempt=5)
    commands = bare.happens(e.OutputStored, unit=piece(0), attempt=5)
    assert commands == [e.StitchFilm()]
    assert bare.is_loaded(step(0, 2)) == [e.DropOutput(step(0, 2), 0)]


def test_a_failed_unit_that_nobody_needs_any_more_is_not_tried_again() -> None:
    """Its reader had read it before it was lost, and has finished meanwhile."""
    plan = make_plan(6, steps=3, checkpoint_every=9)
    bare = Bare(plan, workers=2).ready().computes(ENCODE, step(0, 0), step(0, 1))
    attempt = bare.state.book.records[step(0, 1)].attempt
    bare.happens(e.OutputLost, unit=step(0, 1), attempt=attempt)
    assert bare.state.book.records[step(0, 1)].status == "running"
    early = next(c for c in bare.log if isinstance(c, e.RunUnit) and c.unit == step(0, 2))
    bare.happens(
        e.UnitFinished, unit=step(0, 2), attempt=early.attempt, worker=early.worker, elapsed_s=1.0
    )
    commands = bare.fails(step(0, 1), "worker")
    assert step(0, 1) not in bare.state.book.records
    assert only(commands, e.RunUnit) == []


# -- blame


def test_a_bad_job_ends_at_once_and_nothing_follows() -> None:
    bare = Bare(ONE, durable=[ENCODE]).ready()
    bare.is_loaded(ENCODE)
    commands = bare.fails(step(0, 0), "bad_job", "no such scheduler", lost=(ENCODE,))
    assert commands[-1] == e.EndRender("failed", "shot 1 window 1 step 0: no such scheduler")
    assert only(commands, e.RunUnit) == []


def test_the_cluster_blames_nobody_but_ends_some_day() -> None:
    bare = Bare(ONE, max_cluster_failures=4).ready()
    for _ in range(3):
        commands = bare.fails(ENCODE, "cluster")
        assert [run.worker for run in only(commands, e.RunUnit)] == ["w1"]
    assert bare.state.workers["w1"].faults == 0
    assert only(bare.fails(ENCODE, "cluster", "no route"), e.EndRender)[0].outcome == "failed"


def test_a_failed_unit_avoids_its_worker() -> None:
    bare = Bare(ONE, workers=2).ready()
    first = bare.sent(ENCODE).worker
    commands = bare.fails(ENCODE, "worker")
    assert only(commands, e.RunUnit)[0].worker != first


@pytest.mark.parametrize("kind", ["worker", "out_of_memory", "not_finite"])
def test_three_failures_end_the_render_and_name_the_unit(kind: str) -> None:
    bare = Bare(ONE, workers=3).ready()
    bare.finishes(ENCODE)
    for _ in range(3):
        commands = bare.fails(step(0, 0), kind, "latents are not finite")  # type: ignore[arg-type]
    assert only(commands, e.EndRender) == [
        e.EndRender(
            "failed", "shot 1 window 1 step 0 failed 3 times, the last: latents are not finite"
        )
    ]


def test_a_worker_that_fails_three_times_in_a_row_is_replaced() -> None:
    bare = Bare(make_plan(frames_for(9)), workers=2, depth=3, max_faults=9).ready()
    bare.computes(ENCODE)
    for unit in list(bare.state.workers["w1"].queue):
        commands = bare.fails(unit, "worker", "broken card")
    assert only(commands, e.StopWorker) == [
        e.StopWorker("w1", "3 failures in a row, the last: broken card")
    ]
    bare.passes(10)
    assert "w3" in bare.state.workers


def test_a_success_forgives_a_worker() -> None:
    bare = Bare(make_plan(frames_for(9)), workers=2, depth=3, max_faults=9).ready()
    bare.computes(ENCODE)
    one, two, three = list(bare.state.workers["w1"].queue)
    bare.fails(one, "worker")
    bare.fails(two, "worker")
    bare.finishes(three)
    assert bare.state.workers["w1"].faults == 0


# -- the store


def test_a_full_store_ends_the_render() -> None:
    bare = Bare(ONE).ready().computes(ENCODE)
    commands = bare.happens(e.StoreFailed, unit=ENCODE, attempt=1, message="no space left")
    assert commands == [e.EndRender("store_failed", "no space left")]


def test_a_write_is_tried_again_but_not_for_ever() -> None:
    bare = Bare(ONE, max_write_failures=2).ready().computes(ENCODE)
    died = {"unit": ENCODE, "attempt": 1, "message": "writer died", "transient": True}
    assert bare.happens(e.StoreFailed, **died) == [e.StoreOutput(ENCODE, 1)]
    assert bare.happens(e.StoreFailed, **died) == [e.StoreOutput(ENCODE, 1)]
    commands = bare.happens(e.StoreFailed, **died)
    assert commands[-1] == e.EndRender(
        "store_failed", "shot 1 prompts: 3 writers died: writer died"
    )


def test_storage_that_keeps_damaging_a_result_is_not_trusted() -> None:
    bare = Bare(ONE, durable=[ENCODE], max_damages=2).ready()
    for _ in range(2):
        bare.happens(e.LoadFailed, unit=ENCODE, message="bad hash")
        bare.state.book.durable.add(ENCODE)
    commands = bare.happens(e.LoadFailed, unit=ENCODE, message="bad hash")
    assert commands[-1].outcome == "store_failed"  # type: ignore[union-attr]


def test_a_damaged_result_is_computed_again() -> None:
    bare = Bare(ONE, durable=[ENCODE]).ready()
    commands = bare.happens(e.LoadFailed, unit=ENCODE, message="bad hash")
    assert [run.unit for run in only(commands, e.RunUnit)] == [ENCODE]


def test_a_piece_found_damaged_while_stitching_is_made_again() -> None:
    bare = to_last_piece(Bare(ONE)).computes(piece(0))
    bare.is_stored(piece(0))
    commands = bare.happens(e.StitchFailed, message="bad hash", lost=(piece(0),))
    assert commands == [e.LoadOutput(step(0, 2))]
    assert only(bare.is_loaded(step(0, 2)), e.RunUnit)[0].unit == piece(0)
    bare.finishes(piece(0))
    assert bare.is_stored(piece(0))[-1] == e.StitchFilm()


def test_a_film_that_cannot_be_written_says_so() -> None:
    bare = Bare(ONE, durable=[piece(0)])
    assert bare.start() == [e.StitchFilm()]
    commands = bare.happens(e.StitchFailed, message="no encoder")
    assert commands == [e.EndRender("cannot_run", "no encoder")]


# -- stopping and going on


def test_a_stop_waits_for_writes_and_sends_nothing_more() -> None:
    bare = Bare(make_plan(frames_for(3))).ready().computes(ENCODE)
    stop = {"outcome": "interrupted", "message": "Ctrl-C"}
    assert bare.happens(e.StopRequested, **stop) == []
    assert only(bare.finishes(step(0, 0)), e.RunUnit) == []
    assert bare.is_stored(ENCODE) == [e.EndRender("interrupted", "Ctrl-C")]


def test_a_resume_asks_only_for_what_is_missing() -> None:
    plan = make_plan(frames_for(3), steps=4, checkpoint_every=2, decode_context=0)
    durable = {ENCODE, piece(0), step(0, 4), step(1, 4), *(step(window, 2) for window in range(3))}
    bare = Bare(plan, durable=durable)
    loads = {load.unit for load in only(bare.start(), e.LoadOutput)}
    assert loads == {ENCODE, step(1, 4), *(step(window, 2) for window in range(3))}
    waiting = {u for u, r in bare.state.book.records.items() if r.status == "waiting"}
    assert waiting == {piece(1), piece(2), step(1, 3), step(2, 3), step(2, 4)}


def test_a_load_is_asked_for_once() -> None:
    bare = Bare(make_plan(frames_for(4)), durable=[ENCODE])
    bare.start()
    bare.joins()
    assert only(bare.log, e.LoadOutput) == [e.LoadOutput(ENCODE)]


def test_leftover_checkpoints_are_deleted_on_resume() -> None:
    bare = Bare(ONE, durable=[ENCODE, step(0, 1), step(0, 2)])
    assert e.DeleteResult(step(0, 1)) in bare.start()


# -- decoding


def decoding(**policy: int) -> Bare:
    """Three windows of which all latents are durable, and two workers."""
    durable = {step(window, 2) for window in range(3)}
    return Bare(THREE, workers=2, durable=durable, **policy).ready()


def test_pieces_of_a_shot_stay_with_one_worker() -> None:
    bare = decoding(depth=1)
    for window in range(3):
        bare.is_loaded(step(window, 2))
    lane = bare.sent(piece(0)).worker
    bare.finishes(piece(0))
    assert bare.sent(piece(1)).worker == lane


def test_a_lane_moves_when_its_worker_is_lost() -> None:
    bare = decoding(depth=2)
    bare.is_loaded(step(0, 2))
    lane = bare.sent(piece(0)).worker
    bare.happens(e.WorkerLost, worker=lane, message="power cut")
    assert bare.sent(piece(0)).worker != lane
    bare.finishes(piece(0))
    bare.is_loaded(step(1, 2))
    assert bare.sent(piece(1)).worker == bare.sent(piece(0)).worker


def test_a_piece_does_not_wait_for_a_lane_that_it_must_avoid() -> None:
    """Piece 2 failed on the worker that now holds the context before it."""
    bare = decoding(depth=2)
    bare.is_loaded(step(0, 2))
    lane = bare.sent(piece(0)).worker
    record = bare.state.book.records[piece(1)]
    record.avoid.add(lane)
    bare.is_loaded(step(1, 2))
    assert bare.sent(piece(1)).worker != lane


def test_latents_are_durable_before_they_are_decoded() -> None:
    bare = Bare(ONE).ready().computes(ENCODE, step(0, 0), step(0, 1))
    assert only(bare.finishes(step(0, 2)), e.RunUnit) == []
    assert [run.unit for run in only(bare.is_stored(step(0, 2)), e.RunUnit)] == [piece(0)]


# -- events that cannot be


def test_an_unknown_event_is_an_error() -> None:
    with pytest.raises(TypeError, match="unknown event"):
        Bare(ONE).happens(e.Event)


def test_the_plan_is_not_touched() -> None:
    plan = replace(ONE)
    to_last_piece(Bare(plan))
    assert plan == ONE
    assert isinstance(next(iter(plan.goals())), Unit)
