"""What a trainer must know of the model that it trains, beside the arithmetic of training.

Shapes: B batch, C latent channels, F latent frames, H rows, W columns, N text tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerFast

from accel.pyramid import NoisePath
from training.draws import Draw
from training.reading import teach_to_read
from training.stages import levels_of


class Student(nn.Module, ABC):
    """A denoiser, and what encodes its prompts and was trained before, as one module."""

    denoiser_name: ClassVar[str]  # the folder and attribute of the denoiser
    path: NoisePath  # how noise is mixed in
    first_alone: ClassVar[bool]  # whether a clip's first latent frame holds a single picture
    tokens_per_frame: ClassVar[int]  # how much work a latent frame is
    text_tokens: ClassVar[int]  # captions are padded to so many
    long_text_tokens: ClassVar[int]  # or, now and then, to so many
    encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)  # of what is not trained here

    @property
    def denoiser(self) -> nn.Module:
        return getattr(self, self.denoiser_name)

    @property
    def encoders(self) -> list[nn.Module]:
        return [getattr(self, name) for name in self.encoder_names]

    def learn_to_read(self, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
        """Before a training whose text encoder was not loaded."""
        teach_to_read(self.text_encoder, tokenizer, steps, seed)

    def tokens(
        self, tokenizer: PreTrainedTokenizerFast, captions: list[str], *, long: bool
    ) -> tuple[Tensor, ...]:
        """What ``forward`` is told of captions: token ids and their mask, BN."""
        told = tokenizer(
            captions,
            padding="max_length",
            max_length=self.long_text_tokens if long else self.text_tokens,
            truncation=True,
            return_tensors="pt",
        )
        return told.input_ids, told.attention_mask

    def seen(self, drawn: Draw) -> Tensor:
        """What ``forward`` is shown, B?FHW: the noisy windows."""
        return drawn.noisy_BCFHW

    @abstractmethod
    def forward(self, x_BCFHW: Tensor, times_B: Tensor, *tokens: Tensor, stride: int) -> Tensor:
        """What it predicts, BCFHW. ``times_B`` are the path's, ``tokens`` those of ``tokens``;
        ``stride`` is how many latent frames apart the frames stand."""

    @abstractmethod
    def load(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> bool:
        """Take the weights of a model folder; returns whether its text encoder can read all."""

    @abstractmethod
    def optimizers(self, rate: float) -> list[Optimizer]: ...

    @abstractmethod
    def target(self, drawn: Draw) -> Tensor:
        """What it should predict, BCFHW."""

    def prepare(self, frames: int) -> None:
        """Before a training in windows of at most so many frames."""

    def compile(self) -> None:
        """Make the denoiser faster, where that pays."""

    def save(self, out: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        """Write `tokenizer/`, without the padding of its last use, the encoders and the denoiser
        as diffusers has them."""
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.save_pretrained(out / "tokenizer")
        for name in (*self.encoder_names, self.denoiser_name):
            part: Any = getattr(self, name)
            part.save_pretrained(out / name)


def muon_for(blocks: Sequence[nn.Module], whole: nn.Module, rate: float) -> list[Optimizer]:
    """Muon for the matrices of a transformer's blocks, AdamW for all else; a table of vectors is no
    matrix, whatever its shape."""
    layers = [layer for block in blocks for layer in block.modules()]
    matrices = [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
    ids = {id(p) for p in matrices}
    others = [p for p in whole.parameters() if p.requires_grad and id(p) not in ids]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]


def velocity(drawn: Draw) -> Tensor:
    """signal noise - noise clean, of Salimans and Ho (arXiv 2202.00512), BCFHW."""
    times_B = drawn.times_B.double().numpy()
    signal_B, amount_B = levels_of(drawn.path, times_B, drawn.clean_BCFHW)
    return signal_B * drawn.noise_BCFHW - amount_B * drawn.clean_BCFHW
