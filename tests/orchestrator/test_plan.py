"""The layout of a film: what covers what, what depends on what, what goes first."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.pyramid import parents
from jobs.units import MUCH_MEMORY, DecodeTask, EncodeTask, StepTask, Unit
from orchestrator.plan import MAX_PIECE_LATENT_FRAMES, lay_pieces, lay_windows
from orchestrator.prepare import plan_from_json, plan_to_json
from orchestrator.referee import Referee
from orchestrator.roster import Policy
from orchestrator.simulator import Simulation
from orchestrator.tile_memory import checkpoint_bytes, live_bytes
from tests.marks import few
from tests.orchestrator.plans import GEOMETRY, frames_for, make_plan


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int]:
    """(latent_frames, window, overlap)"""
    window = draw(st.integers(1, 60))
    return draw(st.integers(1, 400)), window, draw(st.integers(0, window - 1))


@given(layouts())
@settings(max_examples=300, deadline=None)
def test_windows_cover_the_shot_evenly(layout: tuple[int, int, int]) -> None:
    latent_frames, window, overlap = layout
    windows = lay_windows(latent_frames, window, overlap)
    assert [w.index for w in windows] == list(range(len(windows)))
    assert windows[0].start == 0
    assert windows[-1].stop == latent_frames
    if latent_frames <= window:
        assert len(windows) == 1
        return
    assert all(w.latent_frames == window for w in windows)
    shifts = [b.start - a.start for a, b in itertools.pairwise(windows)]
    assert min(shifts) >= 1
    assert max(shifts) <= window - overlap, "neighbours overlap by what was asked, or more"
    assert max(shifts) - min(shifts) <= 1, "windows are spread evenly"
    reachable = window + (len(windows) - 2) * (window - overlap)
    assert reachable < latent_frames, "one window less would not do"


@given(layouts())
@settings(max_examples=300, deadline=None)
def test_pieces_partition_the_shot_and_need_no_later_window(layout: tuple[int, int, int]) -> None:
    latent_frames, window, overlap = layout
    windows = lay_windows(latent_frames, window, overlap)
    pieces = lay_pieces(windows, latent_frames)
    assert list(itertools.chain(*(range(*piece) for piece in pieces))) == list(range(latent_frames))
    for start, stop in pieces:
        assert 0 < stop - start <= MAX_PIECE_LATENT_FRAMES
        owner = max(w.index for w in windows if w.start <= start)
        assert stop <= windows[owner].stop
        assert all(w.start >= stop for w in windows[owner + 1 :])


@given(layouts(), st.integers(2, 3))
@settings(max_examples=300, deadline=None)
def test_pieces_are_made_of_whole_batches(layout: tuple[int, int, int], batch: int) -> None:
    """Of an autoencoder that decodes so many latent frames together, and one more at first."""
    latent_frames, window, overlap = layout
    latent_frames += -(latent_frames - 1) % batch
    windows = lay_windows(latent_frames, window, overlap)
    pieces = lay_pieces(windows, latent_frames, batch)
    assert list(itertools.chain(*(range(*piece) for piece in pieces))) == list(range(latent_frames))
    borders = {0, *range(1 + batch, latent_frames, batch)}
    for start, stop in pieces:
        assert start in borders and (stop in borders or stop == latent_frames)
        assert stop - start <= MAX_PIECE_LATENT_FRAMES + batch
    for window_start in (window.start for window in windows):
        last = max(border for border in borders if border <= window_start)
        assert last in {start for start, _ in pieces}, "no piece waits for a later window"


@given(layouts(), st.integers(2, 5))
@settings(max_examples=300, deadline=None)
def test_pieces_of_a_decoder_that_goes_by_tiles(layout: tuple[int, int, int], stride: int) -> None:
    """Tile k's own frames begin behind k * stride; the first tile's with the shot."""
    latent_frames, window, overlap = layout
    pieces = lay_pieces(lay_windows(latent_frames, window, overlap), latent_frames, stride)
    assert list(itertools.chain(*(range(*piece) for piece in pieces))) == list(range(latent_frames))
    assert pieces[0][0] == 0
    for start, stop in pieces[1:]:
        assert start > stride and start % stride == 1 % stride
        assert 0 < stop - start <= MAX_PIECE_LATENT_FRAMES + stride


def test_what_a_piece_depends_on_before_and_behind_it() -> None:
    geometry = replace(GEOMETRY, decode_ahead_latent_frames=2, decode_context_latent_frames=4)
    plan = replace(make_plan(20), geometry=geometry, decode_context=4)
    for goal in plan.goals():
        task = plan.task(goal, 1)
        assert isinstance(task, DecodeTask)
        assert task.warm_start == max(0, task.start - 4)
        assert (task.owned[0][0], task.owned[-1][1]) == (task.warm_start, min(20, task.stop + 2))
    assert len(list(plan.goals())) > 2, "pieces in the middle too"


@pytest.mark.parametrize("overlap", [-1, 6, 7])
def test_an_impossible_overlap_is_refused(overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        lay_windows(20, 6, overlap)


@given(st.integers(1, 5000), st.integers(1, 16))
def test_the_rounding_rule(pixel_frames: int, scale: int) -> None:
    """The least number of latent frames whose 1 + r * (n - 1) pixel frames cover the shot."""
    geometry = replace(GEOMETRY, temporal_scale=scale)
    count = geometry.latent_frames(pixel_frames)
    assert geometry.pixel_frames(count) >= pixel_frames
    assert count == 1 or geometry.pixel_frames(count - 1) < pixel_frames


@given(st.integers(1, 5000), st.integers(1, 16), st.integers(2, 4))
def test_a_shot_is_made_of_whole_batches(pixel_frames: int, scale: int, batch: int) -> None:
    geometry = replace(GEOMETRY, temporal_scale=scale, decode_batch_latent_frames=batch)
    count = geometry.latent_frames(pixel_frames)
    assert (count - 1) % batch == 0
    assert geometry.pixel_frames(count) >= pixel_frames
    assert count == 1 or geometry.pixel_frames(count - batch) < pixel_frames


def test_a_warm_up_begins_with_a_whole_batch() -> None:
    plan = make_plan(21, window=7, overlap=2, decode_context=4)
    geometry = replace(GEOMETRY, decode_batch_latent_frames=2)
    pieces = ((0, 5), (5, 9), (9, 21))
    plan = replace(plan, geometry=geometry, shots=(replace(plan.shots[0], pieces=pieces),))
    assert [plan.warm_start(Unit("decode", 0, index=i)) for i in range(3)] == [0, 0, 5]
    assert [plan.task(Unit("decode", 0, index=i), 1).owned[0][0] for i in range(3)] == [0, 0, 5]


def test_borders_of_batches() -> None:
    found = [replace(GEOMETRY, decode_batch_latent_frames=2).decode_border(n) for n in range(8)]
    assert found == [0, 0, 0, 3, 3, 5, 5, 7]
    assert [GEOMETRY.decode_border(n) for n in range(4)] == [0, 1, 2, 3]


def test_pixel_ranges_join_without_gap() -> None:
    ranges = [GEOMETRY.pixel_range(a, b) for a, b in [(0, 3), (3, 4), (4, 9)]]
    assert ranges == [(0, 9), (9, 13), (13, 33)]


stage_steps = st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple)


decoders = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 3))


@given(layouts(), stage_steps, decoders)
@settings(max_examples=60, deadline=None)
def test_inputs_and_tasks_agree(
    layout: tuple[int, int, int], steps: tuple[int, ...], decoder: tuple[int, int, int]
) -> None:
    """Whatever a decoder sees of the frames before and after, and however many at a time."""
    latent_frames, window, overlap = layout
    context, ahead, batch = decoder
    plan = make_plan(
        min(latent_frames, 120),
        window=window,
        overlap=min(overlap, window // 2),
        stage_steps=steps,
        decode_context=context,
    )
    geometry = replace(GEOMETRY, decode_ahead_latent_frames=ahead, decode_batch_latent_frames=batch)
    windows, count = plan.shots[0].stages[-1].windows, plan.shots[0].render.latent_frames
    shot = replace(plan.shots[0], pieces=lay_pieces(windows, count, batch))
    plan = replace(plan, geometry=geometry, shots=(shot,))
    referee = Referee(plan, {})
    units = list(plan.units())
    assert len(set(units)) == len(units)
    known = set(units)
    for unit in units:
        inputs = plan.inputs(unit)
        assert inputs == referee.inputs(unit), "the slow way finds the same"
        assert set(inputs) <= known
        task = plan.task(unit, 3)
        assert (task.unit, task.attempt) == (unit, 3)
        if isinstance(task, StepTask):
            assert task.window == plan.stage(unit).windows[unit.index]
            before = [name for name in inputs if name.kind == "step"]
            if unit.step:
                assert [name.index for name in before] == [w.index for w in task.covering]
                assert task.parents == ()
            else:
                assert [name.index for name in before] == [w.index for w in task.parents]
                told = [frame for low, high in task.owned for frame in range(low, high)]
                above = parents(task.window.start, task.window.stop, first_alone=True)
                assert told == (list(range(*above)) if unit.stage else [])
        elif isinstance(task, DecodeTask):
            assert [name.index for name in inputs] == [w.index for w in task.windows]
            assert task.owned[0][0] <= task.warm_start <= task.start < task.stop
            assert task.owned[-1][1] == min(task.stop + ahead, count)
            assert all(a[1] == b[0] for a, b in itertools.pairwise(task.owned))
        else:
            assert isinstance(task, EncodeTask)


def test_a_pyramids_coarse_stages_have_few_windows() -> None:
    plan = make_plan(61, window=16, overlap=4, stage_steps=(4, 2, 1))
    stages = plan.shots[0].stages
    assert [(s.stride, s.steps, s.windows[-1].stop) for s in stages] == [
        (4, 4, 16), (2, 2, 31), (1, 1, 61)
    ]  # fmt: skip
    assert [len(stage.windows) for stage in stages] == [1, 3, 5]
    assert plan.model_calls == 1 * 4 + 3 * 2 + 5 * 1
    assert [plan.steps(Unit("step", 0, stage)) for stage in range(3)] == [4, 2, 1]


def test_a_whole_first_stage_is_one_window_that_all_others_wait_for() -> None:
    plan = make_plan(61, window=8, overlap=2, stage_steps=(4, 2, 1), whole_first_stage=True)
    stages = plan.shots[0].stages
    assert [(w.start, w.stop) for w in stages[0].windows] == [(0, 16)]
    assert {w.stop - w.start for stage in stages[1:] for w in stage.windows} == {8}
    for window in stages[1].windows:
        needs = plan.inputs(Unit("step", 0, 1, window.index, 0, 0))
        assert needs == (Unit("encode", 0), Unit("step", 0, 0, 0, 0, 4))
    assert make_plan(5, window=8, overlap=2, stage_steps=(4, 2), whole_first_stage=True) == (
        make_plan(5, window=8, overlap=2, stage_steps=(4, 2))
    ), "a shot that is shorter than a window has one window anyway"


def test_a_step_is_as_long_as_its_window() -> None:
    plan = make_plan(61, 5, window=8, overlap=2, stage_steps=(4, 2), whole_first_stage=True)
    stages, usual = [Unit("step", 0, stage) for stage in range(2)], plan.usual_frames
    assert (usual, [plan.length(unit) for unit in stages]) == (8, [31 / 8, 1.0])
    assert plan.length(Unit("step", 1, 1)) == 5 / 8 and plan.length(Unit("encode", 0)) == 1.0
    assert plan_from_json(plan_to_json(plan)) == plan, "what is reckoned is not stored"


def test_what_is_in_flight_is_counted_stage_by_stage() -> None:
    """A whole first stage is long, but one window; those of the other stages are as ever."""
    whole = make_plan(
        61, window=8, overlap=2, stage_steps=(3, 3), whole_first_stage=True, checkpoint_every=2
    )
    frame_bytes = 8 * 8 * 4 * 4 * 5
    assert live_bytes(whole) == 4 * (31 + 6 * 8) * frame_bytes
    kept = live_bytes(replace(whole, kept_bytes=3100))
    assert kept == live_bytes(whole) + 4 * (3100 + 6 * 800)
    much = live_bytes(replace(whole, kept_bytes=31 * MUCH_MEMORY))
    assert much == live_bytes(whole) + 2 * (31 + 6 * 8) * MUCH_MEMORY, (
        "what one step hands the next"
    )
    short = make_plan(6, 3, steps=3, checkpoint_every=2)
    assert live_bytes(short) == 4 * 6 * frame_bytes


class _Watched(Simulation):
    """Counts the checkpoints that are stored at once."""

    most = 0

    def _tick(self) -> None:
        super()._tick()
        kept = [unit for unit in self.results if unit.kind == "step"]
        self.most = max(self.most, sum(not self.plan.is_last_step(unit) for unit in kept))


@pytest.mark.parametrize("workers", few([1, 4, 16], 4))
@pytest.mark.parametrize("every", [1, 5, 10])
@pytest.mark.parametrize(
    "stage_steps",
    [(12,), pytest.param((30,), marks=pytest.mark.long), (4, 4, 4), (10, 10, 10)],
)
@pytest.mark.parametrize("frames", [(201, 61), (8,) * 24])
def test_no_more_checkpoints_are_stored_than_a_plan_says(
    frames: tuple[int, ...], stage_steps: tuple[int, ...], every: int, workers: int
) -> None:
    plan = make_plan(*frames, window=8, overlap=2, stage_steps=stage_steps, checkpoint_every=every)
    each = checkpoint_bytes(make_plan(8, window=8, steps=2, checkpoint_every=1), 1) // 2
    run = _Watched(plan, Policy(workers=workers))
    run.run()
    told = checkpoint_bytes(plan, workers) // each
    assert run.most <= told and (run.most > 0) == (told > 0)


def test_a_checkpoint_has_what_its_window_keeps() -> None:
    plan = make_plan(61, window=8, overlap=2, steps=12)
    more = checkpoint_bytes(replace(plan, kept_bytes=1000), 2) - checkpoint_bytes(plan, 2)
    assert more == 2 * 10 * 1000


def test_a_window_may_start_when_those_under_it_are_done() -> None:
    plan = make_plan(61, window=16, overlap=4, stage_steps=(4, 2, 1))
    inputs = plan.inputs(Unit("step", 0, 2, 4, 0, 0))
    # Its frames 45 to 60 are frames 23 to 30 of the stage before, whose last window starts at 15.
    assert inputs == (Unit("encode", 0), Unit("step", 0, 1, 2, 0, 2))
    assert plan.is_durable(inputs[1]) and plan.is_last_step(inputs[1])
    first = plan.inputs(Unit("step", 0, 1, 0, 0, 0))
    assert first == (Unit("encode", 0), Unit("step", 0, 0, 0, 0, 4))


def test_the_last_step_calls_no_model_and_needs_no_prompt() -> None:
    plan = make_plan(frames_for(2), steps=3)
    last = Unit("step", 0, 0, 1, 0, 3)
    assert plan.inputs(last) == (Unit("step", 0, 0, 0, 0, 2), Unit("step", 0, 0, 1, 0, 2))
    assert plan.is_last_step(last)
    assert plan.is_durable(last)


def test_checkpoint_lines() -> None:
    plan = make_plan(6, steps=5, checkpoint_every=2)
    lines = [step for step in range(6) if plan.is_durable(Unit("step", 0, step=step))]
    assert lines == [2, 4, 5]


def test_earliest_film_time_goes_first() -> None:
    plan = make_plan(frames_for(3), frames_for(2), steps=2)
    order = sorted(plan.units(), key=plan.priority)
    assert [unit.kind for unit in order[:2]] == ["encode", "encode"], "all prompts at once"
    assert [unit.shot for unit in order[2:]] == sorted(unit.shot for unit in order[2:])
    assert order.index(Unit("decode", 0, index=1)) < order.index(Unit("step", 0, 0, 1, 0, 0))
    steps = [(u.index, u.step) for u in order if u.shot == 0 and u.kind == "step"]
    assert steps == sorted(steps)


def test_reach_grows_by_overlaps() -> None:
    stage = make_plan(frames_for(6), overlap=2).shots[0].stages[0]
    assert stage.reach(0)[2] == (2, 3)
    assert stage.reach(1)[2] == (1, 4)
    assert stage.reach(2)[0] == (0, 3)
    assert stage.reach(99)[3] == (0, 6)


def test_more_than_two_windows_may_cover_a_place() -> None:
    stage = make_plan(24, window=6, overlap=4).shots[0].stages[0]
    assert [w.index for w in stage.covering[3]] == [1, 2, 3, 4, 5]


def test_sums() -> None:
    plan = make_plan(6, frames_for(3), steps=4)
    assert plan.pixel_frames == 21 + GEOMETRY.pixel_frames(frames_for(3))
    assert plan.model_calls == (1 + 3) * 4


@given(st.integers(1, 120), st.integers(2, 12), st.integers(0, 40), st.data())
@settings(max_examples=200, deadline=None)
def test_a_piece_is_told_exactly_the_latents_that_it_decodes(
    latent_frames: int, window: int, context: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    plan = replace(make_plan(latent_frames, window=window, overlap=overlap), decode_context=context)
    for goal in plan.goals():
        task = plan.task(goal, 1)
        assert isinstance(task, DecodeTask)
        told = [frame for low, high in task.owned for frame in range(low, high)]
        assert told == list(range(task.warm_start, task.stop))
        for (low, high), source in zip(task.owned, task.windows, strict=True):
            assert source.start <= low < high <= source.stop
