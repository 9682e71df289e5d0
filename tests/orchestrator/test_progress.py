"""What a person sees of a render, fed as the driver feeds it, without a cluster."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from jobs.units import Unit
from orchestrator import events as e
from orchestrator.plan import Plan
from orchestrator.progress import LINE_EVERY_S, SAME_LINE_EVERY_S, RenderProgress, clock
from tests.orchestrator.bare import ENCODE, Bare, piece, step
from tests.orchestrator.plans import frames_for, make_plan

FILM_S = make_plan(6).pixel_frames / 16


class Watched(Bare):
    """Shows every event before the state has it, and every command, as the driver does."""

    def __init__(self, progress: RenderProgress, plan: Plan, **options: Any) -> None:
        super().__init__(plan, **options)
        self.progress = progress

    def happens(self, event: type[e.Event], **fields: Any) -> list[e.Command]:
        self.progress.saw(event(at_s=self.now_s, **fields), self.state)
        commands = super().happens(event, **fields)
        for command in commands:
            self.progress.did(command, self.state)
        return commands

    def dies(self, worker: str, message: str = "killed") -> None:
        self.happens(e.WorkerLost, worker=worker, message=message)


class Screen:
    """A progress, what it wrote, and the renders that it watches."""

    def __init__(self, plan: Plan, *, terminal: bool = False, quiet: bool = False) -> None:
        self.plan = plan
        self.written = StringIO()
        console = Console(
            file=self.written, force_terminal=terminal, force_interactive=terminal, width=100
        )
        self.progress = RenderProgress(plan, console=console, quiet=quiet)

    def session(self, *, durable: Iterable[Unit] = (), workers: int = 1) -> Watched:
        return Watched(self.progress, self.plan, durable=durable, workers=workers)

    def lines(self) -> list[str]:
        return self.written.getvalue().splitlines()

    def last(self, render: Watched) -> str:
        """What was said last of the film, the next time that a line is due."""
        render.passes(LINE_EVERY_S)
        return [line for line in self.lines() if line.startswith("[")][-1]


def share(line: str) -> int:
    return int(re.search(r"(\d+) %", line)[1])


# -- without a terminal


def test_lines_from_the_first_event_to_the_last_piece() -> None:
    screen = Screen(make_plan(6, steps=4))
    render = screen.session()
    render.start()
    assert re.fullmatch(
        rf"\[\d\d:\d\d:\d\d\]   0 %  0.0 of {FILM_S:.1f} s ready, loading the model",
        screen.lines()[0],
    )
    assert "loading the model" in screen.last(render)
    render.joins()
    assert "ETA once a step is done" in screen.last(render)
    render.computes(ENCODE)
    assert "ETA once a step is done" in screen.last(render)
    render.computes(*(step(0, number) for number in range(5)))
    render.is_stored(step(0, 4))
    render.computes(piece(0))
    assert share(screen.last(render)) == 100
    assert f"0.0 of {FILM_S:.1f} s ready" in screen.last(render), "computed, but not stored"
    render.is_stored(piece(0))
    assert screen.last(render).endswith(f"{FILM_S:.1f} of {FILM_S:.1f} s ready"), "nothing is left"


def test_the_eta_counts_the_workers_and_names_its_basis() -> None:
    screen = Screen(make_plan(6, steps=10, checkpoint_every=20))
    render = screen.session().ready()
    render.computes(ENCODE)
    for number in range(4):
        render.finishes(step(0, number), elapsed_s=60.0)
    # Six steps of a minute, the last one that only settles, and a piece as dear as a step.
    assert "ETA about 7:03 (from 4 steps)" in screen.last(render)

    two = Screen(make_plan(6, 6, steps=10, checkpoint_every=20))
    render = two.session(workers=2).ready()
    assert len(render.state.roster.joined()) == 2
    render.computes(ENCODE, Unit("encode", 1))
    for number in range(2):
        render.finishes(step(0, number), elapsed_s=60.0)
    # Eighteen steps, two settles, two pieces, shared by two; encoding took a second each.
    assert "ETA about 10:03 (from 2 steps)" in two.last(render)
    render.dies("w2")
    assert "ETA about 20:06 (from 2 steps)" in two.last(render)


def test_the_eta_is_there_from_the_first_step_and_is_rough_while_something_is_guessed() -> None:
    plan = make_plan(frames_for(3), steps=2)
    pieces = len(plan.shots[0].pieces)
    screen = Screen(plan)
    render = screen.session().ready()
    render.computes(ENCODE)
    render.finishes(step(0, 0), elapsed_s=60.0)
    # Five steps of a minute, three that only settle, and pieces as dear as a step.
    assert f"ETA about {clock(60 * (5 + 0.15 + pieces))} (from 1 step)" in screen.last(render)
    while (unit := next(iter(render.state.workers["w1"].queue))).kind == "step":
        render.finishes(unit, elapsed_s=60.0)
        if plan.is_durable(unit):
            render.is_stored(unit)
    assert "ETA about " in screen.last(render), "no piece was measured yet"
    render.finishes(unit, elapsed_s=20.0)
    assert pieces > 1 and re.search(r"ETA \d+:\d\d \(from \d steps\)", screen.last(render))


def test_a_second_worker_does_not_help_a_single_window() -> None:
    screen = Screen(make_plan(6, steps=10, checkpoint_every=20))
    render = screen.session(workers=2).ready()
    render.computes(ENCODE)
    for number in range(4):
        render.finishes(step(0, number), elapsed_s=60.0)
    assert "ETA about 7:03 (from 4 steps)" in screen.last(render)


def test_a_resumed_render_that_only_decodes_has_an_eta() -> None:
    plan = make_plan(frames_for(3), steps=4)
    pieces = len(plan.shots[0].pieces)
    screen = Screen(plan)
    render = screen.session(durable=[ENCODE, *(step(window, 4) for window in range(3))]).ready()
    assert screen.last(render).endswith(", ETA once a piece is done")
    for window in range(3):
        render.is_loaded(step(window, 4))
    render.finishes(piece(0), elapsed_s=30.0)
    assert pieces > 1
    assert f"ETA about {clock(30 * (pieces - 1))} (from 1 piece)" in screen.last(render)


def test_the_eta_knows_that_long_windows_take_longer() -> None:
    plan = make_plan(61, window=8, stage_steps=(4, 2), whole_first_stage=True, checkpoint_every=20)
    screen = Screen(plan)
    render = screen.session().ready()
    render.computes(ENCODE)
    for number in range(2):
        render.finishes(step(0, number), elapsed_s=310.0)
    # Eighty seconds a step of 8 frames, a piece as dear, one that only settles far less.
    windows, pieces = len(plan.shots[0].stages[1].windows), len(plan.shots[0].pieces)
    left_s = 2 * 310 + 80 * (2 * windows + 0.05 * (1 + windows) + pieces)
    assert f"ETA about {clock(left_s)} (from 2 steps)" in screen.last(render)


def test_a_line_now_and_then_only_and_the_same_one_hardly_ever() -> None:
    screen = Screen(make_plan(6, steps=40, checkpoint_every=40))
    render = screen.session().ready()
    for _ in range(100):
        render.passes(SAME_LINE_EVERY_S / 50)
    assert len(screen.lines()) == 3, "before the worker was ready, and twice after"
    render.computes(ENCODE)
    for number in range(40):
        render.passes(LINE_EVERY_S / 4)
        render.finishes(step(0, number))
    assert 12 <= len(screen.lines()) <= 14


def test_a_lost_worker_is_told_once() -> None:
    screen = Screen(make_plan(6, steps=4))
    render = screen.session(workers=2).ready()
    for _ in range(3):  # each unit that it had tells of it
        render.dies("w1", "killed by signal 9")
    told = [line for line in screen.lines() if "was lost" in line]
    assert told == ["worker w1 was lost: killed by signal 9"]


def test_a_stopped_worker_is_not_lost_as_well() -> None:
    screen = Screen(make_plan(6, steps=4))
    render = Watched(screen.progress, screen.plan, first_unit_limit_s=5.0).ready()
    render.passes(6.0)
    render.dies("w1", "killed")
    assert any("worker w1 is stopped: hangs" in line for line in screen.lines())
    assert not any("was lost" in line for line in screen.lines())


def test_a_late_report_of_a_worker_that_was_given_up_does_not_count() -> None:
    screen = Screen(make_plan(6, steps=4))
    render = screen.session().ready()
    sent = render.sent(ENCODE)
    render.dies("w1")
    render.happens(e.UnitFinished, unit=ENCODE, attempt=sent.attempt, worker="w1", elapsed_s=1.0)
    assert share(screen.last(render)) == 0


# -- sessions


def test_a_new_session_counts_from_what_is_stored() -> None:
    """A render of one window, ten steps, one piece: 13 units."""
    screen = Screen(make_plan(6, steps=10, checkpoint_every=4))
    first = screen.session().ready()
    first.computes(ENCODE)
    first.is_stored(ENCODE)
    first.computes(*(step(0, number) for number in range(5)))
    first.is_stored(step(0, 4))
    first.computes(step(0, 5), step(0, 6))
    assert share(screen.last(first)) == round(100 * 8 / 13)

    # The cluster died: steps 5 and 6 are lost, and will be computed again.
    again = screen.session(durable=first.state.book.durable)
    again.now_s = first.now_s
    again.start()
    assert share(screen.last(again)) == round(100 * 6 / 13)
    again.joins()
    again.is_loaded(ENCODE)
    again.is_loaded(step(0, 4))
    again.computes(step(0, 5), step(0, 6), step(0, 7))
    assert share(screen.last(again)) == round(100 * 9 / 13)
    assert "(from 10 steps)" in screen.last(again), "what was measured before still holds"
    again.dies("w1")
    assert "worker w1 was lost: killed" in screen.lines(), "a name of the first session too"


def test_a_resumed_render_begins_where_it_stopped() -> None:
    plan = make_plan(frames_for(3), steps=4)
    low, high = plan.geometry.pixel_range(*plan.shots[0].pieces[0])
    last = [step(window, 4) for window in range(3)]
    screen = Screen(plan)
    render = screen.session(durable=[ENCODE, *last, piece(0)])
    render.start()
    found, line = screen.lines()
    assert found == "found in the store: 5 results; only what is missing is computed"
    assert share(line) == round(100 * (1 + 3 * 5 + 1) / (1 + 3 * 5 + 3))
    assert f"{(high - low) / plan.fps:.1f} of " in line


def test_a_render_whose_results_are_all_stored_says_that_nothing_is_computed() -> None:
    """As if the job before had been this one."""
    plan = make_plan(6, steps=4)
    screen = Screen(plan)
    screen.session(durable=filter(plan.is_durable, plan.units())).start()
    assert screen.lines()[0] == (
        "found in the store: 4 results, all that the film needs; no step is computed"
    )
    assert screen.lines()[1].endswith(f"100 %  {FILM_S:.1f} of {FILM_S:.1f} s ready")


def test_the_running_count_is_the_count_of_all_pieces() -> None:
    """Frames trimmed from the end of a shot are in no piece."""
    plan = make_plan(frames_for(3), 7, 1, steps=2)
    progress = Screen(plan).progress
    progress._tally.begin(plan.units())
    assert progress._tally.playable_frames == plan.pixel_frames
    assert not any(progress._tally.left().values())
    assert progress._tally.done.total() == sum(1 for _ in plan.units())
    progress._tally.begin(plan.units())
    assert progress._tally.done.total() == sum(1 for _ in plan.units())


def test_damage_takes_back_what_was_done() -> None:
    plan = make_plan(frames_for(2), steps=4)
    screen = Screen(plan)
    render = screen.session(durable=plan.units()).ready()
    assert share(screen.lines()[1]) == 100
    lost = (piece(0),)
    render.happens(e.StitchFailed, message="it is damaged", lost=lost)
    said = screen.lines()
    assert "shot 1 piece 1: it is damaged; it is set aside, and computed again" in said
    assert share(screen.last(render)) == round(100 * 12 / 13)
    assert f"{plan.pixel_frames / 16:.1f} of {plan.pixel_frames / 16:.1f}" not in screen.lines()[-1]
    render.happens(e.LoadFailed, unit=step(0, 4), message="it is damaged too")
    assert share(screen.last(render)) == round(100 * 11 / 13)


# -- on a terminal


def test_bars_on_a_terminal() -> None:
    screen = Screen(make_plan(6, steps=4), terminal=True)
    with screen.progress as progress:
        render = screen.session().ready()
        progress._bars.refresh()
        assert "loading the model" not in screen.lines()[-1]
        render.computes(ENCODE, step(0, 0), step(0, 1))
        progress._bars.refresh()
        drawn = screen.written.getvalue()
        assert "w1" in drawn and "shot 1 window 1 step 2/4" in drawn
        assert f"0.0 of {FILM_S:.1f} s ready, ETA about 0:0" in drawn and "(from 2 steps)" in drawn
        assert not re.search(r"\[\d\d:\d\d:\d\d\]", drawn), "bars, so no lines"
        render.dies("w1")
        progress.say("a line that stays")
    assert screen.written.getvalue().count("worker w1 was lost") == 1
    assert "a line that stays" in screen.written.getvalue()


def test_events_do_not_draw() -> None:
    """The bars are drawn at their own pace, not once per event."""
    plan = make_plan(frames_for(40), steps=10, checkpoint_every=100)
    screen = Screen(plan, terminal=True)
    with screen.progress:
        render = screen.session().ready()
        render.computes(ENCODE)
        before = len(screen.written.getvalue())
        for _ in range(40):
            run = next(iter(render.state.workers["w1"].queue))
            render.finishes(run)
        assert len(screen.written.getvalue()) - before < 20 * 400


def test_an_event_of_a_long_film_costs_no_more() -> None:
    plan = make_plan(frames_for(300), steps=50, checkpoint_every=50)
    half = [unit for unit in plan.units() if plan.is_durable(unit) and unit.index < 150]
    screen = Screen(plan, terminal=True)
    render = screen.session(durable=half).ready()
    render.is_loaded(ENCODE)
    run = next(c for c in render.log if isinstance(c, e.RunUnit))
    event = e.UnitFinished(at_s=0.0, unit=run.unit, attempt=run.attempt, worker="w1", elapsed_s=1.0)
    begun_s = time.perf_counter()
    for _ in range(100):
        screen.progress.saw(event, render.state)
    assert (time.perf_counter() - begun_s) / 100 < 1e-3, "15,000 units are counted each time"


# -- where it goes


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_but_its_stream_is_written(
    terminal: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    screen = Screen(make_plan(6, steps=4), terminal=terminal)
    with screen.progress:
        screen.session().ready().computes(ENCODE, step(0, 0))
        print("data")
    assert screen.written.getvalue()
    assert capfd.readouterr() == ("data\n", "")


def test_by_default_it_is_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(6, steps=4)
    with RenderProgress(plan) as progress:
        Watched(progress, plan).ready()
    out, err = capfd.readouterr()
    assert out == "" and "0 %" in err


def test_quiet() -> None:
    screen = Screen(make_plan(6, steps=4), quiet=True)
    with screen.progress:
        screen.session().ready().computes(ENCODE).dies("w1")
    assert screen.written.getvalue() == ""
