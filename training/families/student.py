"""What the students of these families share.

Shapes: B batch, C latent channels, F latent frames, H rows, W columns, N text tokens, D width.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerFast, T5EncoderModel, UMT5EncoderModel

from jobs.model_folder import resolve_model
from training.reading import teach_to_read
from training.student import Student, muon_for

TEXT_WIDTH, TEXT_TOKENS = 128, 40
FPS = 12
READING_RATE = 1e-3
HEADS, HEAD_WIDTH = 4, 48


class FamilyStudent(Student):
    """Trained from nothing."""

    def load(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> bool:
        """Raises ValueError: ``init`` is not for these."""
        raise ValueError(f"the weights of {folder} cannot be gone on from")


class T5Reader:
    """Begins with what the UMT5 of the demo model has learned; there every layer has weights of its
    own for how far apart tokens are, here the first layer's are shared."""

    text_encoder: T5EncoderModel

    def learn_to_read(self, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
        demo = resolve_model("demo")
        same_words(tokenizer, demo)
        read = UMT5EncoderModel.from_pretrained(demo / "text_encoder", torch_dtype=torch.float32)
        weights, own = read.state_dict(), self.text_encoder.state_dict()
        self.text_encoder.load_state_dict({name: weights[name] for name in own})
        teach_to_read(self.text_encoder, tokenizer, steps, seed, rate=READING_RATE)


class TransformerStudent(FamilyStudent):
    """A video transformer whose autoencoder keeps a clip's first frame alone."""

    denoiser_name = "transformer"
    first_alone = True
    tokens_per_frame = 144
    text_tokens = long_text_tokens = TEXT_TOKENS
    block_names: ClassVar[tuple[str, ...]] = ("transformer_blocks",)

    def optimizers(self, rate: float) -> list[Optimizer]:
        blocks = [block for name in self.block_names for block in getattr(self.transformer, name)]
        return muon_for(blocks, self, rate)

    def compile(self) -> None:
        for name in self.block_names:
            for block in getattr(self.transformer, name):
                block.compile(dynamic=False)

    def start_silent(self) -> None:
        """No prediction at first, rather than a random one: the last layer starts at zero."""
        nn.init.zeros_(self.transformer.proj_out.weight)


def same_words(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Exits where a folder's encoder was trained with other words."""
    known = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer").get_vocab()
    if known != tokenizer.get_vocab():
        sys.exit(f"{folder} knows other words")


@contextmanager
def unfused_attention(x: Tensor) -> Iterator[None]:
    """On a CPU the backward pass of the default, fused attention takes half of a step."""
    if x.device.type != "cpu":
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield
