"""Commands that render nothing: ``plan``, ``calibrate``, ``presets``; how flags become a job."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import errors
from jobs.spec import JobSpec
from jobs.spec_errors import Problem, bad_job
from orchestrator import show_plan, show_presets
from orchestrator.cli_options import (
    DEFAULT_DELTA,
    CalibrateDeviceOption,
    DeltaOption,
    FileArgument,
    FirstStageOption,
    FpsOption,
    ImageOption,
    JobOrModelArgument,
    JsonOption,
    LorasOption,
    ModelOption,
    NegativeOption,
    PictureOption,
    PlansOption,
    PresetOption,
    PromptOption,
    PromptsOption,
    PyramidOption,
    RehashOption,
    RepeatedNoiseOption,
    SecondsOption,
    SeedOption,
    SizeOption,
    StepsOption,
    StillsOption,
    WorkersOption,
)
from orchestrator.export import check_file
from orchestrator.prepare import Prepared, prepare
from orchestrator.room import lossless
from orchestrator.sample_job import sample_job


def loras_given(given: list[str] | None) -> list[dict[str, Any]] | None:
    """``style.safetensors=0.8`` is that file with a scale of 0.8."""
    found = []
    for each in given or []:
        path, _, scale = each.rpartition("=")
        try:
            found.append({"path": path, "scale": float(scale)} if path else {"path": each})
        except ValueError:
            found.append({"path": each})  # a name that has an equals sign in it
    return found or None


def prepared_job(file: Path | None, **flags: Any) -> Prepared:
    return prepare(_spec_of(file, **flags))


def _spec_of(file: Path | None, **flags: Any) -> JobSpec:
    from jobs.spec_file import load_spec, spec_from_flags

    if file is None and flags["prompt"] is None and flags.get("image") is None:
        raise errors.BadJob("give a job file, or --prompt and --seconds")
    return load_spec(file, flags) if file else spec_from_flags(flags)


def plan_command(
    file: FileArgument = None,
    prompt: PromptOption = None,
    negative: NegativeOption = None,
    image: ImageOption = None,
    seconds: SecondsOption = None,
    size: SizeOption = None,
    fps: FpsOption = None,
    seed: SeedOption = None,
    steps: StepsOption = None,
    pyramid: PyramidOption = None,
    pyramid_first_stage: FirstStageOption = None,
    repeated_noise: RepeatedNoiseOption = None,
    model: ModelOption = None,
    lora: LorasOption = None,
    preset: PresetOption = None,
    workers: WorkersOption = None,
    step_seconds: Annotated[
        float | None,
        typer.Option(min=1e-6, max=1e6, help="how long a step took before: gives a time"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how a film would be rendered. Nothing is rendered."""
    prepared = prepared_job(
        file, prompt=prompt, negative=negative, image=image, seconds=seconds, size=size,
        fps=fps, seed=seed, steps=steps, pyramid=pyramid, pyramid_first_stage=pyramid_first_stage,
        repeated_noise=repeated_noise, model=model, loras=loras_given(lora), preset=preset,
    )  # fmt: skip
    if step_seconds is not None and workers is None:
        from orchestrator.render import workers_here

        workers = workers_here(prepared.plan)
    report = show_plan.plan_report(prepared.plan, workers or 1, step_seconds)
    print(json.dumps(report) if as_json else show_plan.plan_text(report))


def calibrate_command(
    what: JobOrModelArgument = None,
    prompt: PromptsOption = None,
    image: ImageOption = None,
    seconds: SecondsOption = None,
    size: SizeOption = None,
    fps: FpsOption = None,
    steps: StepsOption = None,
    pyramid: PyramidOption = None,
    pyramid_first_stage: FirstStageOption = None,
    model: ModelOption = None,
    lora: LorasOption = None,
    delta: DeltaOption = None,
    rehash: RehashOption = None,
    plans: PlansOption = None,
    picture: PictureOption = None,
    device: CalibrateDeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure a model once, to render faster. Without --rehash: what `fast_attention` in a job file
    can leave out; with it: which steps `rehash` can reuse. It is tried on the job's shots, or on a
    shot for each --prompt, and holds for films of that size and number of steps. Interrupted, the
    same command goes on."""
    from jobs.calibration import found_in, usual_folder
    from orchestrator.calibrate import as_text, calibrate, draw, draw_similarity, find_key_steps

    _check_device(device)
    check_file(picture, "--picture", ".png")
    if rehash is not None and delta is not None:
        raise errors.BadJob("--delta is for fast attention, --rehash for rehash; remove one")
    spec = sample_job(
        "calibrate", what, model, prompt or [], image=image, seconds=seconds, size=size, fps=fps,
        steps=steps, pyramid=pyramid, pyramid_first_stage=pyramid_first_stage,
        loras=loras_given(lora),
    )  # fmt: skip
    if spec.pyramid_first_stage == "whole":
        said = "what is calibrated is calibrated on windows; say pyramid_first_stage: windows"
        raise bad_job([Problem(("pyramid_first_stage",), said)], spec._places)
    plain = {"accelerations": lossless(spec), "preset": "exact"}
    prepared = prepare(spec.model_copy(update=plain))
    folder = plans or _own_folder(spec, rehash is not None) or usual_folder()
    say, before = partial(print, file=sys.stderr), found_in(folder)
    if what is None and model is None:
        say(f"calibrating {spec.model}, for no model is named")
    if rehash is not None:
        with _told_to_go_on(say):
            report, found = find_key_steps(prepared, device, rehash, folder, say)
        if picture is not None:
            draw_similarity(found, report["key_steps"], picture)
    else:
        allowed = DEFAULT_DELTA if delta is None else delta
        with _told_to_go_on(say):
            report, plans_found = calibrate(prepared, device, allowed, folder, say)
        if picture is not None:
            draw(plans_found, picture)
    if any(before[name] != found for name, found in found_in(folder).items() if name in before):
        say("what was found before for this size and number of steps is replaced: jobs that use it "
            "and are rendered from now on go by the new one")  # fmt: skip
    print(json.dumps(report) if as_json else as_text(report))


@contextmanager
def _told_to_go_on(say: Callable[[str], None]) -> Iterator[None]:
    """Whoever interrupts a calibration."""
    try:
        yield
    except KeyboardInterrupt:
        say("what is finished is kept: the same command goes on from there")
        raise


def _own_folder(spec: JobSpec, rehash: bool) -> Path | None:
    """Where the job itself will look for what is found."""
    asked = spec.accelerations
    own = (
        asked.rehash and asked.rehash.profiles
        if rehash
        else (asked.fast_attention and asked.fast_attention.plans)
    )
    return Path(own).expanduser() if own else None


def _check_device(asked: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", asked):
        raise errors.BadJob(f"--device {asked!r}: valid: auto, cpu, cuda, or a GPU such as cuda:1")


def presets_command(
    what: JobOrModelArgument = None,
    prompt: PromptsOption = None,
    image: ImageOption = None,
    size: SizeOption = None,
    steps: StepsOption = None,
    pyramid: PyramidOption = None,
    model: ModelOption = None,
    lora: LorasOption = None,
    picture: StillsOption = None,
    device: CalibrateDeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """List the presets for faster renders. What each does, and how far the film then differs. With
    a job file, or a model and prompts: try each of them there, on the beginnings of its longest
    shots, against the full render of the same noise."""
    from orchestrator.try_presets import kept, save_sheet, try_presets

    flags = {
        "image": image, "size": size, "steps": steps, "pyramid": pyramid,
        "loras": loras_given(lora),
    }  # fmt: skip
    _check_device(device)
    check_file(picture, "--picture", ".png")
    if what is None and prompt is None and model is None and not any(flags.values()):
        if picture is not None:
            raise errors.BadJob("--picture shows what was tried; give a job file, or a model")
        rows = show_presets.preset_rows(kept())
        print(json.dumps(rows) if as_json else show_presets.preset_table(rows))
        return
    spec = sample_job("presets", what, model, prompt or [], seconds=None, **flags)
    say = partial(print, file=sys.stderr)
    report, sheet = try_presets(spec, device, say, stills=picture is not None)
    print(json.dumps(report) if as_json else show_presets.tried_text(report))
    if sheet is not None and picture is not None:
        save_sheet(sheet, picture)
