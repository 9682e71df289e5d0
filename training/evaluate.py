"""Shows and scores what a model folder makes of random captions of the demo world.

    python -m training.evaluate --model workers/demo_model --clips 24 --sheet sheet.png

Renders with diffusers' own pipeline, so it judges the model and nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline
from numpy.typing import NDArray
from PIL import Image

from training import judge, world
from training.captions import caption
from training.world import Scene

SHEET_COLUMNS = 8


def render(
    pipeline: WanPipeline, prompt: str, pixel_frames: int, steps: int, guidance: float, seed: int
) -> NDArray[np.uint8]:
    """A clip, FHWC, as the ordinary pipeline renders it."""
    frames = pipeline(
        prompt=prompt,
        height=96,
        width=96,
        num_frames=pixel_frames,
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=64,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).frames[0]
    return (frames * 255).round().astype(np.uint8)


def sheet(clips: list[NDArray[np.uint8]]) -> Image.Image:
    """One row a clip, its frames from left to right in time."""
    rows = []
    for frames_FHWC in clips:
        picked = np.linspace(0, len(frames_FHWC) - 1, SHEET_COLUMNS).round().astype(int)
        rows.append(np.concatenate(list(frames_FHWC[picked]), axis=1))
    return Image.fromarray(np.concatenate(rows, axis=0))


def draw_prompts(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Scenes with captions that the training never saw: its seeds are others."""
    rng = np.random.default_rng((seed, 9))
    scenes = [world.sample_scene(rng) for _ in range(count)]
    return [(scene, caption(scene, rng)) for scene in scenes]


def main() -> None:
    """Command line of the evaluation: one line of JSON with the share of each property right."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("workers/demo_model"))
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--pixel-frames", type=int, default=17)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt", action="append", help="show this prompt; may be given again")
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    pipeline = WanPipeline.from_pretrained(options.model)
    pipeline.set_progress_bar_config(disable=True)
    drawn = draw_prompts(options.clips, options.seed)
    prompts = options.prompt or [told for _, told in drawn]
    began_s, clips = time.monotonic(), []
    for seed, told in enumerate(prompts):
        settings = (options.pixel_frames, options.steps, options.guidance, seed)
        clips.append(render(pipeline, told, *settings))
    took_s = time.monotonic() - began_s
    if options.sheet:
        sheet(clips).save(options.sheet, optimize=True)
    line: dict[str, object] = {"clips": len(clips), "clip_s": round(took_s / len(clips), 2)}
    if not options.prompt:
        right: Counter[str] = Counter()
        for clip, (scene, _) in zip(clips, drawn, strict=True):
            right.update(name for name, same in judge.read(clip).matches(scene).items() if same)
        line |= {name: round(count / len(clips), 3) for name, count in sorted(right.items())}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
