"""``longtake calibrate``: a plan of attention is found, drawn, and used by jobs of that size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.prepare import plan_from_json, plan_to_json, prepare
from tests.cli.conftest import Desk, Ran, refusal
from tests.workers.tiny_animatediff import write_tiny_animatediff


@pytest.mark.slow
def test_a_plan_is_found_drawn_and_used(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.spec import JobSpec

    monkeypatch.setenv("LONGTAKE_PLANS", str(desk.folder / "plans"))
    asked = {
        "version": 1, "model": str(desk.model), "prompt": "kite", "seconds": 1, "size": [32, 32],
        "steps": 4, "fps": 8,
    }  # fmt: skip
    fast = asked | {"accelerations": {"fast_attention": {}}}
    file = desk.folder / "fast.yaml"
    file.write_text(json.dumps(fast))  # YAML reads JSON
    said = refusal(desk.run("plan", "fast.yaml"), 2)
    assert "fast_attention: no attention plan for model " in said
    assert "longtake calibrate finds one" in said

    ran = desk.run("calibrate", "fast.yaml", "--delta", "9", "--picture", "plan.png", "--json")
    assert ran.code == 0, ran.err
    shares = ran.json()["shares"]
    assert sum(shares.values()) == pytest.approx(1) and shares["full"] < 0.5
    assert "step 4 of 4: loss " in ran.err
    assert (desk.folder / "plan.png").read_bytes().startswith(b"\x89PNG")

    plan = prepare(JobSpec.model_validate(fast)).plan
    kept = plan.accelerations.fast_attention
    assert kept is not None and kept.plan is not None and kept.plan.steps == 4
    stored = plan_from_json(json.loads(json.dumps(plan_to_json(plan))))
    assert stored == plan, "a job that is planned needs no file any more"
    assert desk.run("plan", "fast.yaml", "--json").json()["accelerations"]["fast_attention"]
    assert "no attention plan" in refusal(desk.run("plan", "fast.yaml", "--steps", "5"), 2)

    (found,) = (path for path in (desk.folder / "plans").iterdir() if "search" not in path.name)
    record = json.loads(found.read_text())
    record["rows"] = [["full"] * len(row) for row in record["rows"]]
    found.write_text(json.dumps(record))
    said = refusal(desk.run("plan", "fast.yaml"), 2)
    assert "fast_attention: does nothing: the plan" in said and "larger --delta" in said


def test_plans_are_not_searched_for_pyramids(desk: Desk, tmp_path: Path) -> None:
    (desk.folder / "film.yaml").write_text(
        f"model: {desk.model}\nprompt: a\nseconds: 1\nsize: 32x32\nsteps: 4\npyramid: 2\n"
    )
    said = refusal(desk.run("calibrate", "film.yaml", "--plans", tmp_path), 2)
    assert "calibration is for renders without a pyramid yet; say pyramid: off" in said


def test_key_steps_are_found(tmp_path: Path, longtake: Callable[..., Ran]) -> None:
    model = write_tiny_animatediff(tmp_path / "model")
    ran = longtake(
        "calibrate", "--model", model, "--prompt", "kite", "--seconds", "1", "--size", "32x32",
        "--steps", "5", "--rehash", "1.0", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json() == {"steps": 5, "key_steps": [[0, 1, 2, 3, 4]]}
    ran = longtake(
        "calibrate", "--model", model, "--prompt", "kite", "--seconds", "1", "--size", "32x32",
        "--steps", "5", "--rehash", "0.0",
    )  # fmt: skip
    assert ran.out == (
        "2 key steps of 5; use them: accelerations: {rehash: {key_steps: [[0, 4]]}}\n"
    )
