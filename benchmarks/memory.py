"""Resident memory of driver and workers: a two-minute film against twenty seconds."""

from __future__ import annotations

from benchmarks.common import render, write_result


def main() -> None:
    peaks = {}
    for seconds in (20.0, 120.0):
        job = {"model": "demo", "prompt": "a red circle bounces", "seconds": seconds}
        run = render(job, workers=2, watch_memory=True)
        peaks[f"{seconds:.0f}s"] = run.peak_rss_bytes
    short, long = peaks["20s"], peaks["120s"]
    growth = {kind: long[kind] / short[kind] - 1 for kind in short}
    write_result("memory", {"peak_rss_bytes": peaks, "growth": growth})


if __name__ == "__main__":
    main()
