"""What ``longtake plan`` says, without Ray."""

from __future__ import annotations

import json
import re

import pytest

from tests.cli.conftest import Desk, refusal
from tests.ray.harness import ROOT


def test_plan(desk: Desk, flags: list[str]) -> None:
    ran = desk.run("plan", *flags, "--json")
    assert (ran.code, ran.err) == (0, "")
    report = ran.json()
    assert report["pixel_frames"] == 8 and report["size"] == [64, 64]
    assert report["model_calls"] == 8, "four steps, two guidance branches"
    shot = report["shots"][0]
    assert (shot["prompt"], shot["steps"], shot["seed"]) == ("kite", 4, 3)
    assert shot["stages"][0]["windows"] == [[0, shot["latent_frames"]]]
    assert report["wall_s"] is None and "--step-seconds" in report["wall_basis"]
    assert not desk.store.exists()


def test_the_plan_as_text_and_its_time(
    desk: Desk, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For as many workers as a render would have."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("orchestrator.render.default_workers", lambda plan: 3)
    said = desk.run("plan", *flags, "--step-seconds", "2")
    assert said.code == 0 and said.err == ""
    assert "1.0 s, 8 frames of 64x64 at 8 fps" in said.out
    assert re.search(r"time: \d+ s \(simulated with 3 workers at 2 s a step", said.out)
    report = desk.run("plan", *flags, "--step-seconds", "2", "--json").json()
    assert report["wall_s"] == pytest.approx(8, rel=0.5)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "x"])
def test_a_step_takes_some_time(desk: Desk, flags: list[str], seconds: str) -> None:
    said = refusal(desk.run("plan", *flags, "--step-seconds", seconds), 2)
    assert "--step-seconds" in said


def test_flags_win_over_the_file(desk: Desk) -> None:
    file = desk.job(f"model: {desk.model}\nprompt: a\nseconds: 1\nsize: 64x64\nsteps: 9\n")
    report = desk.run("plan", file, "--steps", "3", "--prompt", "b", "--json").json()
    assert (report["shots"][0]["steps"], report["shots"][0]["prompt"]) == (3, "b")


def test_noise_that_comes_again_is_shown(desk: Desk) -> None:
    file = desk.job(
        f"model: {desk.model}\nprompt: kite\npixel_frames: 60\nsize: 64x64\n"
        "window_latent_frames: 5\noverlap_latent_frames: 1\n"
    )
    ran = desk.run("plan", file, "--repeated-noise", "0.5", "--json")
    assert ran.json()["shots"][0]["repeated_noise"] == {"period": 5, "share": 0.5}
    assert desk.run("plan", file, "--json").json()["shots"][0]["repeated_noise"] is None


def test_the_plan_of_a_pyramid_shows_its_stages(desk: Desk) -> None:
    asked = {"size": [64, 64], "fps": 8, "window_latent_frames": 9, "overlap_latent_frames": 3}
    said = {"version": 1, "model": str(desk.model), "steps": 7, "pyramid": 2, **asked}
    file = desk.job(json.dumps(said | {"shots": [{"prompt": "kite", "pixel_frames": 60}]}))
    ran = desk.run("plan", file)
    assert ran.code == 0, ran.err
    at = next(n for n, line in enumerate(ran.out.splitlines()) if line.startswith("  shot 1:"))
    shot, coarse, fine, other = ran.out.splitlines()[at : at + 4]
    assert "31 latent frames in 5 windows of 9, 7 steps" in shot
    assert coarse == "    stage 1: a frame for every 2 latent frames, 3 windows of 9, 4 steps"
    assert fine == "    stage 2: every latent frame, 5 windows of 9, 3 steps"
    assert "stage" not in other
    assert "trained for no pyramid: expect hardly worse motion" in ran.out
    plain = desk.run("plan", desk.job(json.dumps(
        said | {"pyramid": "off", "shots": [{"prompt": "kite", "pixel_frames": 60}]}
    )))  # fmt: skip
    assert "    stage" not in plain.out


@pytest.mark.parametrize(
    ("first", "frames", "said"), [("whole", 30, True), ("windows", 30, False), ("whole", 60, False)]
)
def test_a_whole_first_stage_that_changes_nothing_is_told(
    desk: Desk, first: str, frames: int, said: bool
) -> None:
    asked = {"size": [64, 64], "fps": 8, "window_latent_frames": 9, "overlap_latent_frames": 3}
    shot = {"shots": [{"prompt": "kite", "pixel_frames": frames}], "pyramid_first_stage": first}
    job = {"version": 1, "model": str(desk.model), "steps": 7, "pyramid": 2, **asked, **shot}
    ran = desk.run("plan", desk.job(json.dumps(job)))
    assert ran.code == 0, ran.err
    assert ("warning: pyramid_first_stage: whole makes no difference here: " in ran.out) == said


def test_a_pyramid_is_asked_for_beside_the_file_and_without_one(
    desk: Desk, flags: list[str]
) -> None:
    asked = {"size": [64, 64], "fps": 8, "window_latent_frames": 9, "overlap_latent_frames": 3}
    shot = {"shots": [{"prompt": "kite", "pixel_frames": 60}], "pyramid_first_stage": "whole"}
    job = {"version": 1, "model": str(desk.model), "steps": 7, "pyramid": 2, **asked, **shot}
    file = desk.job(json.dumps(job))

    def windows(*args: object) -> list[int]:
        stages = desk.run("plan", *args, "--json").json()["shots"][0]["stages"]
        return [len(stage["windows"]) for stage in stages]

    assert windows(file) == [1, 5]
    assert windows(file, "--pyramid", 3) == [1, 3, 5]
    assert windows(file, "--pyramid-first-stage", "windows") == [3, 5]
    assert windows(file, "--pyramid", "off", "--pyramid-first-stage", "windows") == [5]
    for stages in ("5", "on"):
        said = refusal(desk.run("plan", file, "--pyramid", stages), 2)
        assert "'--pyramid': must be off, auto or a whole number from 2 to 4, got" in said
    said = refusal(desk.run("plan", file, "--pyramid-first-stage", "hole"), 2)
    assert "--pyramid-first-stage: unknown value 'hole'; did you mean 'whole'?" in said
    asked = ("--pyramid", 3, "--steps", 2)
    assert "--steps: 2 steps are too few for a pyramid of 3" in desk.refuse(*flags, *asked)
    assert "--pyramid-first-stage: there is no pyramid" in desk.refuse(
        *flags, "--pyramid-first-stage", "whole"
    )


def test_the_example_of_a_long_film(desk: Desk) -> None:
    asked = ("--model", "demo-pyramid", "--pyramid-first-stage", "whole", "--seconds", 120)
    beside = ("--seed", 7, "--prompt", "a red circle bounces on a blue background")
    by_file, by_options = (
        desk.run("plan", *args, "--json").json()["shots"]
        for args in ([f"{ROOT}/examples/long.yaml"], [*asked, *beside])
    )
    assert by_file == by_options
    assert [len(stage["windows"]) for stage in by_file[0]["stages"]] == [1, 60, 120]


def test_a_plan_of_a_bad_job_is_refused_like_its_render(desk: Desk) -> None:
    said = refusal(desk.run("plan", desk.job("prompt: a\nseconds: 0\n")), 2)
    assert "film.yaml:2:1: seconds: must be more than 0" in said
