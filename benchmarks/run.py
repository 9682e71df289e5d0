"""``make bench``: every benchmark, one after the other; hours on two cores."""

from __future__ import annotations

import sys

from benchmarks import attention, detectors, film, long_films, memory, model, speed


def main() -> None:
    command = sys.argv[0]
    for options in ([], ["--size", "144", "144"]):
        sys.argv = [command, *options]
        speed.main()
    sys.argv = [command]
    for benchmark in (film, memory, detectors, model, long_films, attention):
        benchmark.main()


if __name__ == "__main__":
    main()
