"""What a pyramid's plan saves, simulated: model calls, and wall time with 1 to 64 workers.

    python -m benchmarks.pyramid_plans

One shot of the demo model's windows, flat and as pyramids of two and three stages, with as many
steps in all; of three stages also with a first one that is whole: one window, which one worker
computes. Says nothing of quality: that needs weights that are trained for it.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.common import write_result
from jobs.spec_file import spec_from_flags
from jobs.units import Unit
from orchestrator.plan import Plan
from orchestrator.prepare import prepare
from orchestrator.roster import Policy
from orchestrator.simulator import Simulation

WORKERS = (1, 2, 8, 64)
SECONDS = (20.0, 60.0, 120.0)
WAYS: dict[str, dict[str, Any]] = {
    "off": {"pyramid": "off"},
    "2": {"pyramid": 2},
    "3": {"pyramid": 3},
    "3, first stage whole": {"pyramid": 3, "pyramid_first_stage": "whole"},
}


def make(seconds: float, steps: int, way: dict[str, Any]) -> Plan:
    job = {"prompt": "a", "seconds": seconds, "steps": steps, **way}
    return prepare(spec_from_flags(job)).plan


def simulate(plan: Plan) -> dict[str, Any]:
    """A step that calls the model costs 1, one that only settles 0.02, a decoded piece 0.3. Steps
    of a window that is longer than others cost more in proportion, as if attention were nothing.
    """

    def cost(unit: Unit) -> float:
        if unit.kind != "step":
            return 0.3
        return plan.length(unit) * (0.02 if plan.is_last_step(unit) else 1.0)

    walls = {n: Simulation(plan, Policy(workers=n), cost=cost).run().wall_s for n in WORKERS}
    return {
        "windows": [len(stage.windows) for stage in plan.shots[0].stages],
        "window_latent_frames": [stage.longest for stage in plan.shots[0].stages],
        "steps": [stage.steps for stage in plan.shots[0].stages],
        "window_steps": sum(len(s.windows) * s.steps for s in plan.shots[0].stages),
        "wall": {str(n): round(wall, 1) for n, wall in walls.items()},
        "speed_up": {str(n): round(walls[1] / wall, 2) for n, wall in walls.items()},
    }


def main() -> None:
    """Command line of the simulated figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="print only, write no result")
    options = parser.parse_args()
    films = []
    for seconds in SECONDS:
        plans = {name: simulate(make(seconds, options.steps, way)) for name, way in WAYS.items()}
        films.append({"seconds": seconds, "pyramid": plans})
    figures = {"weights": "none: simulated", "steps": options.steps, "films": films}
    write_result("pyramid_plans", figures, keep=not options.quick)


if __name__ == "__main__":
    main()
