"""A command that makes a model's folder: ``animatediff``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs import errors
from jobs.animatediff_parts import find_adapter, find_base
from orchestrator.sizes import gb

BaseArgument = Annotated[
    str, typer.Argument(metavar="BASE", help="Stable Diffusion 1.x: a folder or Hugging Face id")
]
AdapterArgument = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="a motion adapter: a folder or Hugging Face id")
]
FolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="where the model goes; must not exist yet")
]


def animatediff_command(
    base: BaseArgument, adapter: AdapterArgument, folder: FolderArgument
) -> None:
    """Make a model of AnimateDiff as it is published. Of a Stable Diffusion 1.x model and a motion
    adapter, one folder that --model takes, with a DDIM scheduler as the adapter was trained."""
    out = folder.expanduser()
    if out.exists():
        raise errors.BadJob(f"{folder} exists; give the name of a folder that does not")
    parts = find_base(base), find_adapter(adapter)
    from workers.quiet import quiet_libraries

    quiet_libraries()  # first: what follows imports the models
    from workers.animatediff_folder import make_animatediff_folder

    made = make_animatediff_folder(*parts, out)
    size_bytes = sum(made.parameters_bytes.values())
    print(f"made {folder}: {gb(size_bytes)} of weights", file=sys.stderr)
    print(f"longtake render --model {folder} --prompt ... --seconds 4", file=sys.stderr)
