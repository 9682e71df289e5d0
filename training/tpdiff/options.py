"""The options of ``python -m training.tpdiff``, and what is wrong with them by themselves."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from jobs.errors import BadJob
from jobs.pyramid import MOST_STAGES
from training.tpdiff.settings import Settings

#: Of an adapter, which starts from nothing: ten times that of weights that know their model.
LORA_RATE = 10 * Settings().rate


def parser(description: str | None) -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python -m training.tpdiff",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # fmt: off
    add, base = command.add_argument, Settings()
    add("--model", required=True, help="a diffusers folder, a Hugging Face id, or demo")
    add("--data", type=Path, required=True,
        help="a folder of videos and captions: of sea.mp4 in sea.txt, or in metadata.jsonl")
    add("--out", type=Path, required=True, help="where state, pictures and the result go")
    add("--bad-data", choices=("refuse", "skip"), default="refuse",
        help="videos that cannot be trained on, and those found damaged later (refuse)")
    add("--stages", type=int, choices=range(1, MOST_STAGES + 1), default=base.stages,
        help=f"of the pyramid, each of twice the frame rate of the one before ({base.stages})")
    add("--step-shares", type=_shares, help="of a render's steps, such as 2-1-1; even if not said")
    add("--no-alignment", dest="alignment", action="store_false",
        help="clips get any noise of their batch, not the one that is nearest on the whole")
    add("--coarse", choices=("mean", "first"), default=base.coarse,
        help=f"what a coarse stage's frames show of those that they stand for ({base.coarse})")
    add("--no-stage-positions", dest="stage_positions", action="store_false",
        help="rotary positions count a stage's own frames, not those of the clip")
    add("--pixel-frames", type=int, help="of a clip; as the model's window if not said")
    add("--fps", type=int, help="frames a second that clips are read at; as the model's")
    add("--size", type=_size, help="such as 832x480; as the model's")
    add("--starts", type=float, help=f"share of windows that start a shot ({base.starts})")
    add("--steps", type=int, default=base.steps, help=f"of the optimiser ({base.steps})")
    add("--batch", type=int, default=base.batch,
        help=f"clips at a time on each device ({base.batch}); alignment needs several")
    add("--accumulate", type=int, default=base.accumulate,
        help=f"such batches for a step ({base.accumulate})")
    add("--rate", type=float,
        help=f"of learning ({base.rate:g}; of an adapter {LORA_RATE:g})")
    add("--warmup-steps", type=int, default=base.warmup_steps,
        help=f"until the rate is reached ({base.warmup_steps})")
    add("--dropped-captions", type=float, default=base.dropped_captions,
        help=f"share of clips that are shown without theirs ({base.dropped_captions})")
    add("--lora-rank", type=int, default=base.lora_rank,
        help=f"of an adapter; 0: all weights are trained ({base.lora_rank})")
    add("--merge", action="store_true", help="write a whole model with the adapter in it as well")
    add("--precision", choices=("no", "fp16", "bf16"), default=base.precision,
        help=f"to compute in; no: float32 ({base.precision})")
    add("--checkpointing", action="store_true", help="less memory for more time")
    add("--save-every", type=int, default=base.save_every,
        help=f"steps; the last state is kept ({base.save_every})")
    add("--sample-every", type=int, default=base.sample_every,
        help=f"steps; 0: no pictures ({base.sample_every})")
    add("--sample-steps", type=int, help=f"of a picture's render ({base.sample_steps})")
    add("--sample-prompt", dest="sample_prompts", action="append", default=[], metavar="PROMPT",
        help="what a picture shows, again for more; the first captions if not said")
    add("--seed", type=int, default=base.seed, help=f"of clips and noise ({base.seed})")
    # fmt: on
    return command


def _shares(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[0-9]{1,3}(-[0-9]{1,3})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no shares; write them such as 2-1-1")
    return tuple(int(share) for share in text.split("-"))


def _size(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", text.lower()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it such as 832x480")
    width, height = text.lower().split("x")
    return int(width), int(height)


def check_options(options: argparse.Namespace) -> None:
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
    if not 0 <= options.seed < 2**32:
        raise BadJob(f"--seed must be 0 to {2**32 - 1}, not {options.seed}")
    if options.rate is not None and not options.rate > 0:
        raise BadJob(f"--rate must be more than 0, not {options.rate}")
    if not all(prompt.strip() for prompt in options.sample_prompts):
        raise BadJob("--sample-prompt is empty; say what the picture shows")
    _check_out(options.out)
    _check_effect(options)


def _check_out(out: Path) -> None:
    """Before hours of work that could not be kept. Raises BadJob."""
    there = out
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise BadJob(f"--out {out}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK):
        raise BadJob(f"--out {out}: nothing can be written into {there}; give another folder")


def _check_effect(options: argparse.Namespace) -> None:
    """Options that would change nothing beside the others. Raises BadJob."""
    pictures = "--sample-every 0 draws no pictures; say how often, such as --sample-every 500"
    plain = "--stages 1 is no pyramid; say more stages"
    idle = {
        "--merge": options.merge and not options.lora_rank,
        "--coarse": options.coarse != Settings().coarse and options.stages == 1,
        "--step-shares": options.step_shares is not None and options.stages == 1,
        "--no-stage-positions": not options.stage_positions and options.stages == 1,
        "--sample-prompt": options.sample_prompts and not options.sample_every,
        "--sample-steps": options.sample_steps is not None and not options.sample_every,
    }
    why = {"--merge": "all weights are trained, and written whole; say --lora-rank"}
    why |= dict.fromkeys(("--coarse", "--step-shares", "--no-stage-positions"), plain)
    why |= dict.fromkeys(("--sample-prompt", "--sample-steps"), pictures)
    for name, is_idle in idle.items():
        if is_idle:
            raise BadJob(f"{name} would change nothing: {why[name]}, or remove it")
