"""Resident memory of driver and workers: a two-minute film against twenty seconds.

The peak of a kind of process is that of its largest. ``_private`` leaves out the memory that
processes share, in which outputs lie.
"""

from __future__ import annotations

import argparse
from statistics import median

from benchmarks.common import render, write_result


def peaks(seconds: float) -> dict[str, int]:
    """Bytes by kind of process."""
    job = {"model": "demo", "prompt": "a red circle bounces", "seconds": seconds}
    return render(job, workers=2, watch_memory=True).peak_rss_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    films = {"20s": 20.0, "120s": 120.0}
    found = [{name: peaks(s) for name, s in films.items()} for _ in range(options.repeats)]
    middle = {
        name: {kind: median(each[name][kind] for each in found) for kind in found[0][name]}
        for name in films
    }
    growth = {kind: middle["120s"][kind] / middle["20s"][kind] - 1 for kind in middle["20s"]}
    figures = {"peak_rss_bytes": found, "median": middle, "growth": growth}
    write_result("memory", figures, models=["demo"])


if __name__ == "__main__":
    main()
