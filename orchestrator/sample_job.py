"""The job that a model is measured on, to render faster: a job file's, or one of a model and
prompts."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from jobs import errors
from jobs.model_folder import ModelInfo, inspect_model, is_at_hand, resolve_model
from jobs.spec import JobSpec
from jobs.spec_errors import Places
from jobs.spec_file import load_spec, parse_spec
from jobs.spec_pyramid import stage_count


def sample_job(
    command: str, what: str | None, model: str | None, prompts: list[str], **flags: Any
) -> JobSpec:
    """That of a file, or one of a model, with a shot for each prompt that fills a window of every
    stage if no length was given. ``command`` is the one that asks. Raises BadJob."""
    if "" in (what, model):
        raise errors.BadJob("a name is empty; give a job file, or a model such as demo")
    # unlike Path.is_file, this says no to a name that is too long for a file
    if what is not None and (os.path.isfile(what) or what.endswith((".yaml", ".yml"))):
        if len(prompts) > 1:
            raise errors.BadJob(f"several --prompt go with a model; write shots into {what}")
        return load_spec(
            Path(what), {"model": model, "prompt": prompts[0] if prompts else None, **flags}
        )
    if what is not None and model is not None:
        raise errors.BadJob(f"two models, {what} and --model {model}; give one of them")
    named = what or model or "demo"
    info = inspect_model(resolve_model(named)) if prompts or is_at_hand(named) else None
    if info is not None and info.geometry.from_image:
        raise errors.BadJob(f"films of model {named} start from images; give a job file with them")
    if info is None or not prompts:
        raise errors.BadJob(
            f"give a job file, or prompts such as films of model {named} will have: longtake "
            f"{command} {shlex.quote(named)} --prompt ... --prompt ..."
        )
    if flags.pop("image", None) is not None:
        raise errors.BadJob(f"--image goes with a job file; films of {named} start from prompts")
    length = {"seconds": flags.pop("seconds")}
    if length["seconds"] is None:
        length = {"pixel_frames": window_pixel_frames(info, flags.get("pyramid") or "auto")}
    given = {"model": named} | {key: value for key, value in flags.items() if value is not None}
    shots = [{"prompt": prompt} | length for prompt in prompts]
    places = Places(flags=frozenset({*given, "prompt", "seconds"}))
    return parse_spec(given | {"shots": shots}, places)


def window_pixel_frames(
    info: ModelInfo, pyramid: int | str, window_latent_frames: int | None = None
) -> int:
    """Of the shortest shot whose coarsest stage has as many frames as a window: with it all stages
    have whole windows, as those of any longer film have. Windows not given are the model's."""
    geometry, stages = info.geometry, stage_count(pyramid, info.defaults)
    alone = int(geometry.first_alone)
    coarsest = (window_latent_frames or geometry.window_latent_frames) - alone
    return geometry.pixel_frames(alone + coarsest * 2 ** (stages - 1))
