"""How far a film lies from a reference: PSNR and SSIM, over all frames and at the worst ones.

python -m benchmarks.fidelity fast.mp4 full.mp4
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from jobs.errors import LongtakeError
from workers.fidelity import compare
from workers.films import iter_frames


def main() -> None:
    """Command line: prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("film", type=Path)
    parser.add_argument("reference", type=Path)
    options = parser.parse_args()
    try:
        found = compare(iter_frames(options.film), iter_frames(options.reference))
    except (LongtakeError, ValueError, OSError) as error:
        sys.exit(str(error))
    print(json.dumps(found.summary(), indent=2))


if __name__ == "__main__":
    main()
