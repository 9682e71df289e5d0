"""Trainees by their model's family."""

from __future__ import annotations

from jobs.errors import BadJob
from jobs.model_folder import inspect_model, resolve_model
from jobs.model_scheduler import check_pyramid, choose_scheduler
from training.tpdiff.animatediff import AnimateDiffTrainee
from training.tpdiff.trainee import Trainee
from training.tpdiff.wan import WanTrainee
from workers.families import open_family

TRAINEES: dict[str, type[Trainee]] = {"wan": WanTrainee, "animatediff": AnimateDiffTrainee}


def load_trainee(model: str, device: str, stages: int = 1, dtype: str = "float32") -> Trainee:
    """A folder or Hugging Face id whose own scheduler can render ``stages``. ``dtype``: of denoiser
    and text encoders; weights that are trained need float32. Raises BadJob, CannotRunHere."""
    info = inspect_model(resolve_model(model))
    name, config = info.family.name, info.configs["scheduler"]
    if name not in TRAINEES:
        raise BadJob(f"--model: {name} models cannot be trained yet; {', '.join(TRAINEES)} can")
    scheduler = choose_scheduler("auto", config, info.family.diffusion)
    if stages > 1:
        check_pyramid(scheduler, config, info.family.diffusion)
    return TRAINEES[name](info, open_family(name, str(info.folder), dtype, device), dtype)
