"""``make bench``: every benchmark, one after the other."""

from __future__ import annotations

import sys

from benchmarks import film, memory, speed


def main() -> None:
    sys.argv = sys.argv[:1]
    for benchmark in (speed, film, memory):
        benchmark.main()


if __name__ == "__main__":
    main()
