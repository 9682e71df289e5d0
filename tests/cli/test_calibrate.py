"""``longtake calibrate``: a plan of attention is found, drawn, and used by jobs of that size."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.accelerations import Accelerations, Rehash
from jobs.calibration import CalibrationKey
from jobs.errors import CannotRunHere
from jobs.model_scheduler import choose_scheduler
from jobs.rehash_profile import key_steps
from jobs.spec import JobSpec, resolve
from jobs.spec_file import load_spec, spec_from_flags
from orchestrator.calibrate import similarity_figure
from orchestrator.calibrated import command_for, job_keys
from orchestrator.prepare import plan_from_json, plan_to_json, prepare
from orchestrator.sample_job import sample_job
from tests.cli.conftest import STEPS, Desk, Ran, refusal
from tests.ray.harness import longtake as console
from tests.workers.tiny_cogvideox import write_tiny_cogvideox
from tests.workers.tiny_families import tiny_family
from tests.workers.tiny_hunyuan_video import write_tiny_hunyuan_video
from tests.workers.tiny_ltx import write_tiny_ltx
from workers import profiling
from workers.devices import device_of


@pytest.mark.slow
def test_a_plan_is_found_drawn_and_used(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_PLANS", str(desk.folder / "plans"))
    asked = {
        "version": 1, "model": str(desk.model), "prompt": "kite", "seconds": 1, "size": [32, 32],
        "steps": 4, "fps": 8,
    }  # fmt: skip
    fast = asked | {"accelerations": {"fast_attention": {}}}
    file = desk.folder / "fast.yaml"
    file.write_text(json.dumps(fast))  # YAML reads JSON
    said = refusal(desk.run("plan", "fast.yaml"), 2)
    assert "fast_attention: " in said and "has no attention plan of this model for 4 steps" in said
    assert said.endswith("; to make it: longtake calibrate fast.yaml")

    ran = desk.run("calibrate", "fast.yaml", "--delta", "9", "--picture", "plan.png", "--json")
    assert ran.code == 0, ran.err
    (stage,) = ran.json()["stages"]
    assert sum(stage["shares"].values()) == pytest.approx(1) and stage["shares"]["full"] < 0.5
    assert "step 4 of 4: loss " in ran.err
    assert 0 < stage["attention"] < 0.7 and stage["tokens"] < 1000
    assert (desk.folder / "plan.png").read_bytes().startswith(b"\x89PNG")

    plan = prepare(JobSpec.model_validate(fast)).plan
    kept = plan.accelerations.fast_attention
    assert kept is not None and kept.stages is not None and kept.stages[0].steps == 4
    stored = plan_from_json(json.loads(json.dumps(plan_to_json(plan))))
    assert stored == plan, "a job that is planned needs no file any more"
    assert desk.run("plan", "fast.yaml", "--json").json()["accelerations"]["fast_attention"]
    said = refusal(desk.run("plan", "fast.yaml", "--steps", "5"), 2)
    assert said.endswith("; to make it: longtake calibrate fast.yaml --steps 5")
    ran = desk.run("calibrate", "fast.yaml", "--delta", "0", "--plans", "none")
    assert ran.code == 0 and "use it" not in ran.out
    assert "nothing can be left out at this delta: try a larger --delta" in ran.out

    (found,) = (path for path in (desk.folder / "plans").iterdir() if "search" not in path.name)
    record = json.loads(found.read_text())
    record["rows"] = [["full"] * len(row) for row in record["rows"]]
    found.write_text(json.dumps(record))
    said = refusal(desk.run("plan", "fast.yaml"), 2)
    assert "fast_attention: does nothing: the plan" in said and "larger --delta" in said
    assert "`longtake calibrate fast.yaml` with" in said


@pytest.mark.slow
def test_every_stage_of_a_pyramid_has_its_plan(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_PLANS", str(desk.folder / "plans"))
    asked = {
        "version": 1, "model": str(desk.model), "prompt": "kite", "seconds": 1, "size": [32, 32],
        "steps": 4, "fps": 8, "pyramid": 2, "pyramid_steps": [1, 3],
        "accelerations": {"fast_attention": {}},
    }  # fmt: skip
    (desk.folder / "fast.yaml").write_text(json.dumps(asked))
    ran = desk.run("calibrate", "fast.yaml", "--delta", "9", "--picture", "plan.png", "--json")
    assert ran.code == 0, ran.err
    assert [stage["steps"] for stage in ran.json()["stages"]] == [1, 3]
    assert "stage 2 of 2, step 3 of 3: loss " in ran.err
    plan = desk.run("plan", "fast.yaml", "--json").json()
    found = plan["accelerations"]["fast_attention"]["stages"]
    assert [len(stage["rows"]) for stage in found] == [1, 3]
    other = {**asked, "pyramid_steps": [2, 2]}
    (desk.folder / "fast.yaml").write_text(json.dumps(other))
    assert "stage 1 of 2-2 steps" in refusal(desk.run("plan", "fast.yaml"), 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ltx", "cogvideox-5b", "hunyuan-video"])
def test_jobs_of_every_family_find_their_plans(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, longtake: Callable[..., Ran]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {
        "version": 1, "model": str(tiny_family(kind, tmp_path).folder), "prompt": "a red kite",
        "seconds": 1, "size": [32, 32], "steps": 2, "window_latent_frames": 5,
        "overlap_latent_frames": 1, "accelerations": {"fast_attention": {"plans": "plans"}},
    }  # fmt: skip
    Path("fast.yaml").write_text(json.dumps(asked))
    ran = longtake("calibrate", "fast.yaml", "--delta", "9", "--plans", "plans")
    assert ran.code == 0, ran.err
    assert "use it: accelerations: {fast_attention: {plans: plans}} in a job file" in ran.out
    ran = longtake("plan", "fast.yaml", "--json")
    assert ran.code == 0, ran.err
    (plan,) = ran.json()["accelerations"]["fast_attention"]["stages"]
    assert plan["rows"] == [["full"] * 2, ["share_steps"] * 2]


def test_a_profile_is_made_and_found_by_jobs(
    rehash_job: dict, longtake: Callable[..., Ran]
) -> None:
    said = refusal(longtake("plan", "film.yaml"), 2)
    key = "5 steps of ddim, windows of 8 x 16 x 16 latents (frames, rows, columns), with guidance"
    assert f"plans has no rehash profile of this model for {key}, in float32; to make it: " in said
    assert not re.search(r"[0-9a-f]{12}", said), "a hash says nothing to a person"

    assert said.endswith("; to make it: longtake calibrate film.yaml --rehash 0.5")

    ran = longtake("calibrate", "film.yaml", "--rehash", "0.0")
    assert ran.code == 0, ran.err
    assert f"2 key steps of {STEPS}, [[0, 4]]" in ran.out
    use = "use it: accelerations: {rehash: {threshold: 0.0}} in a job file with size: 32x32 and"
    assert f"{use} steps: {STEPS}\n" in ran.out
    assert f"step {STEPS} of {STEPS}\n" in ran.err

    # The same profile serves every threshold: all that it holds is how alike the steps are.
    (file,) = Path("plans").glob("rehash-profile-*.json")
    similarity = np.array(json.loads(file.read_text())["similarity"])
    assert similarity.shape == (STEPS, STEPS) and similarity[0, 0] == pytest.approx(1)
    for threshold in (0.5, float(np.sort(similarity[0])[1])):
        rehash_job["accelerations"] = {"rehash": {"threshold": threshold}}
        Path("film.yaml").write_text(json.dumps(rehash_job))
        ran = longtake("plan", "film.yaml", "--json")
        assert ran.code == 0, ran.err
        found = ran.json()["accelerations"]["rehash"]["key_steps"]
        assert found == [list(key_steps(similarity, threshold))]

    rehash_job["accelerations"] = {"rehash": {"threshold": 1.0}}
    Path("film.yaml").write_text(json.dumps(rehash_job))
    said = refusal(longtake("plan", "film.yaml"), 2)
    assert "has nothing to reuse" in said and "a lower threshold, or remove it" in said


@pytest.mark.parametrize("write", [write_tiny_ltx, write_tiny_cogvideox, write_tiny_hunyuan_video])
def test_key_steps_of_a_transformer_are_found_and_planned(
    rehash_job: dict, longtake: Callable[..., Ran], write: Callable[..., Path]
) -> None:
    model = str(write(Path("transformer"), layers=3))
    Path("film.yaml").write_text(json.dumps(rehash_job | {"model": model}))
    ran = longtake("calibrate", "film.yaml", "--rehash", "0.5", "--json")
    assert ran.code == 0, ran.err
    found = ran.json()["key_steps"]
    ran = longtake("plan", "film.yaml", "--json")
    assert ran.code == 0, ran.err
    assert ran.json()["accelerations"]["rehash"]["key_steps"] == found


def test_the_film_depends_on_the_key_steps_and_not_on_how_they_were_found() -> None:
    by_hand = Accelerations(rehash=Rehash(key_steps=((0, 2, 4),)))
    found = Rehash(threshold=0.9).model_copy(update={"key_steps": ((0, 2, 4),)})
    assert Accelerations(rehash=found).recipe() == by_hand.recipe()


def test_an_interrupted_profile_goes_on_and_is_drawn(
    rehash_job: dict, longtake: Callable[..., Ran]
) -> None:
    asked = ("calibrate", "film.yaml", "--rehash", "0.5", "--picture", "p.png", "--json")
    ran = longtake(*asked)
    assert ran.code == 0, ran.err
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")
    (profile,) = Path("plans").glob("rehash-profile-*.json")
    profile.unlink()  # as an interruption leaves it, right after the shot's last step
    again = longtake(*asked)
    assert again.json() == ran.json() and again.err == "", "no step was run again"
    assert profile.is_file()


def test_who_interrupts_a_calibration_is_told_that_it_goes_on(
    rehash_job: dict, longtake: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    through, asked = profiling._through_stage, ("calibrate", "film.yaml", "--rehash", "0.5")
    rehash_job |= {"pyramid": 2, "pyramid_steps": [2, 3]}
    Path("film.yaml").write_text(json.dumps(rehash_job))

    def interrupted(sample: Any, key: CalibrationKey, *args: Any) -> Any:
        if key.stage == 1:
            raise KeyboardInterrupt
        return through(sample, key, *args)

    monkeypatch.setattr(profiling, "_through_stage", interrupted)
    ran = longtake(*asked)
    kept = "what is finished is kept: the same command goes on from there\nlongtake: interrupted\n"
    assert ran.code == 130 and ran.err.endswith(kept) and "going on" not in ran.err
    monkeypatch.setattr(profiling, "_through_stage", through)
    ran = longtake(*asked)
    assert ran.code == 0 and ran.err.startswith("going on from stage 2 of 2, step 1 of 3\n")
    assert re.search(r"^stage 2 of 2, step 2 of 3; about \S+.* left$", ran.err, re.MULTILINE)
    assert ran.err.endswith("stage 2 of 2, step 3 of 3\n")


def test_a_picture_of_a_profile_has_its_values_and_marks_the_key_steps() -> None:
    coarse, fine = np.array([[1.0, 0.4], [0.4, 1.0]]), np.array([[1.0]])
    figure = similarity_figure([coarse, fine], [[0, 1], [0]])
    first, second, _ = figure.axes
    np.testing.assert_array_equal(first.images[0].get_array(), coarse)
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0.4, 1.0)
    (marks,) = first.lines
    assert list(zip(*marks.get_data(), strict=True)) == [(0, 0), (1, 1)]
    assert [axes.get_title() for axes in (first, second)] == ["stage 1 of 2", "stage 2 of 2"]
    assert first.get_legend().get_texts()[0].get_text() == "key steps"
    (alone,) = similarity_figure([fine], [[0]]).axes[:1]
    assert alone.get_title() == ""


def test_what_is_found_lies_where_the_job_looks(desk: Desk, tmp_path: Path) -> None:
    own = tmp_path / "own plans"
    asked = {"rehash": {"threshold": 0.5, "profiles": str(own)}}
    job = {"version": 1, "model": "demo", "prompt": "a kite", "pixel_frames": 1, "steps": 2}
    (tmp_path / "film.json").write_text(json.dumps(job | {"accelerations": asked}))
    found = desk.run("calibrate", str(tmp_path / "film.json"), "--rehash", "0.5", "--device", "cpu")
    assert found.code == 0 and f"a profile in {own}" in found.out, found.err
    assert list(own.iterdir())
    again = desk.run("calibrate", str(tmp_path / "film.json"), "--rehash", "0.5", "--device", "cpu")
    assert "is replaced" not in found.err + again.err, "the same was found"
    (tmp_path / "film.json").write_text(
        json.dumps(job | {"prompt": "a red ring", "accelerations": asked})
    )
    other = desk.run("calibrate", str(tmp_path / "film.json"), "--rehash", "0.5", "--device", "cpu")
    assert "what was found before for this size and number of steps is replaced" in other.err
    useless = desk.run("calibrate", str(tmp_path / "film.json"), "--rehash", "1", "--device", "cpu")
    assert "there is nothing to reuse; try a lower --rehash" in useless.out


def test_a_model_is_calibrated_on_prompts(rehash_job: dict, longtake: Callable[..., Ran]) -> None:
    """Each a shot, as long as a window of the model; a job with shots so long finds it."""
    model = rehash_job["model"]
    flags = ("--prompt", "kite", "--prompt", "a red ball", "--size", "32x32", "--steps", STEPS)
    ran = longtake("calibrate", model, *flags, "--rehash", "0.5")
    assert ran.code == 0, ran.err
    assert "shot 2 of 2, step 5 of 5\n" in ran.err
    (file,) = Path("plans").glob("rehash-profile-*.json")
    record = json.loads(file.read_text())
    assert record["key"]["latent_size"][0] == 16 and len(record["how"]["prompts"]) == 2
    del rehash_job["seconds"]
    Path("film.yaml").write_text(json.dumps(rehash_job | {"pixel_frames": 30}))
    assert longtake("plan", "film.yaml").code == 0
    again = longtake("calibrate", *flags, "--model", model, "--rehash", "0.5")
    assert (again.code, again.err) == (0, ""), "the model may be named either way"


def test_the_command_that_is_named_finds_what_is_missing(
    rehash_job: dict, longtake: Callable[..., Ran]
) -> None:
    """Whatever was said beside the job file goes into it."""
    beside = ("--fps", 4, "--seconds", 2.5, "--size", "32x48", "--steps", 4, "--prompt", "a  kite")
    said = refusal(longtake("plan", "film.yaml", *beside, "--seed", 3), 2)
    command = shlex.split(said.partition("to make it: ")[2])
    assert command[:3] == ["longtake", "calibrate", "film.yaml"] and "--seed" not in command
    assert longtake(*command[1:]).code == 0
    ran = longtake("plan", "film.yaml", *beside)
    assert ran.code == 0 or "has nothing to reuse" in ran.err, "it was found"


def test_all_that_is_missing_is_named_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_PLANS", str(desk.folder / "plans"))
    asked = {
        "version": 1, "model": "demo", "prompt": "kite", "seconds": 1,
        "accelerations": {"fast_attention": {}, "rehash": {"threshold": 0.5}},
    }  # fmt: skip
    desk.job(json.dumps(asked))
    count, *missing = refusal(desk.run("plan", "film.yaml"), 2).splitlines()
    assert count == "2 problems in this job:"
    commands = [line.partition("to make it: ")[2] for line in missing]
    assert commands == [f"longtake calibrate film.yaml{f}" for f in ("", " --rehash 0.5")]


def test_the_command_for_a_job_without_a_file_names_its_model(tmp_path: Path) -> None:
    lora = {"path": "a b.safetensors", "scale": 0.5}
    spec = spec_from_flags({"prompt": "a kite", "seconds": 2, "size": "64x32", "steps": 9})
    assert command_for(spec) == (
        "longtake calibrate demo --prompt 'a kite' --seconds 2.0 --size 64x32 --steps 9"
    )
    spec = spec_from_flags({"model": "m", "prompt": "x", "seconds": 1, "fps": 8, "loras": [lora]})
    assert command_for(spec, "--rehash", "0.9") == (
        "longtake calibrate m --prompt x --seconds 1.0 --fps 8 --lora 'a b.safetensors=0.5' "
        "--rehash 0.9"
    )
    exact = spec_from_flags({"prompt": "x", "seconds": 1, "loras": [lora | {"scale": 0.1234567}]})
    assert "'a b.safetensors=0.1234567'" in command_for(exact)
    Path(tmp_path / "film.yaml").write_text("prompt: x\nseconds: 1\n")
    beside = {"model": "demo", "pyramid": 2, "pyramid_first_stage": "windows"}
    spec = load_spec(tmp_path / "film.yaml", beside)
    assert command_for(spec).endswith(
        "film.yaml --model demo --pyramid 2 --pyramid-first-stage windows"
    )


@pytest.mark.long
@pytest.mark.slow
def test_only_what_is_of_use_is_told(tmp_path: Path) -> None:
    """In a process of its own, where the libraries are imported anew; the model is the default."""
    asked = ("--prompt", "kite", "--seconds", "0.1", "--size", "32x32", "--steps", "2", "--json")
    ran = console("calibrate", *asked, "--rehash", "0.5", "--device", "cpu", "--plans", tmp_path)
    assert ran.code == 0
    assert ran.err.splitlines() == [
        "calibrating demo, for no model is named", "step 1 of 2", "step 2 of 2"
    ]  # fmt: skip


def keys_of(spec: JobSpec) -> tuple[CalibrationKey, ...]:
    model = prepare(spec).model
    job = resolve(spec, model.geometry, model.defaults)
    scheduler = choose_scheduler(job.scheduler, model.configs["scheduler"], model.family.diffusion)
    return job_keys(job, model, scheduler)


@pytest.mark.parametrize(
    ("model", "pyramid", "frames"),
    [
        ("demo-pyramid", None, [9, 9, 9]),
        ("demo-pyramid", "off", [9]),
        ("demo", None, [9]),
        ("demo", 2, [9, 9]),
        ("demo-animatediff-pyramid", None, [16] * 3),
    ],
)
def test_films_look_for_what_was_calibrated_on_prompts(
    model: str, pyramid: int | str | None, frames: list[int]
) -> None:
    """In every stage of a pyramid, too: the coarsest has as many frames as a window."""
    asked = {"size": None, "steps": None, "pyramid": pyramid}
    sample = sample_job("calibrate", model, None, ["a red ball"], seconds=None, **asked)
    calibrated = keys_of(sample)
    film = spec_from_flags({"model": model, "prompt": "a kite", "seconds": 20, "pyramid": pyramid})
    assert calibrated == keys_of(film)
    assert [key.latent_size[0] for key in calibrated] == frames


def test_what_cannot_be_calibrated_on_is_refused(
    rehash_job: dict, longtake: Callable[..., Ran], tmp_path: Path
) -> None:
    def said(*args: object) -> str:
        return refusal(longtake("calibrate", *args), 2)

    model = rehash_job["model"]
    wanted = f"longtake calibrate {model} --prompt ... --prompt ..."
    assert wanted in said(model) and wanted in said("--model", model)
    assert "longtake calibrate demo --prompt" in said()
    two = ("--prompt", "a", "--prompt", "b")
    assert "several --prompt go with a model; write shots into film.yaml" in said("film.yaml", *two)
    assert f"two models, demo and --model {model}; give one" in said("demo", "--model", model)
    assert "'gpu': valid: auto, cpu, cuda, or a GPU such as cuda:1" in said(
        "film.yaml", "--device", "gpu"
    )
    assert "--image goes with a job file" in said(model, "--prompt", "a", "--image", "a.png")
    assert said(model, *two, "--seconds", "0") == "--seconds: must be more than 0, got 0.0"
    assert "'--delta': Input should be greater than or equal to 0; valid: 0 to 10\n" in said(
        "film.yaml", "--delta", "-1"
    )
    Path("list.yaml").write_text(f"model: {model}\nshots: [{{prompt: a, seconds: 1}}]\n")
    assert said("list.yaml", "--prompt", "x").startswith(
        "--prompt: belongs to a shot, and this job file lists its shots; change it in the file"
    )
    both = ("--rehash", "0.9", "--delta", "0.1")
    assert said("film.yaml", *both) == (
        "--delta is for fast attention, --rehash for rehash; remove one"
    )
    found = "For them can be found: key steps, with --rehash 0.995 (a UNet: 0.99)"
    assert f"animatediff models do not take fast_attention yet. {found}" in said("film.yaml")
    assert "missing.yaml" in said("missing.yaml", "--prompt", "a")
    assert "a name is empty; give a job file, or a model" in said("", "--prompt", "a")
    assert "a name is empty" in said("--model", "", "--prompt", "a")
    name = "a" * 300
    assert f"model: '{name}' is no folder here" in said(name, "--prompt", "a")
    assert f"longtake calibrate {name} --prompt" in said(name)


def test_a_model_that_starts_from_images_is_calibrated_by_a_job_file(
    longtake: Callable[..., Ran], tmp_path: Path
) -> None:
    model = tiny_family("svd", tmp_path).folder
    for flags in ((), ("--prompt", "a kite"), ("--prompt", "a kite", "--image", "a.png")):
        said = refusal(longtake("calibrate", model, *flags, "--rehash", "0.9"), 2)
        assert "start from images; give a job file with them" in said and "--prompt" not in said


def test_a_first_stage_that_is_whole_is_not_calibrated(desk: Desk) -> None:
    asked = {
        "version": 1, "model": str(desk.model), "prompt": "kite", "seconds": 1, "size": [32, 32],
        "steps": 4, "pyramid": 2, "pyramid_first_stage": "whole",
    }  # fmt: skip
    desk.job(json.dumps(asked))
    for flags in ((), ("--rehash", "0.9")):
        said = refusal(desk.run("calibrate", "film.yaml", *flags), 2)
        assert "pyramid_first_stage: what is calibrated is calibrated on windows; say" in said
    said = refusal(desk.run("calibrate", "film.yaml", "--pyramid-first-stage", "whole"), 2)
    assert said.startswith("--pyramid-first-stage: what is calibrated")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_named(rehash_job: dict, longtake: Callable[..., Ran]) -> None:
    for device in ("cuda", "cuda:1"):
        ran = longtake("calibrate", "film.yaml", "--rehash", "0.5", "--device", device)
        assert "finds no GPU to use; give --device cpu, or install a torch" in refusal(ran, 6)


@pytest.mark.parametrize(("count", "found"), [(1, "one GPU, cuda:0"), (2, "2 GPUs, counted from")])
def test_a_gpu_beyond_the_last_is_named(
    monkeypatch: pytest.MonkeyPatch, count: int, found: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert device_of(f"cuda:{count - 1}") == f"cuda:{count - 1}"
    with pytest.raises(CannotRunHere, match=f"finds {found}"):
        device_of(f"cuda:{count}")


def test_a_picture_that_cannot_be_is_refused_before_anything_is_measured(desk: Desk) -> None:
    ran = desk.run("calibrate", "--prompt", "x", "--picture", desk.folder / "none" / "a.png")
    assert "the folder does not exist; create it first" in refusal(ran, 2)
    ran = desk.run("calibrate", "--prompt", "x", "--picture", "film.mp4")
    assert "--picture film.mp4: the file's name must end in .png" in refusal(ran, 2)
