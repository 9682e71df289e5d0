"""The options that commands share, as Typer reads them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_STORE = "~/.longtake"


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


StoreOption = Annotated[
    str, typer.Option("--store", metavar="URI", envvar="LONGTAKE_STORE", help="where jobs live")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON on standard output")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, max=1024, help="default: one per GPU, or core")
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="a Ray cluster to join; default: start one here")
]
DeviceOption = Annotated[Device, typer.Option("--device", help="what workers compute on")]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", min=0.1, help="stop, resumable, after so many seconds")
]
OutOption = Annotated[Path | None, typer.Option("--out", help="the film; default: JOB.mp4")]
LatentsOption = Annotated[
    Path | None, typer.Option("--save-latents", help="also write the finished latents there")
]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", help="what the film shows (one shot)")
]
NegativeOption = Annotated[str | None, typer.Option("--negative", help="what it must not show")]
ImageOption = Annotated[
    str | None, typer.Option("--image", help="what the shot starts from, for models that do so")
]
SecondsOption = Annotated[float | None, typer.Option("--seconds", help="how long it is")]
SizeOption = Annotated[str | None, typer.Option("--size", metavar="WxH", help="in pixels")]
FpsOption = Annotated[int | None, typer.Option("--fps", help="frames per second")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="another one makes another film")]
StepsOption = Annotated[int | None, typer.Option("--steps", help="denoising steps")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="demo, demo-pyramid, demo-animatediff, demo-animatediff-pyramid, a diffusers folder, "
        "or a Hugging Face id",
    ),
]
LorasOption = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="PATH[=SCALE]", help="adapter; may be given several times"),
]
PresetOption = Annotated[
    str | None, typer.Option("--preset", help="accelerations; `longtake presets` lists them")
]
FileArgument = Annotated[Path | None, typer.Argument(help="a job file (YAML)")]

DeltaOption = Annotated[
    float, typer.Option("--delta", min=0.0, max=10.0, help="how much may change; 0.05 is careful")
]
RehashOption = Annotated[
    float | None,
    typer.Option(
        "--rehash", min=0.0, max=1.0, help="find key steps: how alike features must be, say 0.99"
    ),
]
PlansOption = Annotated[
    Path | None, typer.Option("--plans", help="folder for the plan; default: where jobs look")
]
PictureOption = Annotated[
    Path | None, typer.Option("--picture", help="also draw there what was found, a PNG")
]
CalibrateDeviceOption = Annotated[
    str, typer.Option("--device", help="what to compute on: auto, cpu, cuda or cuda:1")
]
JobOrModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="JOB|MODEL",
        help="a job file (YAML), or a model: 'demo', a diffusers folder, or a Hugging Face id",
    ),
]
PromptsOption = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="what to try it on; may be given several times"),
]
