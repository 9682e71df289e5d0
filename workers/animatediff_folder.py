"""One folder of the two that AnimateDiff is published as."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter

from jobs.errors import BadJob, CannotRunHere
from jobs.model_folder import ModelInfo, inspect_model

#: What motion adapters were trained with, where Stable Diffusion has other settings.
SCHEDULER = {
    "beta_schedule": "linear",
    "clip_sample": False,
    "steps_offset": 1,
    "timestep_spacing": "linspace",
}


def make_animatediff_folder(base: Path, adapter: Path, folder: Path) -> ModelInfo:
    """Write the folder of the `AnimateDiffPipeline` of a Stable Diffusion folder and a motion
    adapter's, whose weights are safetensors; it appears whole or not at all. Raises CannotRunHere
    where they do not fit each other or what they make cannot be rendered, BadJob where ``folder``
    cannot be written."""
    try:
        scheduler = DDIMScheduler.from_pretrained(base, subfolder="scheduler", **SCHEDULER)
        pipeline = AnimateDiffPipeline.from_pretrained(
            base,
            motion_adapter=MotionAdapter.from_pretrained(adapter, use_safetensors=True),
            scheduler=scheduler,
            feature_extractor=None,
            image_encoder=None,
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: tensors of other shapes
        reason = " ".join(str(error).split())[:300]
        raise CannotRunHere(f"{base} and {adapter} make no model: {reason}") from error
    part = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        pipeline.save_pretrained(part)
        made = inspect_model(part)  # or a folder would be left that no render takes
        part.rename(folder)
    except OSError as error:
        raise BadJob(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return made
