"""How well the model that we ship follows its prompts, through the renderer itself.

    python -m benchmarks.model --prompts 300 --sheet sheet.png

Every prompt is one shot of two overlapping windows; shapes, colours and motions in combinations,
and wordings, that were kept from training. The first window starts a shot, the second one is
inside; each is judged by itself (``benchmarks/judge.py``, proven by ``benchmarks/detectors.py``).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray

from benchmarks import judge
from benchmarks.common import model_name, render, write_result
from benchmarks.detectors import path_distances, shares
from benchmarks.judge import WINDOW_PIXEL_FRAMES, Reading
from jobs.model_folder import resolve_model
from training import world
from training.captions import caption
from training.vae import psnr_db
from training.world import Scene
from workers.contact_sheet import Row, contact_sheet
from workers.video import iter_frames

#: Of two windows of 9 latent frames that share 3.
SHOT_PIXEL_FRAMES = 29
MOST_ON_A_SHEET = 16


def draw_prompts(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Scenes and wordings that no training sees."""
    rng = np.random.default_rng((seed, 9))
    scenes = [world.sample_scene(rng, held_out=True) for _ in range(count)]
    return [(scene, caption(scene, rng, held_out=True)) for scene in scenes]


def shots(film: Path) -> Iterator[NDArray[np.uint8]]:
    """The frames of each shot, FHWC."""
    frames = iter_frames(film)
    while shot := list(itertools.islice(frames, SHOT_PIXEL_FRAMES)):
        yield np.stack(shot)


def judge_film(film: Path, scenes: list[Scene]) -> dict[str, Any]:
    """By kind of window: what `judged` says, overall and by the number of bodies."""
    read: dict[str, list[tuple[Reading, Scene]]] = {"starts": [], "inside": []}
    for frames, scene in zip(shots(film), scenes, strict=True):
        parts = {"starts": frames[:WINDOW_PIXEL_FRAMES], "inside": frames[-WINDOW_PIXEL_FRAMES:]}
        for name, part in parts.items():
            read[name].append((judge.read(part), scene))
    said: dict[str, Any] = {}
    for name, rows in read.items():
        said[name] = {"all": judged(rows)}
        for bodies in sorted({len(scene.bodies) for _, scene in rows}):
            some = [(reading, scene) for reading, scene in rows if len(scene.bodies) == bodies]
            said[name][f"{bodies}_bodies"] = {"clips": len(some)} | judged(some)
    return said


def judged(rows: list[tuple[Reading, Scene]]) -> dict[str, Any]:
    """The share of each property that was right, and how far bodies keep from their paths."""
    distances = path_distances([reading.distances(scene) for reading, scene in rows])
    return shares([reading.matches(scene) for reading, scene in rows]) | {"apart": distances}


def vae_psnr_db(model: str, clips: int) -> dict[str, float]:
    vae = AutoencoderKLWan.from_pretrained(resolve_model(model), subfolder="vae").eval()
    with torch.inference_mode():
        return psnr_db(vae, clips)


def main() -> None:
    """Command line of the model's figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="write the first shots as a picture")
    parser.add_argument("--quick", action="store_true", help="print only, write no result")
    options = parser.parse_args()
    drawn = draw_prompts(options.prompts, options.seed)
    told = [{"prompt": said, "pixel_frames": SHOT_PIXEL_FRAMES} for _, said in drawn]
    run = render({"model": options.model, "seed": options.seed, "shots": told}, workers=2)
    if options.sheet:
        rows = [
            Row(said, n * SHOT_PIXEL_FRAMES, (n + 1) * SHOT_PIXEL_FRAMES)
            for n, (_, said) in enumerate(drawn[:MOST_ON_A_SHEET])
        ]
        contact_sheet(run.film, rows, options.sheet)
    figures = {
        "model": options.model,
        "seed": options.seed,
        "prompts": options.prompts,
        "vae_psnr_db": vae_psnr_db(options.model, 4 if options.quick else 24),
        "judged": judge_film(run.film, [scene for scene, _ in drawn]),
    }
    name = "model" if options.model == "demo" else f"model_{model_name(options.model)}"
    write_result(name, figures, keep=not options.quick)


if __name__ == "__main__":
    main()
