"""The film itself, on the trained demo model: how visible window borders are, how early the first
seconds can be watched (also simulated at 60 windows), and how far two numerics classes differ. All
on one-shot films.
"""

from __future__ import annotations

import json
import subprocess
from statistics import median
from typing import Any

import numpy as np

from benchmarks.common import LONGTAKE, Rendered, render, write_result
from jobs.spec_file import spec_from_flags
from jobs.units import Unit
from orchestrator.prepare import prepare
from orchestrator.roster import Policy
from orchestrator.simulator import Simulation
from workers.fidelity import compare
from workers.films import iter_frames

PROMPTS = (
    "a red circle bounces on a blue background",
    "a yellow star moves right on a purple background",
    "a green square circles on a gray background",
)

#: What torch, oneDNN and MKL do on a processor without AVX-512: another numerics class.
OLDER_PROCESSOR = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


def seams() -> dict[str, Any]:
    """Frame difference at window borders over the difference inside windows."""
    films = []
    for prompt in PROMPTS:
        run = render({"model": "demo", "prompt": prompt, "seconds": 10.0}, workers=2)
        report = _verify(run)
        ratios = sorted(seam["ratio"] for seam in report["seams"])
        films.append(
            {
                "prompt": prompt,
                "windows": len(run.plan.shots[0].stages[0].windows),
                "borders": len(ratios),
                "median": report["seam_median"],
                "worst": ratios[-1],
            }
        )
    return {"films": films, "median_of_medians": median(film["median"] for film in films)}


def _verify(run: Rendered) -> dict[str, Any]:
    command = [str(LONGTAKE), "verify", run.job, "--store", str(run.store), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def first_seconds() -> dict[str, Any]:
    """When the first piece was finished, as a share of the wall time."""
    run = render({"model": "demo", "prompt": PROMPTS[0], "seconds": 32.0, "steps": 8}, workers=2)
    begun = max(run.ended_s.values()) - run.span_s
    real = (run.ended_s[Unit("decode", 0, index=0)] - begun) / run.span_s
    return {
        "real": {
            "windows": len(run.plan.shots[0].stages[0].windows),
            "steps": 8,
            "first_piece_share": real,
        },
        "simulated": [_simulated(steps) for steps in (14, 30, 50)],
    }


def _simulated(steps: int) -> dict[str, Any]:
    """One shot of 60 windows. A window's last step waits for its neighbours' steps before, so the
    first piece needs about steps / 2 steps of as many windows as there are steps."""
    spec: dict[str, Any] = {"prompt": "a", "seconds": 60.0, "steps": steps}
    while len((plan := prepare(spec_from_flags(spec)).plan).shots[0].stages[0].windows) != 60:
        spec["seconds"] += 0.25 if len(plan.shots[0].stages[0].windows) < 60 else -0.25
    run = Simulation(plan, Policy(workers=2)).run()
    return {
        "windows": 60,
        "steps": steps,
        "workers": 2,
        "first_piece_share": run.first_piece_s / run.wall_s,
    }


def numerics_classes() -> dict[str, Any]:
    """The same film on this processor and as an older one would compute it: how far the 8-bit
    frames of two classes of one dtype lie apart."""
    job = {"model": "demo", "prompt": PROMPTS[0], "seconds": 5.0, "output": {"codec": "ffv1"}}
    ours, older = (
        list(iter_frames(render(job, workers=1, env=e).film)) for e in ({}, OLDER_PROCESSOR)
    )
    apart = [np.abs(a.astype(np.int16) - b).max() for a, b in zip(ours, older, strict=True)]
    return {
        "dtype": "float32",
        "largest_difference_of_255": int(max(apart)),
        **compare(older, ours).summary(),
    }


def main() -> None:
    figures = {
        "seams": seams(),
        "first_seconds": first_seconds(),
        "numerics_classes": numerics_classes(),
    }
    write_result("film", figures, models=["demo"])


if __name__ == "__main__":
    main()
