"""Trains the demo's text-to-video model: a small Wan transformer with its own text encoder.

    python -m training.wan --vae training/runs/vae --out training/runs/wan --steps 6000

Flow matching as diffusers has it: x = (1 - sigma) clip + sigma noise, the model predicts
noise - clip, and is told sigma * 1000. Most windows begin inside a clip, as most windows of a long
film do. Run it again on the same folder to go on.

Shapes: B batch, C latent channels, F latent frames, H rows, W columns, N text tokens, D width.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.attention_dispatch import attention_backend
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from accel.positions import stage_positions
from training import world
from training.draws import Draw, NoiseRecipe, draw, longest_clip
from training.latents import LatentCache
from training.reading import load_encoder, teach_to_read
from training.text import new_text_encoder, new_tokenizer
from training.vae import ARCHITECTURE as VAE_ARCHITECTURE

TEXT_WIDTH = 128
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WanRecipe:
    """What the text-to-video model's training depends on."""

    seed: int = 0
    window_latent_frames: int = 9
    short_window_latent_frames: int = 2
    tokens: int = 5200
    body_weight: float = 6.0
    starts: float = 0.3
    short_windows: float = 1.0  # the share of them at first; it falls to none
    text_tokens: int = 64
    long_text_tokens: int = 512
    odd_shapes: float = 0.03
    dropped_captions: float = 0.1
    strange_words: float = 0.05
    noise: NoiseRecipe = field(default_factory=NoiseRecipe)
    peak_rate: float = 1.5e-3
    final_rate: float = 5e-5
    warmup_steps: int = 100
    reading_steps: int = 6000
    average_decay: float = 0.98
    average_every: int = 4
    clips: int = 2500
    first_clips: int = 240


#: How the weights beside it were trained, for those who use them.
NOISE_FILE = "noise.json"


class TextToVideo(nn.Module):
    """The denoiser and the text encoder, which has learned to read before, as one module."""

    def __init__(self, num_words: int) -> None:
        super().__init__()
        self.text_encoder = new_text_encoder(num_words, TEXT_WIDTH)
        self.transformer = WanTransformer3DModel(**ARCHITECTURE)
        # No prediction at first, rather than a random one: the last layer starts at zero.
        nn.init.zeros_(self.transformer.proj_out.weight)

    def forward(self, x_BCFHW: Tensor, sigma_B: Tensor, ids_BN: Tensor, mask_BN: Tensor) -> Tensor:
        """Predict noise - clip from the noisy window, BCFHW."""
        text_BND = embed(self.text_encoder, ids_BN, mask_BN)
        return self.transformer(x_BCFHW, sigma_B * 1000, text_BND, return_dict=False)[0]


def new_model(seed: int = 0) -> tuple[PreTrainedTokenizerFast, TextToVideo]:
    """The demo's tokenizer, and its text encoder and transformer with fresh weights."""
    torch.manual_seed(seed)
    tokenizer = new_tokenizer()
    return tokenizer, TextToVideo(len(tokenizer))


def load_weights(model: TextToVideo, tokenizer: PreTrainedTokenizerFast, folder: Path) -> bool:
    """Take the weights of a model folder of the same transformer; returns whether its text
    encoder has all of ours (``load_encoder``)."""
    trained = WanTransformer3DModel.from_pretrained(
        folder / "transformer", torch_dtype=torch.float32
    )
    model.transformer.load_state_dict(trained.state_dict())
    return load_encoder(model.text_encoder, tokenizer, folder)


def embed(text_encoder: UMT5EncoderModel, ids_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Prompt embeddings as Wan's pipeline makes them: zero after the last real token."""
    text_BND = text_encoder(ids_BN, mask_BN).last_hidden_state
    return text_BND * mask_BN[:, :, None].to(text_BND.dtype)


def spoil(captions: list[str], rng: np.random.Generator, recipe: WanRecipe) -> list[str]:
    """Drop some captions for guidance, and put a strange word into some others."""
    spoiled = []
    for words in (text.split() for text in captions):
        if rng.uniform() < recipe.dropped_captions:
            words = []
        elif rng.uniform() < recipe.strange_words:
            words.insert(int(rng.integers(len(words) + 1)), "unheardof")
        spoiled.append(" ".join(words))
    return spoiled


class Trainer:
    """The model, its average, and what it takes to go on after a stop."""

    def __init__(
        self,
        recipe: WanRecipe,
        vae: AutoencoderKLWan,
        out: Path,
        compiled: bool = False,
        init: Path | None = None,
    ) -> None:
        """``init`` is a model folder to take the first weights from."""
        self.recipe, self.out, self.device = recipe, out, vae.device
        self.step, self.elapsed_s = 0, 0.0
        self.tokenizer, model = new_model(recipe.seed)
        can_read = init is not None and load_weights(model, self.tokenizer, init)
        if not can_read and not (out / "state.pt").exists():
            teach_to_read(model.text_encoder, self.tokenizer, recipe.reading_steps, recipe.seed)
        model.text_encoder.requires_grad_(False)
        self.model = model.to(self.device)
        if compiled:
            self.model.transformer.compile_repeated_blocks(dynamic=False)
        self.average = AveragedModel(self.model, multi_avg_fn=warm_average(recipe.average_decay))
        self.optimizers = new_optimizers(self.model, recipe)
        longest = longest_clip(recipe.window_latent_frames, recipe.noise)
        pixel_frames = 1 + vae.config.scale_factor_temporal * (longest - 1)
        self.cache = LatentCache(vae, recipe.clips, pixel_frames, recipe.seed)

    def train(self, steps: int, keep_every: int = 0) -> None:
        """Train up to a number of steps, counted from the first start; every ``keep_every`` of
        them, if any, the model is kept as it then is, in `kept/STEP`."""
        while len(self.cache.clips) < self.recipe.first_clips:
            self.cache.add(8)
        losses: list[float] = []
        while self.step < steps:
            began_s = time.monotonic()
            losses.append(self.train_step(self.step / steps))
            if self.step % 8 == 0:
                self.cache.add(4)
            self.elapsed_s += time.monotonic() - began_s
            if self.step % 100 == 0:
                self._report(losses[-100:])
                self.save()
            if keep_every and self.step % keep_every == 0:
                self._keep_model(self.out / "kept" / str(self.step))
        self.save()

    def train_step(self, progress: float) -> float:
        """One step on fresh windows and noise, all drawn from the seed and the step; the loss.

        Bodies are a tenth of a frame and most of what its caption says: their error counts for
        more at first. In the end all counts alike, for only then is the flow that of the data.
        The loss that is returned is the plain one."""
        rng = np.random.default_rng((self.recipe.seed, 3, self.step))
        drawn, odd = self._draw(rng, progress)
        recipe = self.recipe
        inputs = self._inputs(drawn, rng, recipe.long_text_tokens if odd else recipe.text_tokens)
        stance = "force_eager" if odd else "default"
        for group in (group for o in self.optimizers for group in o.param_groups):
            group["lr"] = rate_at(self.step, progress, self.recipe)
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16)
        # On a CPU the backward pass of the default, fused attention takes half of a step.
        attention = attention_backend("_native_math" if self.device.type == "cpu" else "native")
        stride = drawn.stride if recipe.noise.stage_positions else 1
        positions = stage_positions(self.model.transformer, stride)
        with torch.compiler.set_stance(stance), autocast, attention, positions:
            flow_BCFHW = self.model(*inputs)
        error_BCFHW = (flow_BCFHW.float() - drawn.flow_BCFHW.to(self.device)).square()
        more_B1FHW = drawn.mask_B1FHW.to(self.device) * falling(progress)
        weight_B1FHW = 1 + (recipe.body_weight - 1) * more_B1FHW
        (weight_B1FHW / weight_B1FHW.mean() * error_BCFHW).mean().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        if self.step % self.recipe.average_every == 0:
            self.average.update_parameters(self.model)
        return error_BCFHW.mean().item()

    def _draw(self, rng: np.random.Generator, progress: float) -> tuple[Draw, bool]:
        """Windows for a step, and whether their shape is an unusual one.

        Short windows come first: they show more scenes for the same work.
        """
        recipe, odd = self.recipe, rng.uniform() < self.recipe.odd_shapes
        short = rng.uniform() < recipe.short_windows * (1 - progress / 0.75)
        frames = recipe.short_window_latent_frames if short else recipe.window_latent_frames
        if odd:
            most = 2 * recipe.window_latent_frames - 1 if recipe.noise.stages == 1 else frames
            frames = int(rng.integers(2, most + 1))
        batch = max(1, recipe.tokens // (36 * frames))
        return draw(
            self.cache, rng, recipe.noise, batch=batch, frames=frames, starts=recipe.starts
        ), odd

    def _inputs(
        self, drawn: Draw, rng: np.random.Generator, text_tokens: int
    ) -> tuple[Tensor, ...]:
        """What the model is given: noisy windows, their noise levels, and their captions."""
        tokens = self.tokenizer(
            spoil(drawn.captions, rng, self.recipe),
            padding="max_length",
            max_length=text_tokens,
            truncation=True,
            return_tensors="pt",
        )
        inputs = (drawn.noisy_BCFHW, drawn.sigma_B, tokens.input_ids, tokens.attention_mask)
        return tuple(value.to(self.device) for value in inputs)

    def save(self) -> None:
        """Write the averaged model as diffusers folders, and the state to go on from."""
        self._keep_model(self.out)
        self.cache.save(self.out / "clips.pt")
        state = {
            "world": world.VERSION,
            "noise": asdict(self.recipe.noise),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, self.out / "state.pt.new")
        (self.out / "state.pt.new").replace(self.out / "state.pt")

    def _keep_model(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_model(folder, self.tokenizer, self.average.module)
        (folder / NOISE_FILE).write_text(json.dumps(asdict(self.recipe.noise)))

    def resume(self) -> None:
        """Go on from the state in the folder, if there is one."""
        if (self.out / "clips.pt").exists():
            self.cache.load(self.out / "clips.pt")
        if not (self.out / "state.pt").exists():
            return
        state = torch.load(self.out / "state.pt", weights_only=True)
        if state.get("world") != world.VERSION:
            sys.exit(f"{self.out} was trained on another world; begin anew with --init {self.out}")
        if state.get("noise", asdict(NoiseRecipe())) != asdict(self.recipe.noise):
            sys.exit(
                f"{self.out} was trained with other noise: {state['noise']}; use another --out"
            )
        self.step, self.elapsed_s = int(state["step"]), float(state["elapsed_s"])
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)

    def _report(self, losses: list[float]) -> None:
        line = {
            "step": self.step,
            "minutes": round(self.elapsed_s / 60, 1),
            "loss": round(float(np.mean(losses)), 4),
            "clips": self.cache.num_made,
        }
        print(json.dumps(line), flush=True)


def new_optimizers(model: TextToVideo, recipe: WanRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer's blocks, AdamW for all else."""
    matrices = [p for p in model.transformer.blocks.parameters() if p.ndim == 2]
    ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    return [
        torch.optim.Muon(
            matrices, lr=recipe.peak_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(
            others, lr=recipe.peak_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        ),
    ]


def warm_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """An exponential moving average that soon forgets the weights before training."""

    @torch.no_grad()
    def update(averages: list[Tensor], weights: list[Tensor], num_averaged: Tensor) -> None:
        count = float(num_averaged)
        share = 1 - min(decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(averages, weights, share)

    return update


def rate_at(step: int, progress: float, recipe: WanRecipe) -> float:
    """The learning rate: a short rise, a level half, and a straight fall."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return warm * (recipe.final_rate + (recipe.peak_rate - recipe.final_rate) * falling(progress))


def falling(progress: float) -> float:
    """1 for the first half of the training, then straight down to 0."""
    return min(1.0, 2 * (1 - progress))


def save_model(out: Path, tokenizer: PreTrainedTokenizerFast, model: TextToVideo) -> None:
    """Write `tokenizer/`, without the padding of its last use, `text_encoder/`, `transformer/`."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(out / "tokenizer")
    model.text_encoder.save_pretrained(out / "text_encoder")
    model.transformer.save_pretrained(out / "transformer")


def main() -> None:
    """Command line of the text-to-video model's training."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vae", type=Path, default=Path("training/runs/vae"))
    parser.add_argument("--out", type=Path, default=Path("training/runs/wan"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--init", type=Path, help="a model folder to take the first weights from")
    parser.add_argument("--eager", action="store_true", help="do not compile the blocks")
    parser.add_argument("--stages", type=int, default=1, help="of a temporal pyramid")
    parser.add_argument("--short-windows", type=float, default=1.0, help="share of them at first")
    parser.add_argument("--keep-every", type=int, default=0, help="steps after which it is kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    vae = AutoencoderKLWan.from_pretrained(options.vae).to(options.device).eval()
    recipe = WanRecipe(
        seed=options.seed,
        short_windows=options.short_windows,
        noise=NoiseRecipe(stages=options.stages),
    )
    trainer = Trainer(recipe, vae, options.out, not options.eager, options.init)
    trainer.resume()
    trainer.train(options.steps, options.keep_every)


if __name__ == "__main__":
    main()
