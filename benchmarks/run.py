"""``make bench``: every benchmark, one after the other; hours on two cores."""

from __future__ import annotations

import shlex
import sys

from benchmarks import (
    attention,
    attention_step,
    decoder_dtype,
    detectors,
    film,
    long_films,
    memory,
    model,
    pyramid_plans,
    rehash_cost,
    shifting,
    slicing,
    speed,
    still_and_busy,
    techniques,
    tpdiff,
    twins,
)

#: With the options of the figures in docs/figures.md; some of those were made in several runs, of
#: which each made a part.
BENCHMARKS = (
    (speed, ""),
    (speed, "--size 144 144"),
    (film, ""),
    (memory, ""),
    (detectors, ""),
    (model, ""),
    (model, "--model demo-pyramid"),
    (long_films, "--films 6"),
    (long_films, "--films 6 --bodies 1"),
    (long_films, "--films 6 --bodies 1 --model demo-pyramid"),
    (long_films, "--films 6 --model demo-pyramid"),
    (long_films, "--films 6 --model demo-pyramid --first-stage whole"),
    (
        long_films,
        "--films 6 --model demo-pyramid --pyramid 4 --first-stage whole --seconds 120",
    ),
    (long_films, "--films 6 --model demo-pyramid --repeated-noise 1"),
    (long_films, "--films 6 --repeated-noise 1 --seconds 20"),
    (long_films, "--films 6 --model demo-pyramid --pyramid-steps 3 4 7 --seconds 20"),
    (shifting, "--films 6"),
    (shifting, "--films 6 --model demo-pyramid"),
    (pyramid_plans, ""),
    (twins, "--pyramid workers/demo_pyramid --plain workers/demo_model --prompts 40"),
    (
        twins,
        "--pyramid workers/demo_animatediff_pyramid --plain workers/demo_animatediff --prompts 40",
    ),
    (twins, "--pyramid workers/demo_pyramid --plain workers/demo_model --speed-only"),
    (
        twins,
        "--pyramid workers/demo_pyramid --plain workers/demo_model --speed-only "
        "--decoder-dtype bfloat16",
    ),
    (
        twins,
        "--pyramid workers/demo_animatediff_pyramid --plain workers/demo_animatediff --speed-only",
    ),
    (twins, "--jumps demo-pyramid --prompts 40"),
    (twins, "--jumps demo-animatediff-pyramid --prompts 40"),
    (twins, "--untrained demo --prompts 40"),
    (twins, "--untrained demo-pyramid --prompts 40 --stages 1 2 4"),
    (tpdiff, ""),
    (attention_step, "--repeats 2"),
    (attention, ""),
    (slicing, ""),
    (slicing, "--decoders"),
    (slicing, "--time --published --slices 4 16 --repeats 3"),
    (decoder_dtype, ""),
    (decoder_dtype, "--model demo-animatediff"),
    (rehash_cost, ""),
    (still_and_busy, ""),
    # Other prompts than the settings of the presets were chosen on.
    (techniques, "--prompts 3 --seed 7 --plot docs/techniques.png"),
    (
        techniques,
        "--model demo-animatediff --steps 25 --prompts 2 --seed 7 --pyramid-model none",
    ),
    (techniques, "--prompts 3 --seed 7 --pyramid-frames 17 --kinds"),
    (
        techniques,
        "--model demo-animatediff --steps 25 --prompts 2 --seed 7 --pyramid-frames 32 --kinds "
        "--pyramid-kinds pyramid 'pyramid, adaptive spectral, forecast'",
    ),
    (
        techniques,
        "--model demo-animatediff --steps 25 --prompts 2 --seed 7 --pyramid-model none "
        "--scheduler sde-dpm++",
    ),
    (
        techniques,
        "--model demo-animatediff --steps 25 --prompts 2 --seed 7 --pyramid-model none "
        "--scheduler euler --kinds 'adaptive spectral, forecast' 'adaptive spectral' "
        "'every so many steps'",
    ),
)


def main() -> None:
    command = sys.argv[0]
    for benchmark, options in BENCHMARKS:
        sys.argv = [command, *shlex.split(options)]
        benchmark.main()


if __name__ == "__main__":
    main()
