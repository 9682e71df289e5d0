"""Trains the demo's text-to-video model: a small Wan transformer with its own text encoder.

    python -m training.wan --vae training/runs/vae --out training/runs/wan --steps 6000

Flow matching as diffusers has it: x = (1 - sigma) clip + sigma noise, the model predicts
noise - clip, and is told sigma * 1000. Run it again on the same folder to go on.

Shapes: B batch, C latent channels, F latent frames, H rows, W columns, N text tokens, D width.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.attention_dispatch import attention_backend
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from accel.positions import stage_positions
from accel.pyramid import FlowPath
from training.draws import Draw
from training.latents import WanCodec
from training.reading import load_encoder
from training.student import Student, muon_for
from training.text import new_text_encoder, new_tokenizer
from training.trainer import Recipe, Trainer, noise_of, options_of
from training.vae import ARCHITECTURE as VAE_ARCHITECTURE

TEXT_WIDTH = 128
LONG_LATENT_FRAMES = 20
ARCHITECTURE = {
    "patch_size": [1, 4, 4],
    "num_attention_heads": 4,
    "attention_head_dim": 48,
    "in_channels": VAE_ARCHITECTURE["z_dim"],
    "out_channels": VAE_ARCHITECTURE["z_dim"],
    "text_dim": TEXT_WIDTH,
    "freq_dim": 128,
    "ffn_dim": 768,
    "num_layers": 6,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 1024,
}


class WanStudent(Student):
    """A `WanTransformer3DModel`, and a UMT5 encoder with the words of ``tokenizer``."""

    denoiser_name = "transformer"
    path = FlowPath()
    first_alone = True
    tokens_per_frame = 36
    text_tokens = 64
    long_text_tokens = 512

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.text_encoder = new_text_encoder(len(tokenizer), TEXT_WIDTH)
        self.transformer = WanTransformer3DModel(**ARCHITECTURE)
        # No prediction at first, rather than a random one: the last layer starts at zero.
        nn.init.zeros_(self.transformer.proj_out.weight)

    def forward(self, x_BCFHW: Tensor, times_B: Tensor, *tokens: Tensor, stride: int) -> Tensor:
        text_BND = embed(self.text_encoder, *tokens)
        # On a CPU the backward pass of the default, fused attention takes half of a step, and the
        # whole matrices of the other one take more than that in long windows.
        unfused = x_BCFHW.device.type == "cpu" and x_BCFHW.shape[2] < LONG_LATENT_FRAMES
        attention = "_native_math" if unfused else "native"
        with attention_backend(attention), stage_positions(self.transformer, stride):
            return self.transformer(x_BCFHW, times_B * 1000, text_BND, return_dict=False)[0]

    def target(self, drawn: Draw) -> Tensor:
        return drawn.noise_BCFHW - drawn.clean_BCFHW

    def load(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> bool:
        """A folder without a transformer is one whose encoder has learned to read."""
        if (folder / "transformer").is_dir():
            trained = WanTransformer3DModel.from_pretrained(
                folder / "transformer", torch_dtype=torch.float32
            )
            self.transformer.load_state_dict(trained.state_dict())
        return load_encoder(self.text_encoder, tokenizer, folder)

    def optimizers(self, rate: float) -> list[torch.optim.Optimizer]:
        return muon_for(self.transformer.blocks, self, rate)

    def compile(self) -> None:
        self.transformer.compile_repeated_blocks(dynamic=False)


def new_model(seed: int = 0) -> tuple[PreTrainedTokenizerFast, WanStudent]:
    """The demo's tokenizer, and its text encoder and transformer with fresh weights."""
    torch.manual_seed(seed)
    tokenizer = new_tokenizer()
    return tokenizer, WanStudent(tokenizer)


def embed(text_encoder: UMT5EncoderModel, ids_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Prompt embeddings as Wan's pipeline makes them: zero after the last real token."""
    text_BND = text_encoder(ids_BN, mask_BN).last_hidden_state
    return text_BND * mask_BN[:, :, None].to(text_BND.dtype)


def new_trainer(
    recipe: Recipe,
    vae: AutoencoderKLWan,
    out: Path,
    compiled: bool = False,
    init: Path | None = None,
) -> Trainer:
    tokenizer, model = new_model(recipe.seed)
    return Trainer(recipe, model, tokenizer, WanCodec(vae), out, compiled, init)


def main() -> None:
    """Command line of the text-to-video model's training."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vae", type=Path, default=Path("training/runs/vae"))
    parser.add_argument("--out", type=Path, default=Path("training/runs/wan"))
    parser.add_argument("--eager", action="store_true", help="do not compile the blocks")
    parser.add_argument("--short-windows", type=float, default=1.0, help="share of them at first")
    parser.add_argument(
        "--whole-films", type=float, default=0.0,
        help="share of the steps, of a pyramid, that see its first stage whole",
    )  # fmt: skip
    options = options_of(parser)
    if options.whole_films and options.stages == 1:
        parser.error("--whole-films needs a pyramid: give --stages 2 or more")
    vae = AutoencoderKLWan.from_pretrained(options.vae).to(options.device).eval()
    recipe = Recipe(
        seed=options.seed,
        short_windows=options.short_windows,
        whole_films=options.whole_films,
        noise=noise_of(options),
    )
    trainer = new_trainer(recipe, vae, options.out, not options.eager, options.init)
    trainer.resume()
    trainer.train(options.steps, options.keep_every)


if __name__ == "__main__":
    main()
