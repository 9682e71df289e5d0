"""What a trainer must know of the model that it trains, beside the arithmetic of training.

Shapes: B batch, C latent channels, F latent frames, H rows, W columns, N text tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from accel.pyramid import NoisePath
from training.draws import Draw


class Student(nn.Module, ABC):
    """A denoiser, and a text encoder that has learned to read before, as one module."""

    denoiser_name: ClassVar[str]  # the folder and attribute of the denoiser
    path: NoisePath  # how noise is mixed in
    first_alone: ClassVar[bool]  # whether a clip's first latent frame holds a single picture
    tokens_per_frame: ClassVar[int]  # how much work a latent frame is
    text_tokens: ClassVar[int]  # captions are padded to so many
    long_text_tokens: ClassVar[int]  # or, now and then, to so many
    text_encoder: nn.Module

    @property
    def denoiser(self) -> nn.Module:
        return getattr(self, self.denoiser_name)

    @abstractmethod
    def forward(
        self, x_BCFHW: Tensor, times_B: Tensor, ids_BN: Tensor, mask_BN: Tensor, stride: int
    ) -> Tensor:
        """What it predicts, BCFHW. ``times_B`` are the path's; ``stride`` is how many latent
        frames apart the frames stand."""

    @abstractmethod
    def load(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> bool:
        """Take the weights of a model folder; returns whether its text encoder can read all."""

    @abstractmethod
    def optimizers(self, rate: float) -> list[torch.optim.Optimizer]: ...

    @abstractmethod
    def target(self, drawn: Draw) -> Tensor:
        """What it should predict, BCFHW."""

    def prepare(self, frames: int) -> None:
        """Before a training in windows of at most so many frames."""

    def compile(self) -> None:
        """Make the denoiser faster, where that pays."""

    def save(self, out: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        """Write `tokenizer/`, without the padding of its last use, `text_encoder/` and the
        denoiser as diffusers has them."""
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.save_pretrained(out / "tokenizer")
        parts: dict[str, Any] = {
            "text_encoder": self.text_encoder,
            self.denoiser_name: self.denoiser,
        }
        for name, part in parts.items():
            part.save_pretrained(out / name)
