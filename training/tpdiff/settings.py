"""What a training depends on, beside the model and the videos."""

from __future__ import annotations

from dataclasses import dataclass

from accel.pyramid import Coarse


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a training depends on, beside the model and the videos."""

    stages: int = 3
    step_shares: tuple[int, ...] = ()  # for rendering; empty: the same for all stages
    alignment: bool = True
    coarse: Coarse = "mean"  # what a coarse stage's frames show
    stage_positions: bool = True
    pixel_frames: int = 0  # of a clip; 0: the model's window
    fps: int = 0  # 0: the model's
    size: tuple[int, int] = (0, 0)  # width, height, px; 0: the model's
    starts: float = 0.3  # share of windows that start a shot; all others are inside
    steps: int = 1000
    batch: int = 1  # clips at a time on each device
    accumulate: int = 1  # such batches for a step
    rate: float = 1e-5
    warmup_steps: int = 100
    dropped_captions: float = 0.1
    lora_rank: int = 0  # 0: all weights are trained
    precision: str = "no"  # "no", "fp16" or "bf16"
    checkpointing: bool = False  # activations are computed again in the backward pass
    save_every: int = 500
    sample_every: int = 0  # 0: no pictures
    sample_steps: int = 20
    sample_prompts: tuple[str, ...] = ()  # empty: the first captions
    seed: int = 0
