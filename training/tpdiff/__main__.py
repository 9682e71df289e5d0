"""Trains a model for a temporal pyramid (TPDiff) on a folder of videos and captions.

    python -m training.tpdiff --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --data videos --out wan-tp \
        --stages 3 --lora-rank 32 --precision bf16 --batch 4 --steps 5000 --sample-every 500

A video's caption is the text of the file beside it (`sea.mp4`, `sea.txt`), or its `text` in the
folder's `metadata.jsonl`, as in Hugging Face's data sets.

With several devices: `accelerate launch -m training.tpdiff ...`; each has all weights. Ctrl-C
stops after the step (several devices: at once, and what was saved last is kept); run it again with
the same --out to go on. A render of the result uses its pyramid.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    set_seed,
)
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    track,
)

from accel.pyramid import lay_stages
from jobs.errors import EXIT_INTERRUPTED, BadJob, LongtakeError
from training.tpdiff import result
from training.tpdiff.batches import frames_in, shortest_s, whole_windows_s
from training.tpdiff.options import LORA_RATE, check_options, parser
from training.tpdiff.settings import Settings
from training.tpdiff.trainee import Trainee
from training.tpdiff.trainees import load_trainee
from training.tpdiff.trainer import Interrupted, Trainer
from training.tpdiff.videos import Bad, Track, Video, scan
from workers.machine import ran_out_of_memory

#: Ways of accelerate's that leave no process with all weights.
SPLITS_WEIGHTS = (
    DistributedType.FSDP,
    DistributedType.DEEPSPEED,
    DistributedType.MEGATRON_LM,
)

#: What a frozen base is loaded in, by ``--precision``.
BASE_DTYPES = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}

_TOO_LARGE = (
    "the device has no memory left for this. What takes less: --checkpointing; and, which begin "
    "anew with another --out, --lora-rank 16 instead of all weights, --precision bf16 with it, "
    "--batch 1 --accumulate 4 instead of --batch 4, a smaller --size, fewer --pixel-frames. What "
    "was saved last is kept"
)

Found = TypeVar("Found")


def main(arguments: list[str] | None = None) -> None:
    """Command line. Ends with one clear line on a mistake."""
    options = parser(__doc__).parse_args(arguments)
    try:
        run(options)
    except LongtakeError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a full disk, a folder that went away
        sys.exit(f"error: {error}; what was saved last is kept")
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        sys.exit(f"error: {_TOO_LARGE}")
    except (KeyboardInterrupt, Interrupted):
        print("stopped; the same command goes on from what was saved last", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def run(options: argparse.Namespace) -> None:
    check_options(options)
    accelerator = _accelerator(options.precision, options.accumulate)
    # Standard error is for people, and one process speaks for all.
    console = Console(stderr=True, quiet=not accelerator.is_main_process, highlight=False)
    say = partial(console.print, soft_wrap=True, markup=False)
    set_seed(options.seed)
    device, dtype = str(accelerator.device), "float32"
    if options.lora_rank:  # its base is frozen; weights that are trained stay in float32
        dtype = BASE_DTYPES[options.precision]
    trainee = load_trainee(options.model, device, options.stages, dtype)
    settings = _settings(options, trainee)
    show = partial(_track, console)
    videos = _videos(options, settings, accelerator, trainee, say, show)
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        trainee, videos, settings, options.out, accelerator, say, show,
        skip_damaged=options.bad_data == "skip",
    )  # fmt: skip
    _say_what_is_less(trainer, say)
    trainer.resume()
    with _progress(console) as progress, _stop_between_steps(accelerator) as stopped:
        task = progress.add_task("training", total=settings.steps, completed=trainer.step, loss="")
        trainer.train(
            lambda step, loss: progress.update(task, completed=step, loss=f"loss {loss:.4f}"),
            stopped,
        )
    if accelerator.is_main_process:
        _write(trainee, settings, options, say)


def _accelerator(precision: str, accumulate: int) -> Accelerator:
    """Raises BadJob for a precision that this machine cannot have."""
    # All others wait while the main process reads a large folder of videos and their captions.
    patient = InitProcessGroupKwargs(timeout=timedelta(hours=12))
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=accumulate,
        kwargs_handlers=[patient],
    )
    if (
        precision == "fp16" and accelerator.device.type == "cpu"
    ):  # accelerate would train in float32
        raise BadJob("--precision fp16 needs a GPU, and there is none; say bf16, or no")
    kind = accelerator.distributed_type
    if kind in SPLITS_WEIGHTS:  # the main process alone could not write them
        raise BadJob(
            f"accelerate is set to {kind.value}, which splits weights over devices; here each has "
            "all of them: accelerate launch --multi_gpu -m training.tpdiff ..."
        )
    return accelerator


@contextmanager
def _stop_between_steps(accelerator: Accelerator) -> Iterator[Callable[[], bool]]:
    """Ctrl-C is answered when the step is done, a second one at once; so is the first where several
    processes train, which would have to agree on the step: they go on from what was saved last."""
    asked = threading.Event()
    if accelerator.num_processes > 1:
        yield asked.is_set
        return

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        print("stopping after this step; Ctrl-C again stops at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _say_what_is_less(trainer: Trainer, say: Callable[[str], None]) -> None:
    """What this training has less of than it might."""
    settings, videos = trainer.settings, trainer.videos
    if settings.alignment and settings.batch == 1:
        say("note: with --batch 1 there is nothing to align; a larger one trains better")
    needs = whole_windows_s(settings, trainer.trainee.info.geometry, trainer.stages)
    for number, need_s in enumerate(needs, 1):
        most = frames_in(need_s, settings.fps)
        short = sum(frames_in(video.seconds, settings.fps) < most for video in videos)
        if short:
            all_of_them = _count(len(videos), "video")
            say(
                f"note: {short} of {all_of_them} last less than the {need_s:.2f} s that whole "
                f"windows of stage {number} take; theirs have fewer frames"
            )


def _write(
    trainee: Trainee, settings: Settings, options: argparse.Namespace, say: Callable[[str], None]
) -> None:
    model = options.out / "model"
    if settings.lora_rank:
        result.write_lora(trainee, settings, options.out / "lora")
        lora = options.out / "lora"
        say(f"adapter: {lora}")
        say(f"render with it: longtake render --model {options.model} --lora {lora} ...")
    if not settings.lora_rank or options.merge:
        if settings.lora_rank:
            trainee = result.merge_lora(trainee, settings.lora_rank)
        result.write_model(trainee, settings, model)
        say(f"model: {model}\nrender with it: longtake render --model {model} ...")


def _settings(options: argparse.Namespace, trainee: Trainee) -> Settings:
    """The options, with what was not said as the model has it. Raises BadJob."""
    defaults, geometry = trainee.info.defaults, trainee.info.geometry
    given = {f.name: getattr(options, f.name) for f in fields(Settings) if hasattr(options, f.name)}
    given["sample_prompts"] = tuple(options.sample_prompts)
    if options.starts is not None and not geometry.first_alone:
        raise BadJob("--starts: in this family a window is the same wherever it begins; remove it")
    if options.rate is None and options.lora_rank:
        given["rate"] = LORA_RATE
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    window = geometry.pixel_frames(geometry.window_latent_frames)
    settings = replace(
        settings,
        pixel_frames=settings.pixel_frames or window,
        fps=settings.fps or defaults.fps,
        size=tuple(s or d for s, d in zip(settings.size, defaults.size, strict=True)),
        stage_positions=settings.stage_positions and trainee.counts_stages,
    )
    _check(settings, geometry.size_multiple, geometry.temporal_scale)
    for prompt in settings.sample_prompts:
        if wrong := trainee.too_long(prompt):
            raise BadJob(f"--sample-prompt {prompt[:40]!r}... {wrong}")
    info, stride = trainee.info, 2 ** (settings.stages - 1) if settings.stage_positions else 1
    longest = geometry.pixel_frames(info.family.longest_window(info.configs, stride))
    if settings.pixel_frames > longest:
        raise BadJob(
            f"--pixel-frames {settings.pixel_frames} is more than this model has positions for; at "
            f"most {longest}"
        )
    return settings


def _check(settings: Settings, multiple: int, scale: int) -> None:
    if any(side % multiple for side in settings.size):
        said = "x".join(map(str, settings.size))
        raise BadJob(f"--size {said}: both must be multiples of {multiple} px for this model")
    if (settings.pixel_frames - 1) % scale:
        near = 1 + (settings.pixel_frames - 1) // scale * scale
        raise BadJob(
            f"--pixel-frames {settings.pixel_frames} must be 1 more than a multiple of {scale} "
            f"for this model; the nearest: {near} or {near + scale}"
        )
    if settings.step_shares and len(settings.step_shares) != settings.stages:
        raise BadJob(
            f"--step-shares has {_count(len(settings.step_shares), 'share')} for "
            f"{settings.stages} stages; give one for each"
        )
    if settings.step_shares and min(settings.step_shares) < 1:
        raise BadJob("--step-shares: each stage needs a share of 1 or more")
    if settings.sample_every and settings.sample_steps < settings.stages:
        raise BadJob(
            f"--sample-steps {settings.sample_steps} is too few for {settings.stages} stages: each "
            "needs one"
        )


def _videos(
    options: argparse.Namespace,
    settings: Settings,
    accelerator: Accelerator,
    trainee: Trainee,
    say: Callable[[str], None],
    show: Track,
) -> list[Video]:
    """The videos to train on; bad ones are named, and skipped only if the person said so."""
    stages = lay_stages(trainee.path, settings.stages, settings.coarse)
    least_s = shortest_s(settings, trainee.info.geometry, stages)
    look = partial(scan, options.data, least_s, show, trainee.too_long)
    good, bad = _by_main(accelerator, look)
    if bad and options.bad_data == "refuse":
        raise BadJob(f"{_told(bad)}\nmend them, or train without them: --bad-data skip")
    for each in bad:
        say(f"skipped: {each}")
    if not good:
        raise BadJob(f"{_told(bad)}\nno video is left to train on")
    return good


def _by_main(accelerator: Accelerator, look: Callable[[], Found]) -> Found:
    """What the main process finds, for all."""
    found: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            found = [look()]
        except BadJob as error:  # all end with it
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], BadJob):
        raise found[0]
    return found[0]


def _told(bad: list[Bad]) -> str:
    shown = [f"  {each}" for each in bad[:20]]
    more = [f"  and {len(bad) - 20} more"] if len(bad) > 20 else []
    return "\n".join([f"{_count(len(bad), 'video')} cannot be trained on:", *shown, *more])


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _track(console: Console, items: Sequence[Any], what: str) -> Iterable[Any]:
    return track(items, what, console=console, disable=console.quiet or not items, transient=True)


def _progress(console: Console) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(
        TextColumn("{task.description}"), *columns, TextColumn("{task.fields[loss]}"),
        console=console, disable=console.quiet,
    )  # fmt: skip


if __name__ == "__main__":
    main()
