"""The options that commands share, as Typer reads them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.spec_pyramid import checked_pyramid

DEFAULT_STORE = "~/.longtake"


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="a job's id; `longtake ls` lists them")
]
StoreOption = Annotated[
    str,
    typer.Option("--store", metavar="URI", envvar="LONGTAKE_STORE", help="the folder of all jobs"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON on standard output")]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, max=1024, help="how many render at once; default: one per GPU, or core"
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="a Ray cluster to render on; default: this machine alone"),
]
DeviceOption = Annotated[
    Device, typer.Option("--device", help="what to render on; auto: GPUs if there are any")
]
TimeoutOption = Annotated[
    float | None,
    typer.Option("--timeout", min=0.1, help="stop after so many seconds, for resume to go on"),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="the film's file; default: JOB.mp4, here")
]
LatentsOption = Annotated[
    Path | None,
    typer.Option(
        "--save-latents", help="also keep the film as the model's latents, a .safetensors file"
    ),
]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", help="what the film shows (one shot)")
]
NegativeOption = Annotated[str | None, typer.Option("--negative", help="what it must not show")]
ImageOption = Annotated[
    str | None, typer.Option("--image", help="the picture it starts from, for models that need one")
]
SecondsOption = Annotated[float | None, typer.Option("--seconds", help="how long it is")]
SizeOption = Annotated[
    str | None,
    typer.Option("--size", metavar="WxH", help="width and height in pixels, such as 832x480"),
]
FpsOption = Annotated[int | None, typer.Option("--fps", help="frames per second")]
SeedOption = Annotated[
    int | None, typer.Option("--seed", help="any number; another one makes another film")
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", help="denoising steps; more take longer")
]


def _pyramid(text: str) -> Any:
    """A word, or a number of stages, as a job file would have it."""
    try:
        return checked_pyramid(int(text) if text.isdecimal() else text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


PyramidOption = Annotated[
    Any,
    typer.Option(
        "--pyramid",
        metavar="auto|off|K",
        parser=_pyramid,
        help="K stages, each at twice the frame rate of the one before; auto (the default): as "
        "the weights were trained",
    ),
]
RepeatedNoiseOption = Annotated[
    float | None,
    typer.Option(
        "--repeated-noise",
        metavar="0-1",
        help="how much of a shot's first noise comes again after each window's length: a long film "
        "keeps its look, and its motion comes again; default: 0",
    ),
]
FirstStageOption = Annotated[
    str | None,
    typer.Option(
        "--pyramid-first-stage",
        metavar="windows|whole",
        help="whole: the coarsest stage is one window over the whole shot, so that a long film "
        "keeps its look; default: windows",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="demo (the default), demo-pyramid, demo-animatediff, demo-animatediff-pyramid, a "
        "folder in diffusers format, or a Hugging Face id",
    ),
]
LorasOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora", metavar="PATH[=SCALE]", help="a LoRA file, and how strong; may be repeated"
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", help="render faster, not quite the same; see `longtake presets`"),
]
FileArgument = Annotated[Path | None, typer.Argument(help="a job file (YAML)")]

#: How much an attention plan may change, if nothing is said.
DEFAULT_DELTA = 0.1
DeltaOption = Annotated[
    float | None,
    typer.Option(
        "--delta",
        min=0.0,
        max=10.0,
        help=f"how much fast_attention may change; 0.05 is careful; default: {DEFAULT_DELTA}",
    ),
]
RehashOption = Annotated[
    float | None,
    typer.Option(
        "--rehash",
        min=0.0,
        max=1.0,
        help="measure for rehash: how alike steps must be to reuse one for another, such as 0.995",
    ),
]
PlansOption = Annotated[
    Path | None, typer.Option("--plans", help="folder for what is found; default: where jobs look")
]
PictureOption = Annotated[
    Path | None, typer.Option("--picture", help="also draw what was found: a PNG file")
]
StillsOption = Annotated[
    Path | None,
    typer.Option("--picture", help="also show frames of each shot by each preset: a PNG file"),
]
CalibrateDeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="auto|cpu|cuda|cuda:N",
        help="what to compute on; cuda:1 is the second GPU",
    ),
]
JobOrModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="JOB|MODEL",
        help="a job file (YAML), or a model as --model takes it",
    ),
]
PromptsOption = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="what to try it on, a shot each; may be repeated"),
]


def valid_range(error: Any) -> str:
    """``; valid: 0 to 10`` for an error about an option that takes numbers of a range; else ""."""
    option = getattr(error, "param", None)
    low, high = getattr(option, "min", None), getattr(option, "max", None)
    if low is None:
        return ""
    return f"; valid: {low:g} or more" if high is None else f"; valid: {low:g} to {high:g}"
