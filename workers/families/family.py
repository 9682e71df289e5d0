"""What a model family does for a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from accel.handle import Branch
from jobs.families.family import Diffusion
from jobs.geometry import ModelGeometry
from jobs.units import DecodeTask, ShotRender
from workers.schedulers import RangeStepper

#: Enters an acceleration's state around one pass of the denoiser.
BranchContext = Callable[[Branch], AbstractContextManager[None]]


class ModelFamily(Protocol):
    """A kind of model, loaded part by part from a diffusers folder as tasks need it.

    Built from the folder's config files alone: a folder that the family cannot render is refused
    with ``CannotRunHere`` before any weight loads.
    """

    geometry: ModelGeometry
    latent_channels: int
    first_alone: bool  # whether the first latent frame holds fewer pixel frames than all others
    scheduler_config: Mapping[str, Any]
    diffusion: Diffusion
    even_sigmas: bool  # whether the pipeline spreads a flow's steps from 1 to 0 by itself
    vae_kind: ClassVar[Any]  # the autoencoder's class
    device: torch.device  # of denoiser and decoder
    encodes_on: torch.device  # where encoders go when they are loaded: the same, or the processor

    @property
    def dtype(self) -> str:
        """The name of what the denoiser computes in, such as bfloat16."""
        ...

    @property
    def denoiser(self) -> torch.nn.Module:
        """The model that accelerations attach to."""
        ...

    @property
    def vae(self) -> torch.nn.Module:
        """The autoencoder that decodes."""
        ...

    def loaded_bytes(self, *parts: str) -> int:
        """Bytes of the weights that are held now: of the denoiser and what decodes, or of one."""
        ...

    def free_text(self) -> None:
        """Let go of the encoders."""
        ...

    def has_encoders(self) -> bool:
        """Whether they are loaded now: from the first shot's encoding to whatever comes after."""
        ...

    def drop_lanes(self) -> None:
        """The next piece of each shot warms up anew."""
        ...

    def encode(self, shot: ShotRender) -> dict[str, torch.Tensor]:
        """What `predict` needs of the shot's prompts or image, by names of the family's own: such
        as ``cond`` and, with guidance, ``uncond``, each [1, text_tokens, text_dim]."""
        ...

    def kept(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents in the dtype that the family's pipeline keeps them in between steps."""
        ...

    def predict(
        self,
        shot: ShotRender,
        latents: torch.Tensor,
        stepper: RangeStepper,
        step: int,
        embeddings: Mapping[str, torch.Tensor],
        branch: BranchContext,
    ) -> torch.Tensor:
        """The denoiser's prediction [1, C, T, H, W] for a tile, guidance included."""
        ...

    def decode(self, task: DecodeTask, latents: torch.Tensor) -> np.ndarray:
        """RGB uint8 [F, H, W, 3] of a task's piece; ``latents`` [1, C, T, H, W] begin at its
        ``warm_start``. Those of frames that were only looked ahead at may follow."""
        ...


def stepper_of(
    family: ModelFamily, shot: ShotRender, stage: int, places: int, device: torch.device | str
) -> RangeStepper:
    """The schedule of a shot's stage, as renders and calibrations go through it; ``places`` is
    T * H * W of a window."""
    return RangeStepper(
        shot.scheduler,
        family.scheduler_config,
        shot.stage_steps,
        stage,
        shot.flow_shift,
        device,
        family.diffusion,
        places,
        family.even_sigmas,
    )
