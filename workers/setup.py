"""What a worker is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass, field

from jobs.accelerations import Accelerations
from jobs.images import ImageFile
from jobs.loras import LoraFile


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """Everything a worker needs to start; picklable, free of torch."""

    worker: str  # id, unique in the render
    model: str  # path of a diffusers folder
    family: str = "wan"
    loras: tuple[LoraFile, ...] = ()  # added to the model's weights
    images: tuple[ImageFile, ...] = ()  # that shots start from
    dtype: str = "float32"  # of the denoiser and the encoders of text and images
    decoder_dtype: str = "float32"  # that latents are decoded in
    device: str = "cpu"  # or "cuda:0"
    encoding_bytes: int = 0  # of weights while encoding; 0, if numerics are pinned: they stay
    threads: int = 1  # CPU threads; part of the numerics class
    accelerations: Accelerations = field(default_factory=Accelerations)
    log_dir: str | None = None  # where the worker's own account of its work goes
    deterministic: bool = True
    deepens: bool = False  # takes more slices where memory runs out, which is another class
