"""What a training leaves behind: a model folder or an adapter, with the pyramid it was made for."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from jobs.model_folder import SIDECAR
from training.tpdiff.settings import Settings
from training.tpdiff.trainee import Trainee
from training.tpdiff.trainees import load_trainee


def write_model(trainee: Trainee, settings: Settings, out: Path) -> None:
    """A whole diffusers folder: the trained denoiser, and all other parts as they were. It takes
    the place of an older result only when it is complete."""
    new, denoiser = out.with_name(out.name + ".new"), trainee.info.family.denoiser
    shutil.rmtree(new, ignore_errors=True)
    for path in sorted(trainee.folder.rglob("*")):
        part = path.relative_to(trainee.folder)
        if path.is_file() and part.parts[0] != denoiser and part.name != SIDECAR:
            _link_or_copy(path, new / part)
    trainee.denoiser.save_pretrained(new / denoiser)
    write_sidecar(trainee, settings, new)
    shutil.rmtree(out, ignore_errors=True)
    new.replace(out)


def write_lora(trainee: Trainee, settings: Settings, out: Path) -> None:
    """The adapter alone, as diffusers' `load_lora_weights` reads it."""
    from peft import get_peft_model_state_dict

    trainee.save_lora(out, get_peft_model_state_dict(trainee.denoiser))
    write_sidecar(trainee, settings, out, say_none=True)


def merge_lora(trainee: Trainee, rank: int) -> Trainee:
    """The whole model with the adapter in its weights. They are read again, in float32: those that
    were adapted may have been rounded."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    whole = load_trainee(str(trainee.folder), "cpu")
    whole.denoiser.requires_grad_(False)
    whole.add_lora(rank)
    adapter = get_peft_model_state_dict(trainee.denoiser)
    other = set_peft_model_state_dict(whole.denoiser, adapter)
    assert not other.unexpected_keys, "the same adapter fits the same model"
    whole.family.denoiser.fuse_lora()
    whole.family.denoiser.unload_lora()
    return whole


def write_sidecar(
    trainee: Trainee, settings: Settings, out: Path, *, say_none: bool = False
) -> None:
    """What a renderer should use: as before, and the pyramid. ``say_none``: of an adapter that was
    trained for none, whose base may have one."""
    there = trainee.folder / SIDECAR
    said = json.loads(there.read_text()) if there.is_file() else {"format": 1}
    for name in ("pyramid_steps", "stage_positions"):
        said.pop(name, None)
    if settings.stages > 1 or say_none:
        said["pyramid_steps"] = list(settings.step_shares or (1,) * settings.stages)
        said["stage_positions"] = settings.stage_positions
    out.mkdir(parents=True, exist_ok=True)
    (out / SIDECAR).write_text(json.dumps(said, indent=2) + "\n")


def _link_or_copy(path: Path, to: Path) -> None:
    """Weights that are not trained may be tens of gigabytes; a hard link costs none. What a person
    may edit in place is copied."""
    to.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        with suppress(OSError):  # another file system, or one without links
            os.link(path.resolve(), to)
            return
    shutil.copyfile(path, to)
