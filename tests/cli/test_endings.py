"""How a command ends: its exit code, and what it says then."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from jobs import errors
from jobs.units import Unit
from orchestrator import cli_planning
from orchestrator.engagement import engagement
from orchestrator.events import EndRender, Outcome
from orchestrator.show import EXIT_CODES
from tests.cli.conftest import Desk
from tests.ray.harness import Ran

OUTCOMES = {
    "done": 0,
    "failed": 3,
    "cancelled": 4,
    "timeout": 5,
    "cannot_run": 6,
    "store_failed": 6,
    "conflict": 7,
    "interrupted": 130,
}

ERRORS = {
    errors.BadJob: 2,
    errors.CannotRunHere: 6,
    errors.StoreError: 6,
    errors.StoreFull: 6,
    errors.DamagedRecord: 6,
    errors.StoreConflict: 7,
}


def test_every_outcome_has_its_exit_code() -> None:
    assert EXIT_CODES == OUTCOMES
    assert set(get_args(Outcome)) == set(OUTCOMES)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_render_ends_with_the_code_of_its_outcome(
    desk: Desk, flags: list[str], outcome: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = EndRender(outcome, "why it ended")
    monkeypatch.setattr("orchestrator.render._Render._sessions", lambda self: ended)
    ran = desk.render(*flags, "--out", "film.mp4")
    assert (ran.code, ran.out) == (OUTCOMES[outcome], "")
    job = os.listdir(desk.store / "jobs")[0]
    assert f"job {job} in {desk.store}, model {desk.model}" in ran.err
    if outcome == "done":
        assert f"next: longtake verify {job} --store {desk.store}" in ran.err
    else:
        assert "why it ended" in ran.err
        to_resume = f"longtake resume {job} --store {desk.store}"
        assert (to_resume in ran.err) == (outcome != "conflict")


def test_an_acceleration_that_did_nothing_is_an_error_and_the_film_is_kept(
    desk: Desk, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Again when the job is resumed, whose steps are all there by then."""
    counts: dict[int, dict[str, int]] = {n: {"adaptive.computed": 1} for n in range(5)}

    def render(render: Any) -> EndRender:
        steps = [unit for unit in render._plan.units() if unit.kind == "step" and unit.step < 5]
        noted = [engagement(unit, counts[unit.step]) for unit in steps if unit.step in counts]
        render._journal.append(noted)
        counts.clear()
        return EndRender("done", "")

    monkeypatch.setattr("orchestrator.render._Render._sessions", render)
    file = desk.job("accelerations: {adaptive: {threshold: 0.5}}\n")
    args = [file, *flags, "--steps", "5", "--out", "film.mp4"]
    ran = desk.render(*args)
    wrong = "longtake: adaptive did nothing: skipped the model in 0 of 5 steps of tiles"
    assert (ran.code, ran.out) == (9, "")
    assert ran.err.count(wrong) == 1 and ran.err.count("longtake: ") == 1
    assert "a higher threshold than 0.5 skips more" in ran.err
    assert f"{desk.folder / 'film.mp4'}: 1.0 s" in ran.err, "it is finished"
    (job,) = os.listdir(desk.store / "jobs")
    assert f"next: longtake verify {job}" in ran.err
    ran = desk.run("resume", job, "--store", desk.store, "--json")
    assert (ran.code, ran.err.count(wrong)) == (9, 1)
    assert (ran.json()["state"], ran.json()["idle"]) == ("done", ["adaptive"])
    assert ran.json()["message"].startswith("adaptive did nothing")
    shown = desk.run("show", job, "--store", desk.store)
    assert shown.code == 0 and "adaptive did nothing" in shown.out
    counts |= {1: {"adaptive.skipped": 1}}
    ran = desk.run("resume", job, "--store", desk.store)
    assert ran.code == 0 and "adaptive: skipped the model in 1 of 5 steps of tiles" in ran.err


def test_a_film_whose_steps_are_not_all_counted_is_no_error(
    desk: Desk, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that was killed lost its last records, which may have told of a skip."""

    def render(render: Any) -> EndRender:
        steps = [Unit("step", 0, step=step) for step in (0, 2, 3, 4)]
        render._journal.append([engagement(step, {"adaptive.computed": 1}) for step in steps])
        return EndRender("done", "")

    monkeypatch.setattr("orchestrator.render._Render._sessions", render)
    file = desk.job("accelerations: {adaptive: {threshold: 0.5}}\n")
    ran = desk.render(file, *flags, "--steps", "5", "--out", "film.mp4")
    said = "adaptive: skipped the model in 0 of 4 steps of tiles; whether it did anything is not"
    assert ran.code == 0 and said in ran.err and "did nothing" not in ran.err
    (job,) = os.listdir(desk.store / "jobs")
    assert said in desk.run("show", job, "--store", desk.store).out


@pytest.mark.parametrize("outcome", ["interrupted", "failed"])
def test_a_film_that_is_not_done_may_still_engage(
    desk: Desk, flags: list[str], outcome: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(render: Any) -> EndRender:
        render._journal.append([engagement(Unit("step", 0), {"adaptive.computed": 1})])
        return EndRender(outcome, "why")

    monkeypatch.setattr("orchestrator.render._Render._sessions", render)
    file = desk.job("accelerations: {adaptive: {threshold: 0.5}}\n")
    ran = desk.render(file, *flags, "--steps", "5")
    assert ran.code == OUTCOMES[outcome] and "did nothing" not in ran.err


@pytest.mark.parametrize(
    "raises", ["Lease.acquire", "Journal.open", "_Render._sessions", "_note_end"]
)
@pytest.mark.parametrize(
    ("error", "code", "state"),
    [
        (errors.StoreFull, 6, "failed"),
        (errors.CannotRunHere, 6, "failed"),
        (errors.StoreConflict, 7, "rendering"),
    ],
)
def test_wherever_a_render_ends_it_says_how_to_go_on(
    desk: Desk,
    flags: list[str],
    raises: str,
    error: Any,
    code: int,
    state: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: Any, **flags: Any) -> None:
        raise error("what happened")

    monkeypatch.setattr("orchestrator.render._Render._sessions", lambda self: EndRender("done", ""))
    monkeypatch.setattr(f"orchestrator.render.{raises}", fail)
    ran = desk.render(*flags, "--json")
    assert (ran.code, ran.json()["state"]) == (code, state)
    assert ran.err.count("what happened") == 1 and "Traceback" not in ran.err
    job = os.listdir(desk.store / "jobs")[0]
    assert (f"longtake resume {job} --store {desk.store}" in ran.err) == (code == 6)


def test_json_of_a_render_stands_alone_on_standard_output(
    desk: Desk, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = EndRender("timeout", "why")
    monkeypatch.setattr("orchestrator.render._Render._sessions", lambda self: ended)
    ran = desk.render(*flags, "--json")
    assert ran.code == 5
    report = ran.json()
    assert report["id"] in os.listdir(desk.store / "jobs")
    assert (report["outcome"], report["message"]) == ("timeout", "why")
    assert report["state"] == "interrupted", "as `ls` says"
    assert report["pixel_frames"] == report["fps"] == 8


def test_json_names_the_file_that_had_the_films_name(
    desk: Desk, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(render: Any) -> EndRender:
        film = {"type": "film", "key": "film", "path": "film.mp4", "sha256": "0" * 64}
        render._journal.append([film | {"kept": "film.1.mp4"}])
        return EndRender("done", "film.mp4")

    monkeypatch.setattr("orchestrator.render._Render._sessions", render)
    ran = desk.render(*flags, "--json")
    assert (ran.code, ran.json()["kept"]) == (0, "film.1.mp4")


@pytest.mark.parametrize("fails", [False, True])
def test_what_becomes_of_the_latents_is_in_the_one_object(
    desk: Desk, flags: list[str], fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(*args: Any) -> None:
        if fails:
            raise errors.StoreError("the latents are gone")

    monkeypatch.setattr("orchestrator.render._Render._sessions", lambda self: EndRender("done", ""))
    monkeypatch.setattr("orchestrator.cli.export_latents", export)
    ran = desk.render(*flags, "--json", "--save-latents", "a.safetensors")
    told = ran.json()
    assert (ran.code, told["state"], told["kept"]) == (6 if fails else 0, "done", "")
    assert told["latents"] == (None if fails else "a.safetensors")
    assert told.get("error") == ("the latents are gone" if fails else None)
    assert told.get("exit_code", 0) == ran.code
    assert ("longtake: the latents are gone" in ran.err) == fails


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_has_its_exit_code(
    desk: Desk, error: type[errors.LongtakeError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **flags: Any) -> None:
        raise error("what happened, where, and the fix")

    monkeypatch.setattr(cli_planning, "prepared_job", fail)
    ran = desk.run("plan", "--prompt", "x", "--seconds", "1")
    assert (ran.code, ran.out) == (ERRORS[error], "")
    assert ran.err == "longtake: what happened, where, and the fix\n"


def test_a_bug_of_ours_is_one_line_and_a_file(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_planning, "prepared_job", lambda *args, **flags: {}["nothing"])
    monkeypatch.setattr("tempfile.tempdir", str(desk.folder))
    ran = desk.run("plan", "--prompt", "x", "--seconds", "1")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("longtake: internal error: KeyError: 'nothing'")
    assert "Traceback" not in ran.err
    log = Path(re.search(r"\S+\.log", ran.err)[0])
    assert "Traceback" in log.read_text() and "KeyError: 'nothing'" in log.read_text()
    assert oct(log.stat().st_mode)[-3:] == "600", "a trace may hold a prompt"


def test_ctrl_c_before_the_render(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **flags: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_planning, "prepared_job", interrupted)
    ran = desk.run("plan", "--prompt", "x", "--seconds", "1")
    assert ran == Ran(130, "", "longtake: interrupted\n")


# -- leaving at once

STOPS = """
import os, signal, sys, time
from orchestrator.stops import Stops
class Lease: lost = False
stops = Stops(Lease(), None, "longtake resume kite-1")
with stops.listening():
    os.kill(os.getpid(), signal.SIGINT)
    assert stops.reason(time.monotonic()) == ("interrupted", "Ctrl-C")
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


def test_a_second_ctrl_c_leaves_at_once_and_says_how_to_go_on() -> None:
    """On a terminal it shows the cursor again, which the progress bars hide."""
    ours, theirs = os.openpty()
    process = subprocess.run([sys.executable, "-c", STOPS], stderr=theirs, timeout=60)
    os.close(theirs)
    said = os.read(ours, 1000).decode()
    os.close(ours)
    assert process.returncode == 130
    assert said.startswith("\x1b[?25h") and "To go on: longtake resume kite-1" in said
