"""Makes a small model of the demo world in another family's format, from nothing, in one command.

    python -m training.families ltx --out FOLDER
    longtake presets FOLDER --prompt "a red circle moves left" --prompt "two stars bounce"

Its autoencoder learns first, then its denoiser; text encoders begin with what those of the models
that ship have learned. It draws less well than they do: it is there to measure with, on weights
that were trained. Run it again after a stop to go on.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from training.demo_model import write_folder
from training.families import autoencoder, cogvideox, hunyuan_video, ltx, svd
from training.families.codec import FamilyCodec
from training.families.student import TEXT_TOKENS
from training.text import new_tokenizer
from training.trainer import Recipe, Trainer
from training.vae import VaeRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """How one family's small model is made."""

    module: ModuleType  # with the pipeline and what a renderer should use
    student: type
    vae: VaeRecipe
    vae_steps: int
    recipe: Recipe
    steps: int


def _recipe(frames: int, tokens: int = 5200, **more: object) -> Recipe:
    return Recipe(
        window_latent_frames=frames,
        odd_shapes=0.0,
        tokens=tokens,
        first_clips=160,
        **more,
    )


MODELS: dict[str, Small] = {
    # Never fewer frames than three, as wide as its convolutions in time: with two, torch's bfloat16
    # gradient of those is wrong on a CPU.
    "svd": Small(
        module=svd, student=svd.SVDStudent,
        vae=VaeRecipe(batch=4, pixel_frames=3), vae_steps=1400,
        recipe=_recipe(
            svd.FRAMES, 144 * svd.FRAMES * 4, short_window_latent_frames=5,
            peak_rate=1e-3,
        ),
        steps=600,
    ),
    "ltx": Small(
        module=ltx, student=ltx.LTXStudent,
        vae=VaeRecipe(batch=4, pixel_frames=9), vae_steps=5000,
        recipe=_recipe(9, reading_steps=600), steps=600,
    ),
    "cogvideox": Small(
        module=cogvideox, student=cogvideox.CogVideoXStudent,
        vae=VaeRecipe(batch=4, pixel_frames=9), vae_steps=900,
        recipe=_recipe(9, reading_steps=600), steps=600,
    ),
    "hunyuan-video": Small(
        module=hunyuan_video, student=hunyuan_video.HunyuanVideoStudent,
        vae=VaeRecipe(batch=4, pixel_frames=9), vae_steps=900,
        recipe=_recipe(5), steps=600,
    ),
}  # fmt: skip


def make(
    name: str, small: Small, runs: Path, out: Path, device: str = "cpu", compiled: bool = False
) -> None:
    """A family's model in ``out``; its parts' trainings are in ``runs``."""
    _say(f"{name}: its autoencoder learns, {small.vae_steps} steps")
    autoencoder.train(name, runs / "vae", small.vae, small.vae_steps, device)
    torch.manual_seed(small.recipe.seed)
    tokenizer = new_tokenizer(TEXT_TOKENS)  # as texts are padded in renders
    student = small.student(len(tokenizer))
    codec = FamilyCodec(name, runs / "vae", device)
    _say(f"its denoiser learns, {small.steps} steps")
    trainer = Trainer(small.recipe, student, tokenizer, codec, runs / "model", compiled)
    trainer.resume()
    trainer.train(small.steps)
    write_folder(
        small.module.pipeline(runs / "model", runs / "vae"),
        out,
        small.module.SIDECAR,
        ships=False,
    )
    _say(f"done: {out}")


def _say(told: str) -> None:
    print(told, file=sys.stderr, flush=True)


def main() -> None:
    """Command line of the other families' models."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("family", choices=[*MODELS])
    parser.add_argument("--out", type=Path, help="default: in --runs, named after the family")
    parser.add_argument("--runs", type=Path, help="default: training/runs/families/FAMILY")
    parser.add_argument("--compile", action="store_true", help="the transformer's blocks")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.compile and options.family == "svd":
        parser.error("--compile is for transformers; svd has a UNet")
    runs = options.runs or Path("training/runs/families") / options.family
    make(
        options.family, MODELS[options.family], runs, options.out or runs / options.family,
        options.device, options.compile,
    )  # fmt: skip


if __name__ == "__main__":
    main()
