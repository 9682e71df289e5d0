"""The ``longtake`` command with the limits of a test, which cannot wait an hour for a worker that
hangs: ``POLICY='{"max_deaths": 2}' python -m tests.ray.impatient render ...``
"""

from __future__ import annotations

import json
import os
from functools import partial

from orchestrator import cli, render

if __name__ == "__main__":
    render.Policy = partial(render.Policy, **json.loads(os.environ["POLICY"]))
    cli.main()
