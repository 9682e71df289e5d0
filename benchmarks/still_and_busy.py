"""Whether a window where little happens skips more than a busy one, on a trained model.

Pairs of prompts that differ in what a body does: it rests, or is quick. Every criterion of
`adaptive` (AdaptiveDiffusion's two, and SeaCache's) renders both, one window each, beside its full
render. A setting that skips as many steps of both has no use for decisions that look at a tile's
own latents.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from itertools import product
from statistics import mean
from typing import Any

from benchmarks.common import write_result
from benchmarks.here import render_here
from benchmarks.model import lengths_of
from benchmarks.techniques import against

BODIES = (
    "a red circle {} on a plain blue background",
    "a big yellow square {} on a plain purple background",
    "a green ring {} on a plain gray background",
    "a white star {} on a plain pink background",
)
VERBS = {"still": "stays still", "busy": "moves in a circle quickly"}

#: From each criterion's sweep, settings that skip a third to a half of the demo model's steps.
SETTINGS: dict[str, Mapping[str, Any]] = {
    "form: tensor, threshold 0.4": {"form": "tensor", "threshold": 0.4},
    "form: tensor, threshold 0.8": {"form": "tensor", "threshold": 0.8},
    "form: scalar, threshold 0.01": {"form": "scalar", "threshold": 0.01},
    "form: scalar, threshold 0.02": {"form": "scalar", "threshold": 0.02},
    "form: spectral, threshold 0.15": {"form": "spectral", "threshold": 0.15, "first": 1},
    "form: spectral, threshold 0.25": {"form": "spectral", "threshold": 0.25, "first": 1},
}


def measure(job: Mapping[str, Any], bodies: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """For each setting how many times fewer passes each body's window takes, still and busy."""
    rows: dict[str, dict[str, list[dict[str, float]]]] = {
        setting: {verb: [] for verb in VERBS} for setting in SETTINGS
    }
    for body, (verb, said) in product(bodies, VERBS.items()):
        told = {**job, "prompt": body.format(said)}
        full = render_here(told)
        for setting, adaptive in SETTINGS.items():
            fast = render_here({**told, "accelerations": {"adaptive": dict(adaptive)}})
            rows[setting][verb].append(against(full, fast))
        fewer = {name: round(rows[name][verb][-1]["fewer_passes"], 2) for name in SETTINGS}
        print(told["prompt"], fewer, file=sys.stderr)
    return {setting: _summary(of_verbs) for setting, of_verbs in rows.items()}


def _summary(of_verbs: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    fewer = {verb: [row["fewer_passes"] for row in rows] for verb, rows in of_verbs.items()}
    pairs = zip(fewer["still"], fewer["busy"], strict=True)
    return {
        "fewer_passes": {verb: mean(each) for verb, each in fewer.items()},
        "psnr_db": {verb: mean(r["psnr_db"] for r in rows) for verb, rows in of_verbs.items()},
        "of_each_body": fewer,
        "bodies_whose_still_window_skips_more": sum(still > busy for still, busy in pairs),
    }


def main() -> None:
    """Command line of what a still window skips."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--bodies", type=int, default=len(BODIES), help="how many of them")
    options = parser.parse_args()
    job = {
        "model": options.model, "steps": options.steps, "pyramid": "off",
        "pixel_frames": lengths_of(options.model).window,
    }  # fmt: skip
    bodies = BODIES[: options.bodies]
    figures = {**job, "bodies": bodies, "verbs": VERBS, "settings": measure(job, bodies)}
    write_result("still_and_busy", figures, models=[options.model])


if __name__ == "__main__":
    main()
