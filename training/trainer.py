"""The loop that trains a model of the demo world, whatever its architecture.

Most windows begin inside a clip, as most windows of a long film do. All that a step sees is drawn
from the seed and the step's number, so a stopped run goes on with the same.

Shapes: B batch, C latent channels, F latent frames, H rows, W columns, N text tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedTokenizerFast

from training import world
from training.cpu import autocast
from training.draws import (
    Draw,
    NoiseRecipe,
    draw,
    draw_whole_film,
    longest_clip,
    longest_film,
)
from training.latents import Codec, LatentCache
from training.record import write_record
from training.student import Student


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a training depends on, beside the model."""

    seed: int = 0
    window_latent_frames: int = 9
    short_window_latent_frames: int = 2
    tokens: int = 5200
    body_weight: float = 6.0
    starts: float = 0.3
    short_windows: float = 1.0  # the share of them at first; it falls to none
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
    least_clip_frames: int = 1  # latent frames of a clip, though its windows be shorter
    clips: int = 2500
    first_clips: int = 240
    whole_films: float = 0.0  # share of the steps, of a pyramid, that see its first stage whole
    film_latent_frames: int = 181  # of the longest of them: two minutes of the demo world
    films: int = 64
    first_films: int = 24
    film_starts: float = 0.5


#: How the weights beside it were trained, for those who use them.
NOISE_FILE = "noise.json"


def spoil(captions: list[str], rng: np.random.Generator, recipe: Recipe) -> list[str]:
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
        recipe: Recipe,
        model: Student,
        tokenizer: PreTrainedTokenizerFast,
        codec: Codec,
        out: Path,
        compiled: bool = False,
        init: Path | None = None,
    ) -> None:
        """``init`` is a model folder to take the first weights from."""
        self.recipe, self.tokenizer, self.out = recipe, tokenizer, out
        self.device = codec.vae.device
        self.step, self.elapsed_s = 0, 0.0
        self.progress: list[dict[str, float]] = []
        can_read = init is not None and model.load(init, tokenizer)
        if not can_read and not (out / "state.pt").exists():
            model.learn_to_read(tokenizer, recipe.reading_steps, recipe.seed)
        for encoder in model.encoders:
            encoder.requires_grad_(False)
        model.prepare(recipe.window_latent_frames)
        self.model = model.to(self.device)
        if compiled:
            self.model.compile()
        self.average = AveragedModel(self.model, multi_avg_fn=warm_average(recipe.average_decay))
        self.optimizers = self.model.optimizers(recipe.peak_rate)
        longest = longest_clip(model.path, recipe.window_latent_frames, recipe.noise)
        pixel_frames = 1 + codec.time_scale * (max(longest, recipe.least_clip_frames) - 1)
        self.cache = LatentCache(codec, recipe.clips, pixel_frames, recipe.seed)
        longest = longest_film(model.path, recipe.film_latent_frames, recipe.noise)
        pixel_frames = 1 + codec.time_scale * (longest - 1)
        self.films = LatentCache(codec, recipe.films, pixel_frames, recipe.seed)

    def train(self, steps: int, keep_every: int = 0) -> None:
        """Train up to a number of steps, counted from the first start; every ``keep_every`` of
        them, if any, and before the first, the model is kept as it then is, in `kept/STEP`."""
        while len(self.cache.clips) < self.recipe.first_clips:
            self.cache.add(8)
        while self.recipe.whole_films and len(self.films.clips) < self.recipe.first_films:
            self.films.add(1)
        if keep_every and self.step == 0:
            self._keep_model(self.out / "kept" / "0")
        losses: list[float] = []
        while self.step < steps:
            began_s = time.monotonic()
            losses.append(self.train_step(self.step / steps))
            if self.step % 8 == 0:
                self.cache.add(4)
            if self.recipe.whole_films and self.step % 40 == 0:
                self.films.add(1)
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
        for group in (group for o in self.optimizers for group in o.param_groups):
            group["lr"] = rate_at(self.step, progress, recipe)
        stride = drawn.stride if recipe.noise.stage_positions else 1
        rare = odd or drawn.clean_BCFHW.shape[2] > recipe.window_latent_frames
        with (
            torch.compiler.set_stance("force_eager" if rare else "default"),
            autocast(self.device),
        ):
            told_BCFHW = self.model(*self._inputs(drawn, rng, odd=odd), stride=stride)
        target_BCFHW = self.model.target(drawn).to(self.device)
        error_BCFHW = (told_BCFHW.float() - target_BCFHW).square()
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
        """Windows for a step, and whether their shape is an odd one, and their text long.

        Short windows come first: they show more scenes for the same work.
        """
        recipe, odd = self.recipe, rng.uniform() < self.recipe.odd_shapes
        if recipe.whole_films and rng.uniform() < recipe.whole_films:
            return self._draw_whole_film(rng), False
        short = rng.uniform() < recipe.short_windows * (1 - progress / 0.75)
        frames = recipe.short_window_latent_frames if short else recipe.window_latent_frames
        if odd:
            most = 2 * recipe.window_latent_frames - 1 if recipe.noise.stages == 1 else frames
            frames = int(rng.integers(2, most + 1))
        batch, starts = self._batch(frames), recipe.starts if self.model.first_alone else 0.0
        path, noise = self.model.path, recipe.noise
        return draw(path, self.cache, rng, noise, batch=batch, frames=frames, starts=starts), odd

    def _draw_whole_film(self, rng: np.random.Generator) -> Draw:
        """Of any length from a window's to the longest, short ones as often as long ones."""
        recipe = self.recipe
        shortest, longest = recipe.window_latent_frames, recipe.film_latent_frames
        frames = round(shortest * (longest / shortest) ** rng.uniform())
        return draw_whole_film(
            self.model.path, self.films, rng, recipe.noise,
            batch=self._batch(frames), frames=frames,
            starts=recipe.film_starts if self.model.first_alone else 0.0,
        )  # fmt: skip

    def _batch(self, frames: int) -> int:
        return max(1, self.recipe.tokens // (self.model.tokens_per_frame * frames))

    def _inputs(self, drawn: Draw, rng: np.random.Generator, *, odd: bool) -> tuple[Tensor, ...]:
        """What the model is given: noisy windows, their times, and their captions."""
        captions = spoil(drawn.captions, rng, self.recipe)
        tokens = self.model.tokens(self.tokenizer, captions, long=odd)
        inputs = (self.model.seen(drawn), drawn.times_B, *tokens)
        return tuple(value.to(self.device) for value in inputs)

    def save(self) -> None:
        """Write the averaged model as diffusers folders, and the state to go on from."""
        self._keep_model(self.out)
        state = {
            "origin": self._origin(),
            "clips": self.cache.num_made,
            "films": self.films.num_made,
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "progress": self.progress,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, self.out / "state.pt.new")
        (self.out / "state.pt.new").replace(self.out / "state.pt")
        write_record(
            self.out, self.device, step=self.step, elapsed_s=self.elapsed_s,
            progress=self.progress, recipe=asdict(self.recipe),
        )  # fmt: skip

    def _keep_model(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.average.module.save(folder, self.tokenizer)
        (folder / NOISE_FILE).write_text(json.dumps(asdict(self.recipe.noise)))

    def resume(self) -> None:
        """Go on from the state in the folder, if there is one."""
        if not (self.out / "state.pt").exists():
            return
        state = torch.load(self.out / "state.pt", map_location="cpu", weights_only=True)
        ours, theirs = self._origin(), state.get("origin", {})
        other = [name for name, value in ours.items() if theirs.get(name) != value]
        if other:
            sys.exit(
                f"{self.out} was begun with another {', '.join(other)}; train in another folder. A "
                f"training that takes --init can take its weights: --init {self.out}"
            )
        self.cache.refill(int(state["clips"]))
        self.films.refill(int(state["films"]))
        self.step, self.elapsed_s = int(state["step"]), float(state["elapsed_s"])
        self.progress = state.get("progress", [])
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)

    def _origin(self) -> dict[str, Any]:
        """What a training must go on with."""
        told = hashlib.sha256()
        for weight in self.cache.codec.vae.state_dict().values():
            told.update(weight.float().cpu().numpy().tobytes())
        return {"world": world.VERSION, "autoencoder": told.hexdigest()[:12]} | asdict(self.recipe)

    def _report(self, losses: list[float]) -> None:
        line = {
            "step": self.step,
            "minutes": round(self.elapsed_s / 60, 1),
            "loss": round(float(np.mean(losses)), 4),
            "clips": self.cache.num_made,
        }
        self.progress.append(line)
        print(json.dumps(line), flush=True)


def warm_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """An exponential moving average that soon forgets the weights before training."""

    @torch.no_grad()
    def update(averages: list[Tensor], weights: list[Tensor], num_averaged: Tensor) -> None:
        count = float(num_averaged)
        share = 1 - min(decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(averages, weights, share)

    return update


def rate_at(step: int, progress: float, recipe: Recipe) -> float:
    """The learning rate: a short rise, a level half, and a straight fall."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return warm * (recipe.final_rate + (recipe.peak_rate - recipe.final_rate) * falling(progress))


def falling(progress: float) -> float:
    """1 for the first half of the training, then straight down to 0."""
    return min(1.0, 2 * (1 - progress))


def options_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What every training's command line has."""
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--init", type=Path, help="a model folder to take the first weights from")
    parser.add_argument("--stages", type=int, default=1, help="of a temporal pyramid")
    parser.add_argument(
        "--no-alignment", action="store_true", help="of data and noise, in a pyramid: an ablation"
    )
    parser.add_argument(
        "--coarse", choices=("mean", "first"), default="mean", help="frames of a coarse stage"
    )
    parser.add_argument("--keep-every", type=int, default=0, help="steps after which it is kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def noise_of(options: argparse.Namespace) -> NoiseRecipe:
    return NoiseRecipe(
        stages=options.stages, alignment=not options.no_alignment, coarse=options.coarse
    )
