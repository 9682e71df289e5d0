"""``longtake presets JOB``: each preset on the job's own model, against the full render."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from diffusers import WanTransformer3DModel
from PIL import Image

from benchmarks.here import render_here
from jobs.errors import UnitError
from jobs.presets import PRESETS
from jobs.spec import JobSpec
from orchestrator import try_presets
from orchestrator.prepare import Prepared, prepare
from orchestrator.try_presets import _Rendered, _windows_of, row
from tests.cli.conftest import Desk, Ran, refusal
from tests.marks import few
from tests.orchestrator.plans import make_plan
from tests.workers.tiny_families import KINDS, tiny_family
from workers.fidelity import compare

SKIPPING = {"adaptive": {"form": "tensor", "threshold": 100.0, "most_skips": 4}}


@pytest.fixture(autouse=True)
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGTAKE_PLANS", str(tmp_path / "plans"))
    return tmp_path / "plans"


def job(model: Path, **more: Any) -> dict[str, Any]:
    shot = {"prompt": "a red ball", "pixel_frames": 5}
    return {"version": 1, "model": str(model), "size": "32x32", "steps": 8, "shots": [shot]} | more


def tried(desk: Desk, asked: dict[str, Any], *flags: object) -> dict[str, Any]:
    ran = desk.run("presets", desk.job(yaml.safe_dump(asked)), "--json", *flags)
    assert ran.code == 0, ran.err
    return dict(json.loads(ran.out))


def test_all_presets_and_what_the_job_asks_for(desk: Desk, plans: Path) -> None:
    asked = job(desk.model, accelerations=SKIPPING, preset="fast")
    report = tried(desk, asked)
    rows = {row["name"]: row for row in report["presets"]}
    assert [*rows] == [*PRESETS, "this job"]
    assert rows["exact"]["psnr_db"] is None and rows["exact"]["speed"] == 1.0
    own = rows["this job"]
    assert own["did"] == ["adaptive skipped the model in 4 of 8 steps of tiles"]

    plain = render_here(asked | {"accelerations": {}, "preset": "exact"})
    mine = compare(render_here(asked).frames, plain.frames).summary()
    assert own["psnr_db"] == own["worst_psnr_db"] == pytest.approx(mine["psnr_db"])
    assert own["worst_ssim"] == pytest.approx(mine["ssim"])


@pytest.mark.long
def test_the_picture_shows_each_shot_by_each_preset(desk: Desk, tmp_path: Path) -> None:
    out = tmp_path / "stills.png"
    shots = [{"prompt": "a red ball", "pixel_frames": n} for n in (5, 3)]
    report = tried(desk, job(desk.model, shots=shots), "--picture", out)
    pasted = np.asarray(Image.open(out).convert("RGB"))
    row_px, top_px = 32 + 16 + 6, 6  # a still, its caption and a margin
    assert len(pasted) == top_px + 2 * len(report["presets"]) * row_px
    full = render_here(job(desk.model, shots=shots)).frames
    top = top_px + len(report["presets"]) * row_px + 16  # of the second shot's full render
    first_still = pasted[top : top + 32, 6 : 6 + 32]
    assert np.array_equal(first_still, full[5]), "shot 2 begins behind the five frames of shot 1"
    assert "--picture shows what was tried" in refusal(desk.run("presets", "--picture", out), 2)
    path = desk.job(yaml.safe_dump(job(desk.model)))
    assert "stills.gif" in refusal(desk.run("presets", path, "--picture", "stills.gif"), 2)


@pytest.mark.long
def test_what_was_tried_is_listed_and_a_later_trial_takes_its_place(
    desk: Desk, plans: Path
) -> None:
    asked = job(desk.model)
    first = tried(desk, asked)
    again = tried(desk, asked)
    (path,) = plans.glob("tried-presets-*.json")  # of both
    assert json.loads(path.read_text()) == again
    assert first["presets"][1]["psnr_db"] == again["presets"][1]["psnr_db"]
    for number, odd in enumerate(("{", "null", "{}", '{"format": 0}')):
        (plans / f"tried-presets-{number}.json").write_text(odd)
    changed = dict(again, presets=[dict(each, accelerations={}) for each in again["presets"]])
    (plans / "tried-presets-of-old-presets.json").write_text(json.dumps(changed))
    rows = {row["name"]: row for row in json.loads(desk.run("presets", "--json").out)}
    (here,) = rows["fast"]["tried_here"]
    assert here["model"] == str(desk.model) and here["size"] == [32, 32]
    gone = again | {"model": str(desk.folder / "gone")}
    (plans / "tried-presets-gone.json").write_text(json.dumps(gone))
    said = desk.run("presets").out
    assert "gone" not in said
    assert f"here: {desk.model}, 8 steps of 32x32, 1 shot of up to 5 frames, float32 on" in said
    halved = asked | {"decoder_dtype": "bfloat16"}
    assert tried(desk, halved)["decoder_dtype"] == "bfloat16"
    assert path.exists() and ", float32, decoded in bfloat16 on" in desk.run("presets").out


@pytest.mark.long
def test_one_model_at_a_time_is_in_memory(desk: Desk) -> None:
    before = {id(each) for each in transformers()}
    gc.disable()
    try:
        tried(desk, job(desk.model))
        assert len([each for each in transformers() if id(each) not in before]) == 1
    finally:
        gc.enable()


def transformers() -> list[WanTransformer3DModel]:
    return [each for each in gc.get_objects() if type(each) is WanTransformer3DModel]


#: By latent frames of a window, the pixel frames of the shots that are tried.
LONGEST = [(3, [5, 5, 3, 3]), (4, [7, 5, 3, 3])]


@pytest.mark.parametrize(("window", "frames"), few(LONGEST, LONGEST[0]))
def test_shots_are_no_longer_than_a_window_and_few(
    desk: Desk, window: int, frames: list[int]
) -> None:
    shots = [{"prompt": "a red ball", "pixel_frames": n} for n in (3, 1, 200, 3, 5)]
    asked = job(desk.model, shots=shots, window_latent_frames=window, steps=4)
    assert tried(desk, asked)["pixel_frames"] == frames


@pytest.mark.long
def test_presets_with_nothing_to_skip_are_said_and_the_rest_is_tried(
    desk: Desk, tmp_path: Path
) -> None:
    path = desk.job(yaml.safe_dump(job(desk.model, steps=2)))
    assert "has nothing to skip: steps are 2" in refusal(desk.run("presets", path), 2)

    model = tiny_family("cogvideox-5b", tmp_path).folder  # adds noise: its presets protect more
    shots = [{"prompt": "a red ball", "pixel_frames": 5}]
    asked = job(model, steps=5, accelerations=SKIPPING, shots=shots)
    rows = {row["name"]: row for row in tried(desk, asked)["presets"]}
    assert [*rows] == ["exact", "this job", "balanced", "fast"]
    assert "has nothing to skip" in rows["fast"]["refused"]
    assert rows["this job"]["did"] == ["adaptive skipped the model in 1 of 5 steps of tiles"]
    said = desk.run("presets", desk.job(yaml.safe_dump(asked))).out
    assert "balanced: not for this job: " in said


def test_what_cannot_be_tried_is_refused(desk: Desk, longtake: Callable[..., Ran]) -> None:
    assert "none.yaml does not exist" in refusal(longtake("presets", "none.yaml"), 2)
    assert "longtake presets demo --prompt" in refusal(longtake("presets", "--steps", "5"), 2)
    asked = ("presets", "demo", "--prompt", "a kite", "--device")
    assert "valid: auto, cpu, cuda" in refusal(longtake(*asked, "gpu"), 2)
    missing = refusal(longtake("presets", "demo", "--prompt", "x", "--steps", "0"), 2)
    assert "--steps" in missing


FEW = ("svd",)


@pytest.mark.parametrize("kind", few(KINDS, *FEW))
def test_on_every_family(kind: str, desk: Desk, tmp_path: Path) -> None:
    tiny = tiny_family(kind, tmp_path)
    shot = {"pixel_frames": 5} | (
        {"image": tiny.shot.image.path} if tiny.shot.image else {"prompt": "a red ball"}
    )
    scale = {"svd": 16}.get(kind, 32)
    report = tried(desk, job(tiny.folder, shots=[shot], size=f"{2 * scale}x{2 * scale}"))
    assert report["family"] == tiny.name
    rows = {row["name"]: row for row in report["presets"]}
    assert rows["exact"]["psnr_db"] is None
    for name in ("balanced", "fast"):
        assert "adaptive" in rows[name]["accelerations"]
        assert rows[name]["did"][0].startswith("adaptive skipped the model in ")


def test_a_shot_is_tried_with_the_noise_that_it_has_in_the_film(desk: Desk) -> None:
    shots = [{"prompt": "a red ball", "pixel_frames": n} for n in (1, 1, 1, 1, 1, 5)]
    asked = job(desk.model, shots=shots)
    renders = [shot.render for shot in prepare(JobSpec.model_validate(asked)).plan.shots]
    spec = JobSpec.model_validate(asked)
    sampled = prepare(_windows_of(spec, prepare(spec))).plan.shots
    assert [each.render.seed for each in sampled] == [renders[n].seed for n in (5, 0, 1, 2)]


@pytest.mark.long
def test_what_cannot_be_kept_is_told_all_the_same(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGTAKE_PLANS", "/proc/nowhere")
    ran = desk.run("presets", desk.job(yaml.safe_dump(job(desk.model))))
    assert ran.code == 0 and "fast: " in ran.out
    assert "will not list this: /proc/nowhere/tried-presets-" in ran.err


def test_a_setting_is_held_against_the_full_render_shot_by_shot() -> None:
    plan = make_plan(8)
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    full = _Rendered({0: 4.0, 1: 6.0}, {0: frames, 1: frames}, Counter())
    faster = _Rendered({0: 2.0, 1: 2.0}, {0: frames, 1: frames + 1}, Counter())
    found = row("fast", plan, faster, full)
    assert found["speed"] == 2.5
    assert found["psnr_db"] == found["worst_psnr_db"] == pytest.approx(48.13, abs=0.01)
    assert found["worst_ssim"] < found["ssim"] < 1


def test_what_does_not_fit_is_told_before_a_weight_loads(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.machine.free_bytes", lambda device: 1000)
    said = refusal(desk.run("presets", desk.job(yaml.safe_dump(job(desk.model)))), 6)
    assert "the full render needs about" in said and "cpu has" in said and "short; " in said


@pytest.mark.long
def test_a_setting_that_fails_leaves_the_others(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = try_presets._render

    def short_of_memory(prepared: Prepared, *args: Any) -> _Rendered:
        if prepared.plan.preset == "balanced":
            raise UnitError("out_of_memory", "cpu ran out of memory")
        return whole(prepared, *args)

    monkeypatch.setattr(try_presets, "_render", short_of_memory)
    ran = desk.run("presets", desk.job(yaml.safe_dump(job(desk.model))))
    assert ran.code == 0 and "balanced: failed: cpu ran out of memory" in ran.out
    assert "fast: " in ran.out and "here:" in desk.run("presets").out


def test_what_is_tried_before_an_interrupt_is_kept(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, inner = [], try_presets._render

    def interrupted(*given: Any) -> _Rendered:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(inner(*given))
        return done[-1]

    monkeypatch.setattr(try_presets, "_render", interrupted)
    ran = desk.run("presets", desk.job(yaml.safe_dump(job(desk.model))))
    assert (ran.code, ran.out) == (130, "") and "what was tried is kept" in ran.err
    listed = {row["name"]: row for row in json.loads(desk.run("presets", "--json").out)}
    assert [len(listed[name]["tried_here"]) for name in PRESETS] == [1, 1, 0]


@pytest.mark.long
def test_it_says_how_long_the_whole_film_would_take(desk: Desk) -> None:
    """Of a shot of six windows, one was tried."""
    shot = {"prompt": "a", "pixel_frames": 25}
    asked = job(desk.model, shots=[shot], window_latent_frames=3, overlap_latent_frames=1)
    path = desk.job(yaml.safe_dump(asked))
    report = json.loads(desk.run("presets", path, "--json").out)
    assert report["film_steps"] == 6 * asked["steps"]
    ran = desk.run("presets", path)
    (line,) = (line for line in ran.out.splitlines() if line.startswith("exact: "))
    assert f"for the film's {report['film_steps']} steps here" in line
