"""From a job to a plan, and a plan read back from the store."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jobs.accelerations import Accelerations, Slicing
from jobs.errors import BadJob, CannotRunHere, DamagedRecord
from jobs.families.family import encoding_bytes, rendering_bytes
from jobs.families.wan import Wan
from jobs.model_folder import inspect_model, resolve_model
from jobs.spec_file import load_spec, parse_spec
from jobs.units import RepeatedNoise
from jobs.versions import ACCELERATIONS_VERSION, NOISE_VERSION, PLANNER_VERSION
from orchestrator.plan import Plan
from orchestrator.prepare import plan_from_json, plan_to_json, prepare
from orchestrator.recipes import film_key
from orchestrator.show_plan import plan_report, plan_text
from tests.orchestrator.plans import frames_for, make_plan
from tests.workers.tiny_ltx import write_tiny_ltx_condition


def test_a_plan_reads_back() -> None:
    plan = make_plan(6, frames_for(2))
    assert plan_from_json(plan_to_json(plan)) == plan
    assert (plan.planner_version, plan.noise_version) == (PLANNER_VERSION, NOISE_VERSION)


def test_a_plan_from_before_a_setting_was_there_has_its_default() -> None:
    plan = make_plan(6)
    stored = plan_to_json(plan)
    del stored["decoder_dtype"], stored["shots"][0]["render"]["repeated_noise"]
    assert plan_from_json(stored) == plan


@pytest.mark.parametrize("name", ["planner_version", "noise_version"])
def test_a_plan_of_another_version_is_refused(name: str) -> None:
    stored = plan_to_json(make_plan(6))
    ours = stored[name]
    stored[name] += 1
    shown = rf"{name.replace('_', ' ')} {ours + 1} \(here {ours}\).*render its job file again"
    with pytest.raises(CannotRunHere, match=shown):
        plan_from_json(stored)


def test_a_preset_that_was_not_measured_on_such_a_model_says_so(tmp_path: Path) -> None:
    later = write_tiny_ltx_condition(tmp_path / "later")

    def told(model: object, **more: object) -> list[str]:
        asked = {"model": str(model), "prompt": "kite", "seconds": 4, "steps": 20} | more
        return [each for each in prepare(parse_spec(asked)).plan.warnings if "preset" in each]

    assert told("demo", preset="fast") == told("demo-pyramid", preset="fast") == []
    assert told(later) == [], "nothing is skipped"
    own = {"adaptive": {"threshold": 0.5}}
    assert told(later, preset="fast", accelerations=own) == [], "nothing is left of the preset"
    (said,) = told(later, preset="balanced", size=[64, 64])
    assert said.startswith("preset balanced has not been measured on ltx-condition: longtake pres")


SLICED = Accelerations(slicing=Slicing(slices=2))


def test_a_plan_of_another_version_of_its_accelerations_is_refused() -> None:
    """One of before their version was kept is of 3; without any, it may be what it will."""
    stored = plan_to_json(replace(make_plan(6), accelerations=SLICED))
    assert plan_from_json(stored).accelerations_version == ACCELERATIONS_VERSION
    del stored["accelerations_version"]
    with pytest.raises(
        CannotRunHere, match=rf"accelerations version 3 \(here {ACCELERATIONS_VERSION}\)"
    ):
        plan_from_json(stored)
    plain = plan_to_json(make_plan(6))
    del plain["accelerations_version"]
    assert plan_from_json(plain) == make_plan(6)


@pytest.mark.parametrize("stored", [{}, {"planner_version": "1", "noise_version": 1}])
def test_what_is_no_plan_is_damage(stored: dict[str, object]) -> None:
    with pytest.raises(DamagedRecord, match="cannot be read"):
        plan_from_json(stored)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(resolve_model("demo"), tmp_path / "model"))


def set_scheduler(model: Path, **config: object) -> None:
    (model / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"_class_name": "DDIMScheduler"}, r"DDIMScheduler, which.*unipc, euler, dpm"),
        ({}, r"None, which.*unipc, euler, dpm"),
        (
            {"_class_name": "UniPCMultistepScheduler", "solver_order": 3},
            r"solver_order=3 is not supported.*valid: 1 or 2",
        ),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True},
            r"stochastic_sampling=True is not supported.*valid: false",
        ),
    ],
)
def test_an_unsupported_scheduler_is_found_before_weights_load(
    model: Path, tmp_path: Path, config: dict[str, object], says: str
) -> None:
    set_scheduler(model, **config)
    job = tmp_path / "film.yaml"
    job.write_text(f"prompt: a kite\nseconds: 1\nmodel: {model}\n")
    with pytest.raises(BadJob, match=rf"film\.yaml:1:1: scheduler: .*{says}"):
        prepare(load_spec(job))


def test_a_job_may_name_another_scheduler(model: Path) -> None:
    set_scheduler(model, _class_name="DDIMScheduler")
    spec = parse_spec({"prompt": "x", "seconds": 1, "model": str(model), "scheduler": "euler"})
    assert prepare(spec).plan.shots[0].render.scheduler == "euler"


@pytest.mark.parametrize(("seconds", "frames"), [(20, 31), (5, None)])
def test_a_coarsest_stage_that_is_a_long_window_is_warned_of(
    seconds: int, frames: int | None
) -> None:
    told = {"prompt": "x", "seconds": seconds, "model": "demo-pyramid"}
    for first_stage, expected in (("windows", None), ("whole", frames)):
        plan = prepare(parse_spec(told | {"pyramid_first_stage": first_stage})).plan
        said = [line for line in plan.warnings if "coarsest stage" in line]
        assert len(said) == (first_stage == "whole"), said
        if said and expected is None:
            assert "makes no difference here" in said[0]
        elif said:
            assert f"is one window of {expected} latent frames, where windows have 9:" in said[0]
            assert "not trained for so long a one" in said[0]


def test_noise_comes_again_where_a_shot_starts_in_several_windows() -> None:
    def planned(seconds: float, **changes: object) -> Plan:
        told = {"prompt": "x", "model": "demo", "repeated_noise": 0.5, "seconds": seconds}
        return prepare(parse_spec(told | changes)).plan

    plan = planned(20)
    assert plan.shots[0].render.repeated_noise == RepeatedNoise(period=9, share=0.5)
    assert plan_from_json(plan_to_json(plan)) == plan
    assert "50% of noise repeated every 9 frames" in plan_text(plan_report(plan, 1, None))
    whole = {"model": "demo-pyramid", "pyramid_first_stage": "whole"}
    for alone in (planned(1), planned(5, model="demo-pyramid"), planned(20, **whole)):
        assert alone.shots[0].render.repeated_noise is None
        assert any("repeated_noise makes no difference here" in said for said in alone.warnings)
    assert film_key(planned(1)) == film_key(planned(1, repeated_noise=0))
    assert plan.warnings == planned(1, repeated_noise=0).warnings == ()


@pytest.mark.parametrize(("size", "times"), [([192, 192], None), ([4096, 4096], 1820)])
def test_a_size_that_the_model_is_not_meant_for_is_warned_of(
    size: list[int], times: int | None
) -> None:
    plan = prepare(parse_spec({"prompt": "x", "seconds": 1, "model": "demo", "size": size})).plan
    said = [line for line in plan.warnings if "times the pixels" in line]
    assert len(said) == (times is not None)
    assert not said or f"4096x4096 has {times} times the pixels of the 96x96 that this" in said[0]


def test_a_fetched_model_is_kept_with_its_commit(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    snapshot = model.parent / "models--org--name" / "snapshots" / commit
    shutil.copytree(model, snapshot)
    monkeypatch.setattr("orchestrator.prepare.resolve_model", lambda name: snapshot)
    planned = prepare(parse_spec({"prompt": "x", "seconds": 1, "model": "org/name"})).plan
    assert planned.model == f"org/name@{commit}"


def test_weights_are_counted_as_they_are_loaded() -> None:
    parameters = {"transformer": 1000, "vae": 10, "text_encoder": 500}
    assert encoding_bytes(Wan(), parameters, "bfloat16") == 2 * (1000 + 500)
    assert encoding_bytes(Wan(), parameters, "float32") == 4 * (1000 + 500)
    assert rendering_bytes(Wan(), parameters, "bfloat16", "float32") == 2 * 1000 + 4 * 10
    assert rendering_bytes(Wan(), parameters, "float16", "bfloat16") == 2 * 1000 + 2 * 10
    plan = replace(make_plan(6), encoding_bytes=9, model_bytes=4, tile_bytes=3)
    assert (plan.peak_bytes, replace(plan, tile_bytes=8).peak_bytes) == (9, 12)


def test_the_estimate_does_not_depend_on_how_weights_are_stored(model: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    path = model / "transformer" / "diffusion_pytorch_model.safetensors"
    weights, found = load_file(path), []
    for dtype in (torch.float32, torch.bfloat16):
        save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, path)
        found.append(inspect_model(model))
    wide, narrow = found
    stored = [info.parameters_bytes["transformer"] for info in found]
    assert stored == [each * wide.parameters["transformer"] for each in (4, 2)]
    assert encoding_bytes(wide.family, wide.parameters, "float32") == encoding_bytes(
        narrow.family, narrow.parameters, "float32"
    )


def test_an_adapter_brings_the_pyramid_that_it_was_trained_for(model: Path, tmp_path: Path) -> None:
    """With it the plan has stages, unless the job says otherwise."""
    lora = tmp_path / "lora"
    lora.mkdir()
    named = {"transformer.a.lora_A.weight": np.ones((1, 2), np.float32)}
    save_file(named, lora / "pytorch_lora_weights.safetensors")
    said = {"format": 1, "pyramid_steps": [2, 1], "stage_positions": True}
    (lora / "longtake.json").write_text(json.dumps(said))
    job = {"prompt": "x", "seconds": 3, "model": str(model), "steps": 6}

    def planned(**more: object) -> tuple[tuple[int, ...], bool]:
        render = prepare(parse_spec({**job, **more})).plan.shots[0].render
        return render.stage_steps, render.stage_positions

    adapter = {"loras": [{"path": str(lora)}]}
    assert planned(**adapter) == ((4, 2), True)
    assert planned(**adapter, pyramid="off")[0] == (6,)
    assert planned() == ((6,), False)
