"""The geometry of a model: how pixels map to latents. Read from config files alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGeometry:
    """Latent geometry and limits of a model. ``r`` below is ``temporal_scale``."""

    family: str  # "wan"
    latent_channels: int
    spatial_scale: int  # pixels per latent pixel
    temporal_scale: int  # r: 1 + r * (n - 1) pixel frames for n latent frames
    size_multiple: int  # width and height in pixels must be multiples of it
    window_latent_frames: int  # what the model was trained for
    overlap_latent_frames: int
    decode_context_latent_frames: int  # latent frames before a piece that its pixels depend on
    experts: int  # number of denoisers; guidance has one value per expert
    text_tokens: int
    text_dim: int
    #: Latent frames that the autoencoder decodes together, in one piece: the first batch has one
    #: more, and a shot is made of whole batches.
    decode_batch_latent_frames: int = 1
    #: Latent frames after a piece that its pixels depend on: of a causal autoencoder none.
    decode_ahead_latent_frames: int = 0
    #: Whether the denoiser counts time in seconds: what it predicts then depends on the frame rate.
    time_in_seconds: bool = False
    decode_stride_latent_frames: int = 1  # pieces begin one behind a multiple of it
    embedded_guidance: bool = False  # whether the model is told its guidance, and runs once
    from_image: bool = False  # whether a shot starts from an image
    single_window: bool = False  # whether a shot is one window, decoded in one piece
    refused: tuple[tuple[str, str], ...] = ()  # fields of a job that it has no use for, and why

    @property
    def first_alone(self) -> bool:
        """Whether the first latent frame holds fewer pixel frames than all others."""
        return self.temporal_scale > 1

    @property
    def piece_border(self) -> int:
        """Pieces of a shot begin at borders of batches of so many latent frames."""
        return max(self.decode_batch_latent_frames, self.decode_stride_latent_frames)

    def has_two_branches(self, guidance: Sequence[float]) -> bool:
        """Whether the model computes an unconditional branch, too."""
        return max(guidance) > 1 and not self.embedded_guidance

    def latent_frames(self, pixel_frames: int) -> int:
        """The least n with 1 + r * (n - 1) >= pixel_frames that is made of whole batches: the one
        rounding rule."""
        batch = self.decode_batch_latent_frames
        return 1 + batch * -(-(pixel_frames - 1) // (self.temporal_scale * batch))

    def pixel_frames(self, latent_frames: int) -> int:
        return 1 + self.temporal_scale * (latent_frames - 1)

    def pixel_range(self, start: int, stop: int) -> tuple[int, int]:
        """Pixel frames ``[a, b)`` that latent frames ``[start, stop)`` decode to."""
        first = 0 if start == 0 else self.pixel_frames(start)
        return first, self.pixel_frames(stop)

    def decode_border(self, frame: int) -> int:
        """The last latent frame up to ``frame`` where a batch of the autoencoder begins: 0, 3, 5,
        7, ... for batches of two, any frame for batches of one."""
        return batch_border(frame, self.decode_batch_latent_frames)


def batch_border(frame: int, batch: int) -> int:
    """The last border up to ``frame`` of batches of so many, the first of which has one more."""
    alone = 1 if batch > 1 else 0
    return 0 if frame < batch + alone else frame - (frame - alone) % batch
