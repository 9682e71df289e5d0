"""Makes a demo model as its card says, from nothing, in one command.

    python -m training.recipe
    python -m training.recipe --pyramid

The autoencoder learns, then its decoder alone; the text encoder learns to read; the transformer
learns to draw; and for a pyramid it goes on stage-wise. Run it again after a stop to go on: what is
done is not done again. Every part's folder has a `training.json` that says how it went.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from training import reading, vae, wan
from training.demo_model import assemble
from training.draws import NoiseRecipe
from training.trainer import Recipe
from training.vae import VaeRecipe

PYRAMID_STAGES = 3
#: A transformer that can draw already sees fewer short windows when it learns a pyramid.
PYRAMID_SHORT_WINDOWS = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Steps of each part."""

    vae: int = 6000
    decoder: int = 4500
    reading: int = 6000
    wan: int = 18_000
    pyramid: int = 4500


@dataclass(frozen=True, slots=True, kw_only=True)
class Kitchen:
    """Where the parts' folders are, and on what they are trained."""

    runs: Path
    device: str = "cpu"
    compiled: bool = True
    lengths: Lengths = Lengths()


def make_model(kitchen: Kitchen, recipe: Recipe, vae_recipe: VaeRecipe, out: Path) -> None:
    """The plain model, from nothing; all seeds are the recipes'."""
    runs, lengths, device = kitchen.runs, kitchen.lengths, kitchen.device
    vae.train(runs / "vae_whole", vae_recipe, lengths.vae, device)
    vae.train(
        runs / "vae", vae_recipe, lengths.decoder, device,
        decoder_only=True, init=runs / "vae_whole",
    )  # fmt: skip
    reading.teach_folder(runs / "start", lengths.reading, recipe.seed, device=device)
    _draw(kitchen, recipe, runs, lengths.wan, init=runs / "start")
    assemble(runs, out, recipe)


def make_pyramid(kitchen: Kitchen, recipe: Recipe, out: Path) -> None:
    """Its twin for a pyramid, from the plain model's parts."""
    runs = kitchen.runs / "pyramid"
    not_its_own = shutil.ignore_patterns("state.pt")
    shutil.copytree(kitchen.runs / "vae", runs / "vae", ignore=not_its_own, dirs_exist_ok=True)
    recipe = replace(
        recipe, noise=NoiseRecipe(stages=PYRAMID_STAGES), short_windows=PYRAMID_SHORT_WINDOWS
    )
    _draw(kitchen, recipe, runs, kitchen.lengths.pyramid, init=kitchen.runs / "wan")
    assemble(runs, out, recipe)


def _draw(kitchen: Kitchen, recipe: Recipe, runs: Path, steps: int, init: Path) -> None:
    codec = AutoencoderKLWan.from_pretrained(runs / "vae").to(kitchen.device).eval()
    trainer = wan.new_trainer(recipe, codec, runs / "wan", kitchen.compiled, init)
    trainer.resume()
    trainer.train(steps)


def main() -> None:
    """Command line of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pyramid", action="store_true", help="then its twin for a pyramid too")
    parser.add_argument("--runs", type=Path, default=Path("training/runs/recipe"))
    parser.add_argument(
        "--out", type=Path, help="for demo_model/ and demo_pyramid/; default: --runs"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--eager", action="store_true", help="do not compile the blocks")
    options = parser.parse_args()
    kitchen = Kitchen(runs=options.runs, device=options.device, compiled=not options.eager)
    recipe, out = Recipe(seed=options.seed), options.out or options.runs
    make_model(kitchen, recipe, VaeRecipe(seed=options.seed), out / "demo_model")
    if options.pyramid:
        make_pyramid(kitchen, recipe, out / "demo_pyramid")


if __name__ == "__main__":
    main()
