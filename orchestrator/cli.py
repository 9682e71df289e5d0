"""The ``longtake`` command. Data goes to standard output, everything else to standard error."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import errors
from orchestrator import inspect_job, show
from orchestrator.cli_models import animatediff_command
from orchestrator.cli_options import (
    DEFAULT_STORE,
    AddressOption,
    Device,
    DeviceOption,
    FileArgument,
    FirstStageOption,
    FpsOption,
    ImageOption,
    JobArgument,
    JsonOption,
    LatentsOption,
    LorasOption,
    ModelOption,
    NegativeOption,
    OutOption,
    PresetOption,
    PromptOption,
    PyramidOption,
    RepeatedNoiseOption,
    SecondsOption,
    SeedOption,
    SizeOption,
    StepsOption,
    StoreOption,
    TimeoutOption,
    WorkersOption,
    valid_range,
)
from orchestrator.cli_planning import (
    calibrate_command,
    loras_given,
    plan_command,
    prepared_job,
    presets_command,
)
from orchestrator.export import check_file
from orchestrator.export import save_latents as export_latents
from orchestrator.prepare import check_same_model, new_job_id, plan_from_json, plan_to_json

app = typer.Typer(
    name="longtake",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

#: What a command line that cannot be understood raises. Typer has carried a copy of Click of its
#: own since it stopped using the package, so the class is found through one that Typer exports.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]


def _say_version(wanted: bool) -> None:
    if wanted:
        print(importlib.metadata.version("longtake"))
        raise typer.Exit


@app.callback()
def longtake(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="show it, and exit"),
    ] = False,
) -> None:
    """Render long AI videos on the GPUs you already own. Stop it at any time: `longtake resume`
    goes on, and the film is the same, to the bit on devices of one kind."""


@app.command("render")
def render_command(
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
    store: StoreOption = DEFAULT_STORE,
    out: OutOption = None,
    save_latents: LatentsOption = None,
    address: AddressOption = None,
    timeout: TimeoutOption = None,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Render a film from a job file, or from options. What an option says wins over the file."""
    from orchestrator.render import check_devices, check_out

    prepared = prepared_job(
        file, prompt=prompt, negative=negative, image=image, seconds=seconds, size=size,
        fps=fps, seed=seed, steps=steps, pyramid=pyramid, pyramid_first_stage=pyramid_first_stage,
        repeated_noise=repeated_noise, model=model, loras=loras_given(lora), preset=preset,
    )  # fmt: skip
    job_id = new_job_id(prepared.spec)
    film = check_out(out or Path(f"{job_id}{_ending(prepared.plan.codec)}"), prepared.plan.codec)
    check_file(save_latents, "--save-latents", ".safetensors")
    check_devices(prepared.plan, address, device.value)
    opened = _open(store, create=True)
    folder = opened.create_job(job_id, prepared.spec.canonical(), plan_to_json(prepared.plan))
    _render(
        opened, folder, prepared.plan, film, as_json, save_latents,
        workers=workers, address=address, timeout_s=timeout, device=device.value,
    )  # fmt: skip


@app.command("resume")
def resume_command(
    job: JobArgument,
    store: StoreOption = DEFAULT_STORE,
    out: Annotated[
        Path | None, typer.Option(help="the film's file; default: where it was to be")
    ] = None,
    workers: WorkersOption = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="take it from another longtake that renders it")
    ] = False,
    save_latents: LatentsOption = None,
    address: AddressOption = None,
    timeout: TimeoutOption = None,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Go on with a render that was stopped. The film is the same as without the break, to the bit
    on devices of one kind."""
    from orchestrator.render import check_devices, check_out

    opened = _open(store)
    folder = opened.job(job)
    plan = plan_from_json(folder.plan())
    check_same_model(plan)
    known = inspect_job.film_path(folder)
    film = check_out(out or known or Path(f"{job}{_ending(plan.codec)}"), plan.codec)
    check_file(save_latents, "--save-latents", ".safetensors")
    check_devices(plan, address, device.value)
    _render(
        opened, folder, plan, film, as_json, save_latents,
        workers=workers, address=address, timeout_s=timeout, device=device.value,
        take_over=take_over,
    )  # fmt: skip


def _render(
    store: Any,
    folder: Any,
    plan: Any,
    out: Path,
    as_json: bool,
    latents: Path | None,
    **options: Any,
) -> None:
    """Render, say how it ended, and exit with its code."""
    from orchestrator.progress import RenderProgress
    from orchestrator.render import RenderOptions, render_job

    # Ray prints what its raylet has to say of workers that died to standard output, as it is then.
    with redirect_stdout(sys.stderr), RenderProgress(plan) as progress:
        progress.say(f"job {folder.id} in {store.root}, model {plan.model}")
        for warning in plan.warnings:
            progress.say(f"warning: {warning}")
        ended = render_job(
            store, folder, plan, RenderOptions(out=out, **options), progress, progress.say
        )
    counts, kept = inspect_job.engaged_in(folder, plan), inspect_job.kept_path(folder)
    ending = show.Ending(folder.id, store.root, out, plan, ended, *counts, kept, options["address"])
    print(ending.text(), file=sys.stderr)
    code, told = ending.exit_code, ending.as_json()
    if ended.outcome == "done" and latents is not None:
        error = _export(store, plan, folder.id, latents)
        told |= {"latents": None if error else str(latents)}
        if error is not None:
            code = error.exit_code
            told |= {"error": str(error), "exit_code": code}
    if as_json:
        print(json.dumps(told))
    raise typer.Exit(code)


def _export(store: Any, plan: Any, job: str, path: Path) -> errors.LongtakeError | None:
    """The film is done whatever comes of this, and the person knows it by now."""
    try:
        export_latents(store, plan, job, path)
    except errors.LongtakeError as error:
        print(f"longtake: {error}", file=sys.stderr)
        return error
    return None


app.command("plan")(plan_command)
app.command("calibrate")(calibrate_command)
app.command("presets")(presets_command)
app.command("animatediff")(animatediff_command)


@app.command("ls")
def ls_command(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List all jobs, and what became of each."""
    opened = _open(store, writable=False)
    rows = [inspect_job.summary(opened.job(job)) for job in opened.jobs()]
    rows.sort(key=lambda row: row["created"])
    print(json.dumps(rows) if as_json else show.job_table(rows))


@app.command("show")
def show_command(
    job: JobArgument,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show a job. What its shots are, how far it is, how it ended."""
    opened = _open(store, writable=False)
    report = inspect_job.report(opened, opened.job(job))
    print(json.dumps(report) if as_json else show.job_text(report))


@app.command("verify")
def verify_command(
    job: JobArgument,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Check a finished film. Everything that was stored of it is read again, and every frame is
    compared with what was rendered."""
    from orchestrator.verify import verify

    opened = _open(store, writable=False)
    report = verify(opened, opened.job(job))
    print(json.dumps(report) if as_json else show.verify_text(report))
    if report["problems"]:
        raise typer.Exit(errors.EXIT_VERIFY_MISMATCH)


@app.command("remove")
def remove_command(
    job: JobArgument,
    store: StoreOption = DEFAULT_STORE,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a job, but not its film. Results that other jobs share stay, too."""
    from orchestrator.remove import belongings, remove_job

    opened = _open(store)
    folder = opened.job(job)
    if not yes:
        print(show.removal_text(belongings(opened, folder).as_json()), file=sys.stderr)
        if not sys.stdin.isatty():
            raise errors.BadJob("there is nobody to ask here; say --yes")
        print("Remove it? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("longtake: nothing is removed", file=sys.stderr)
            raise typer.Exit(errors.EXIT_CANCELLED)
    removed = remove_job(opened, folder).as_json()
    print(json.dumps(removed) if as_json else f"removed: {show.removal_text(removed)}")


@app.command("report")
def report_command(
    job_or_film: Annotated[str, typer.Argument(help="a job's id, or a film file")],
    store: StoreOption = DEFAULT_STORE,
    out: Annotated[
        Path | None, typer.Option(help="the page's file; default: the job's name, .report.html")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="a film of the same length to compare with")
    ] = None,
    border: Annotated[
        list[float] | None,
        typer.Option(metavar="SECONDS", help="of a film file: a place to look at; repeatable"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a page about a film. Where its windows meet, how its colours drift, where the time
    went, with pictures."""
    from orchestrator.report import report_file, report_job

    check_file(out, "--out", ".html")
    film = Path(job_or_film).expanduser()
    if film.is_file():
        said, pictures = report_file(film, reference, border or ())
    elif border:
        raise errors.BadJob(f"--border is for video files, and {job_or_film} is none; remove it")
    else:
        said, pictures = report_job(_reported_job(job_or_film, store), reference)
    if as_json:
        print(json.dumps(said))
    if out is None and as_json:
        return
    from orchestrator.report_page import write_page

    path = (out or Path(f"{film.stem if film.is_file() else job_or_film}.report.html")).expanduser()
    write_page(said, pictures, path)
    print(f"report: {path}", file=sys.stderr)


def _reported_job(given: str, store: str) -> Any:
    """A job of the store. A name that is none may have been meant as a file's, too."""
    try:
        return _open(store, writable=False).job(given)
    except (errors.BadJob, errors.NoStore) as error:
        raise errors.BadJob(
            f"{given} is no film file here, and no job ({error}); give a film file, or a job's id"
        ) from None


def _open(store: str, *, create: bool = False, writable: bool = True) -> Any:
    from jobs.store import Store

    place = store if "://" in store else Path(store).expanduser()
    return Store.open(place, create=create, writable=writable)


def _ending(codec: str) -> str:
    return ".mkv" if codec == "ffv1" else ".mp4"


def main() -> None:
    """Run the command; every error becomes one message and one exit code."""
    command = typer.main.get_command(app)
    code = None
    try:
        with command.make_context("longtake", sys.argv[1:]) as context:
            code = command.invoke(context)
    except errors.LongtakeError as error:
        _fail(str(error), error.exit_code)
    except typer.Exit as ended:
        sys.exit(ended.exit_code)
    except _USAGE_ERROR as error:
        _fail(_usage(error), errors.EXIT_BAD_JOB)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", errors.EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(errors.EXIT_INTERNAL)
    except Exception as error:
        _fail(_internal(error), errors.EXIT_INTERNAL)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    if "--json" in sys.argv:
        print(json.dumps({"error": message, "exit_code": code}))
    print(f"longtake: {message}", file=sys.stderr)
    sys.exit(code)


def _usage(error: Any) -> str:
    """What is wrong with the command line, what is valid, and where to read on."""
    context = error.ctx
    path = context.command_path if context else "longtake"
    if len(sys.argv) == 1 and context:
        return f"say what to do\n{context.get_help()}"
    said = str(error.format_message()).rstrip(".")
    commands = getattr(context.command, "commands", None) if context else None
    valid = f"; valid: {', '.join(commands)}" if commands else valid_range(error)
    return f"{said}{valid}\nSee: {path} --help"


def _internal(error: Exception) -> str:
    """A bug of ours: the trace goes to a file, the person gets a line."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="longtake-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        traceback.print_exception(error, file=log)
    return (
        f"internal error: {type(error).__name__}: {error}\nThis is a bug; {log.name} says where. "
        "What was rendered is in the store: `longtake ls`, then `longtake resume JOB`"
    )


if __name__ == "__main__":
    main()
