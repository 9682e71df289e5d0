"""Trains a model for a temporal pyramid (TPDiff) on a folder of videos and captions.

    python -m training.tpdiff --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --data videos --out wan-tp \
        --stages 3 --lora-rank 32 --precision bf16 --batch 4 --steps 5000 --sample-every 500

With several devices: `accelerate launch -m training.tpdiff ...`. Run it again with the same --out
to go on after a stop. A render of the result uses its pyramid.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.errors import BadJob, LongtakeError
from jobs.pyramid import MOST_STAGES
from training.tpdiff import result
from training.tpdiff.trainee import Trainee
from training.tpdiff.trainees import load_trainee
from training.tpdiff.trainer import Settings, Trainer
from training.tpdiff.videos import Bad, Video, scan


def main(arguments: list[str] | None = None) -> None:
    """Command line. Ends with one clear line on a mistake."""
    options = _parser().parse_args(arguments)
    try:
        run(options)
    except LongtakeError as error:
        sys.exit(f"error: {error}")


def run(options: argparse.Namespace) -> None:
    _check_options(options)
    accelerator = Accelerator(
        mixed_precision=options.precision, gradient_accumulation_steps=options.accumulate
    )
    # Standard error is for people, and one process speaks for all.
    console = Console(stderr=True, quiet=not accelerator.is_main_process, highlight=False)
    say = partial(console.print, soft_wrap=True, markup=False)
    set_seed(options.seed)
    trainee = load_trainee(options.model, str(accelerator.device), options.stages)
    settings = _settings(options, trainee)
    videos = _videos(options, settings, say)
    if settings.alignment and settings.batch == 1:
        say("note: with --batch 1 there is nothing to align; a larger one trains better")
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(trainee, videos, settings, options.out, accelerator, say)
    trainer.resume()
    with _progress(console) as progress:
        task = progress.add_task("training", total=settings.steps, completed=trainer.step, loss="")
        trainer.train(
            lambda step, loss: progress.update(task, completed=step, loss=f"loss {loss:.4f}")
        )
    if accelerator.is_main_process:
        _write(trainee, settings, options, say)


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
            result.merge_lora(trainee)
        result.write_model(trainee, settings, model)
        say(f"model: {model}\nrender with it: longtake render --model {model} ...")


def _settings(options: argparse.Namespace, trainee: Trainee) -> Settings:
    """The options, with what was not said as the model has it. Raises BadJob."""
    defaults, geometry = trainee.info.defaults, trainee.info.geometry
    given = {f.name: getattr(options, f.name) for f in fields(Settings) if hasattr(options, f.name)}
    if options.starts is not None and not geometry.first_alone:
        raise BadJob("--starts: in this family a window is the same wherever it begins; remove it")
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
    info, stride = trainee.info, 2 ** (settings.stages - 1) if settings.stage_positions else 1
    longest = geometry.pixel_frames(info.family.longest_window(info.configs, stride))
    if settings.pixel_frames > longest:
        raise BadJob(
            f"--pixel-frames {settings.pixel_frames} is more than this model has positions for; at "
            f"most {longest}"
        )
    return settings


def _check_options(options: argparse.Namespace) -> None:
    """Numbers that cannot be, before anything loads. Raises BadJob."""
    least = {"steps": 1, "batch": 1, "accumulate": 1, "fps": 1, "pixel_frames": 1, "lora_rank": 0,
             "warmup_steps": 0, "save_every": 1, "sample_every": 0, "sample_steps": 1}  # fmt: skip
    for name, low in least.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise BadJob(f"--{name.replace('_', '-')} must be {low} or more, not {value}")
    for name in ("dropped_captions", "starts"):
        if not 0 <= (getattr(options, name) or 0) <= 1:
            raise BadJob(f"--{name.replace('_', '-')} is a share: 0 to 1")
    if not options.rate > 0:
        raise BadJob(f"--rate must be more than 0, not {options.rate}")


def _check(settings: Settings, multiple: int, scale: int) -> None:
    if any(side % multiple for side in settings.size):
        raise BadJob(f"--size {settings.size} must be multiples of {multiple} px for this model")
    if (settings.pixel_frames - 1) % scale:
        near = 1 + (settings.pixel_frames - 1) // scale * scale
        raise BadJob(
            f"--pixel-frames {settings.pixel_frames} must be 1 more than a multiple of {scale} "
            f"for this model; the nearest: {near} or {near + scale}"
        )
    if settings.step_shares and len(settings.step_shares) != settings.stages:
        raise BadJob(
            f"--step-shares has {len(settings.step_shares)} shares for {settings.stages} stages"
        )
    if settings.step_shares and min(settings.step_shares) < 1:
        raise BadJob("--step-shares: each stage needs a share of 1 or more")


def _videos(
    options: argparse.Namespace, settings: Settings, say: Callable[[str], None]
) -> list[Video]:
    """The videos to train on; bad ones are named, and skipped only if the person said so."""
    good, bad = scan(options.data, settings.pixel_frames / settings.fps)
    if bad and options.bad_data == "refuse":
        raise BadJob(f"{_told(bad)}\nmend them, or train without them: --bad-data skip")
    for each in bad:
        say(f"skipped: {each}")
    if not good:
        raise BadJob(f"{_told(bad)}\nno video is left to train on")
    return good


def _told(bad: list[Bad]) -> str:
    shown = [f"  {each}" for each in bad[:20]]
    more = [f"  and {len(bad) - 20} more"] if len(bad) > 20 else []
    return "\n".join([f"{len(bad)} videos cannot be trained on:", *shown, *more])


def _progress(console: Console) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(
        TextColumn("{task.description}"), *columns, TextColumn("{task.fields[loss]}"),
        console=console, disable=console.quiet,
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.tpdiff",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, base = parser.add_argument, Settings()
    add("--model", required=True, help="a diffusers folder, a Hugging Face id, or demo")
    add("--data", type=Path, required=True, help="a folder of videos and captions")
    add("--out", type=Path, required=True, help="where state, pictures and the result go")
    add("--bad-data", choices=("refuse", "skip"), default="refuse")
    add("--stages", type=int, choices=range(1, MOST_STAGES + 1), default=base.stages)
    add("--step-shares", type=_shares, help="of a render's steps, such as 2-1-1; even if not said")
    add("--no-alignment", dest="alignment", action="store_false")
    add("--coarse", choices=("mean", "first"), default=base.coarse,
        help="what a coarse stage's frames show of those that they stand for")  # fmt: skip
    add("--no-stage-positions", dest="stage_positions", action="store_false")
    add("--pixel-frames", type=int, help="of a clip; as the model's window if not said")
    add("--fps", type=int, help="frames a second that clips are read at; as the model's")
    add("--size", type=_size, help="such as 832x480; as the model's")
    add("--starts", type=float, help=f"share of windows that start a shot; {base.starts}")
    add("--steps", type=int, default=base.steps)
    add("--batch", type=int, default=base.batch, help="clips at a time on each device")
    add("--accumulate", type=int, default=base.accumulate, help="such batches for a step")
    add("--rate", type=float, default=base.rate)
    add("--warmup-steps", type=int, default=base.warmup_steps)
    add("--dropped-captions", type=float, default=base.dropped_captions)
    add("--lora-rank", type=int, default=base.lora_rank, help="0: all weights are trained")
    add("--merge", action="store_true", help="write a whole model with the adapter in it as well")
    add("--precision", choices=("no", "fp16", "bf16"), default=base.precision)
    add("--checkpointing", action="store_true", help="less memory for more time")
    add("--save-every", type=int, default=base.save_every)
    add("--sample-every", type=int, default=base.sample_every, help="0: no pictures")
    add("--sample-steps", type=int, default=base.sample_steps)
    add("--seed", type=int, default=base.seed)
    return parser


def _shares(text: str) -> tuple[int, ...]:
    return tuple(int(share) for share in text.split("-"))


def _size(text: str) -> tuple[int, int]:
    width, height = text.lower().split("x")
    return int(width), int(height)


if __name__ == "__main__":
    main()
