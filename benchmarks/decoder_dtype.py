"""What a decoder in half precision gives, of the same latents: fidelity to float32, and time.

    python -m benchmarks.decoder_dtype --model demo --prompts 6
    python -m benchmarks.decoder_dtype --model demo-animatediff --prompts 6

Held-out prompts, one window each. The time is of decoding and writing on this CPU, which says
little of a card; what half precision saves in memory is in ``benchmarks.slicing``.
"""

from __future__ import annotations

import argparse
from statistics import mean, median
from typing import Any

from benchmarks.common import model_name, rounded, write_result
from benchmarks.here import render_here
from benchmarks.model import draw_prompts
from workers.fidelity import compare

DTYPES = ("float32", "bfloat16", "float16")


def of_prompt(model: str, prompt: str, seconds: float) -> dict[str, Any]:
    """By dtype: seconds of decoding, and PSNR in dB to what float32 gives."""
    job = {"model": model, "prompt": prompt, "seconds": seconds}
    full = render_here(job)
    steps = {unit: output for unit, output in full.outputs.items() if unit.kind != "decode"}
    films = {dtype: render_here(job | {"decoder_dtype": dtype}, given=steps) for dtype in DTYPES}
    return {
        dtype: {"decode_s": film.decode_s}
        | ({} if dtype == "float32" else compare(film.frames, full.frames).summary())
        for dtype, film in films.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=1.4, help="of a film")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    rows = [
        of_prompt(options.model, said, options.seconds)
        for _, said in draw_prompts(options.prompts, options.seed)
    ]
    figures = {
        dtype: {
            "psnr_db": mean(row[dtype]["psnr_db"] for row in rows),
            "worst_psnr_db": min(row[dtype]["psnr_db"] for row in rows),
            "time_ratio": median(
                row[dtype]["decode_s"] / row["float32"]["decode_s"] for row in rows
            ),
        }
        for dtype in DTYPES[1:]
    }
    told = {"model": options.model, "prompts": options.prompts, "decoders": rounded(figures, 3)}
    write_result(f"decoder_dtype_{model_name(options.model)}", told | {"rows": rounded(rows, 3)})


if __name__ == "__main__":
    main()
