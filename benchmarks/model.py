"""How well the model that we ship follows its prompts, through the renderer itself.

    python -m benchmarks.model --prompts 300 --sheet sheet.png

Every prompt is one shot of two overlapping windows; shapes, colours and motions in combinations,
and wordings, that were kept from training. The first window starts a shot, the second one is
inside; each is judged by itself (``benchmarks/judge.py``, proven by ``benchmarks/detectors.py``).
"""

from __future__ import annotations

import argparse
import atexit
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from numpy.typing import NDArray
from PIL import Image

from benchmarks import judge
from benchmarks.common import model_name, render, write_result
from benchmarks.detectors import path_distances, shares
from benchmarks.judge import Reading
from jobs.model_folder import inspect_model, resolve_model
from training import picture_vae, world
from training.captions import caption
from training.vae import psnr_db
from training.world import Scene
from workers.contact_sheet import Row, contact_sheet
from workers.films import iter_frames

MOST_ON_A_SHEET = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Pixel frames of what is judged: a window, and a shot of two that overlap."""

    window: int
    shot: int


def lengths_of(model: str) -> Lengths:
    """As the model's folder has its windows."""
    info = inspect_model(resolve_model(model))
    window, overlap = info.defaults.window_latent_frames, info.defaults.overlap_latent_frames
    latents = {"window": window, "shot": 2 * window - overlap}
    return Lengths(**{k: info.geometry.pixel_range(0, n)[1] for k, n in latents.items()})


def draw_prompts(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Scenes and wordings that no training sees."""
    rng = np.random.default_rng((seed, 9))
    scenes = [world.sample_scene(rng, held_out=True) for _ in range(count)]
    return [(scene, caption(scene, rng, held_out=True)) for scene in scenes]


def held_out_shots(model: str, count: int, seed: int) -> list[tuple[str, dict[str, str]]]:
    """The wordings of such scenes, and what a job asks for to get them: a prompt, or the image that
    the scene begins with, for a model that starts from one."""
    drawn = draw_prompts(count, seed)
    if not inspect_model(resolve_model(model)).geometry.from_image:
        return [(said, {"prompt": said}) for _, said in drawn]
    folder = _pictures()
    asked = []
    for number, (scene, said) in enumerate(drawn):
        path = folder / f"{seed}-{number}.png"
        Image.fromarray(world.render(scene, world.frame_times(1))[0]).save(path)
        asked.append((said, {"image": str(path)}))
    return asked


@cache
def _pictures() -> Path:
    """Removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="longtake-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def shots(film: Path, pixel_frames: int) -> Iterator[NDArray[np.uint8]]:
    """The frames of each shot, FHWC; all are so long."""
    frames = iter_frames(film)
    while shot := list(itertools.islice(frames, pixel_frames)):
        yield np.stack(shot)


def judge_film(film: Path, scenes: list[Scene], lengths: Lengths) -> dict[str, Any]:
    """By kind of window: what `judged` says, overall and by the number of bodies."""
    read: dict[str, list[tuple[Reading, Scene]]] = {"starts": [], "inside": []}
    for frames, scene in zip(shots(film, lengths.shot), scenes, strict=True):
        parts = {"starts": frames[: lengths.window], "inside": frames[-lengths.window :]}
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
    folder = resolve_model(model)
    with torch.inference_mode():
        if inspect_model(folder).family.name == "animatediff":
            pictures = AutoencoderKL.from_pretrained(folder, subfolder="vae").eval()
            return picture_vae.psnr_db(pictures, clips * 16)
        return psnr_db(AutoencoderKLWan.from_pretrained(folder, subfolder="vae").eval(), clips)


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
    lengths = lengths_of(options.model)
    told = [{"prompt": said, "pixel_frames": lengths.shot} for _, said in drawn]
    run = render({"model": options.model, "seed": options.seed, "shots": told}, workers=2)
    if options.sheet:
        rows = [
            Row(said, n * lengths.shot, (n + 1) * lengths.shot)
            for n, (_, said) in enumerate(drawn[:MOST_ON_A_SHEET])
        ]
        contact_sheet(run.film, rows, options.sheet)
    figures = {
        "model": options.model,
        "seed": options.seed,
        "prompts": options.prompts,
        "vae_psnr_db": vae_psnr_db(options.model, 4 if options.quick else 24),
        "judged": judge_film(run.film, [scene for scene, _ in drawn], lengths),
    }
    name = "model" if options.model == "demo" else f"model_{model_name(options.model)}"
    write_result(name, figures, keep=not options.quick)


if __name__ == "__main__":
    main()
