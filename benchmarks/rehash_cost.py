"""What Step Rehash saves at the setting of the Streamlined Inference paper: 13 of 25 steps in full.

    python -m benchmarks.rehash_cost

Operations of a key step and of one that reuses it are counted on fake tensors of the paper's sizes
(``benchmarks.operations``), with guidance, so that no weights and no card are needed; how many
times faster 25 steps are follows. Times are small UNets' on one thread of this CPU, a key step and
a reused one by turns; small ones spend more of a step outside of what is left out. Nothing is said
of quality: weights are random.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from typing import Any

import torch
from torch._subclasses import FakeTensorMode

from accel.handle import TileStep
from accel.rehash import apply
from benchmarks.common import write_result
from benchmarks.operations import Operations
from benchmarks.slicing import SIZES, Pipeline, animatediff, svd
from benchmarks.small_models import Forward, small_animatediff, small_svd
from jobs.accelerations import Rehash
from jobs.units import Unit

STEPS = 25
EVERY_OTHER = Rehash(every=2, first=1)
KEY_STEPS = len(EVERY_OTHER.keys(0, STEPS))

PIPELINES: dict[str, Callable[[int, int], Pipeline]] = {"animatediff": animatediff, "svd": svd}


def times_less(full: float, reused: float) -> float:
    """Of all steps in full over what the key steps and the others take."""
    return STEPS * full / (KEY_STEPS * full + (STEPS - KEY_STEPS) * reused)


@torch.no_grad()
def counted(make: Callable[[], Pipeline]) -> dict[str, Any]:
    """Floating-point operations of steps of the real shapes, and bytes that go with a tile."""
    torch.set_default_dtype(torch.float16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        (phase,) = (phase for phase in make().phases if phase.name == "unet")
        with Operations() as plain:
            phase.forward()
        found, tile = [], None
        handle = apply(phase.model, EVERY_OTHER)
        for step in range(2):
            tile = next_step(step, tile)
            with handle.run(tile, "both"), Operations() as operations:
                phase.forward()
            found.append(operations.count)
        handle.remove()
    torch.set_default_dtype(torch.float32)
    key, reused = found
    assert key == plain.count, "a key step is the model"
    return {
        "full_flops": key,
        "reused_flops": reused,
        "reused_share": reused / key,
        "carried_bytes": sum(each.nbytes for each in tile.kept.values()),
        "times_fewer_flops": times_less(key, reused),
    }


def next_step(step: int, before: TileStep | None) -> TileStep:
    carried = before.kept if before else {}
    return TileStep(unit=Unit("step", 0, step=step), steps=STEPS, carried=carried)


# -- times


SMALL: dict[str, Callable[[], tuple[Any, Forward]]] = {
    "animatediff": small_animatediff,
    "svd": small_svd,
}


@torch.no_grad()
def timed(make: Callable[[], tuple[Any, Forward]], repeats: int) -> dict[str, Any]:
    """Seconds of a small UNet's step without the technique, of a key step and of a reused one, by
    turns: of a clock and of the processor."""
    torch.manual_seed(0)
    model, forward = make()
    model.eval()
    forward()
    names = ("plain", "key", "reused")
    clocks: dict[str, Callable[[], float]] = {
        "wall_s": time.perf_counter, "processor_s": time.process_time,
    }  # fmt: skip
    seconds: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(repeats):
        handle, tile = None, None
        for step, name in enumerate(names, -1):
            tile = next_step(max(step, 0), tile if step > 0 else None)
            handle = apply(model, EVERY_OTHER) if step == 0 else handle
            begun = [clock() for clock in clocks.values()]
            with handle.run(tile, "both") if handle else nullcontext():
                forward()
            ended = [clock() for clock in clocks.values()]
            seconds[name].append([b - a for a, b in zip(begun, ended, strict=True)])
        assert handle is not None
        handle.remove()
    middle = {
        name: {clock: median(row[n] for row in rows) for n, clock in enumerate(clocks)}
        for name, rows in seconds.items()
    }
    return {"median": middle, "repeats": repeats} | {
        f"times_less_{clock}": times_less(middle["plain"][clock], middle["reused"][clock])
        for clock in clocks
    }


def main() -> None:
    """Command line of what Step Rehash saves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    height, width = SIZES["576x1024"]
    figures: dict[str, Any] = {
        "weights": "none: fake tensors, and random ones for the times",
        "steps": STEPS,
        "key_steps": KEY_STEPS,
    }
    for name, make in PIPELINES.items():
        figures[f"{name} 576x1024"] = counted(lambda make=make: make(height, width))
    for name, small in SMALL.items():
        figures[f"{name}, small"] = timed(small, options.repeats)
    write_result("rehash_cost", figures)


if __name__ == "__main__":
    main()
