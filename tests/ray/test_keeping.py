"""The link to a store keeper that dies or hangs, on real Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ray.harness import environment

#: Keepers that fail at the first result, die at the second, and stop for good at the third.
SCRIPT = """
import json, sys
from orchestrator import actors
from orchestrator.cluster import open_cluster

def shell():
    class DyingKeeper:
        def __init__(self, root, store_uri):
            pass
        def process(self):
            import os
            return os.getpid()
        def load(self, recipe):
            import os, signal
            if recipe == "raises":
                raise KeyError("a bug of ours")
            if recipe == "stops":
                os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(1)
    return DyingKeeper

class Recipes:
    def key(self, unit):
        return unit

cluster = open_cluster(None, 1)
import ray
from orchestrator import keeping
actors.keeper_shell = shell
watched, events = {}, []
link = keeping.KeeperLink(
    ".", "store", cluster, None, Recipes(),
    watched.__setitem__, lambda record: None, lambda unit, output: None,
)
keeping.ANSWER_LIMIT_S = 3
for name in ("raises", "kills", "stops"):
    link.load(name)
    while watched:
        ready, _ = ray.wait(list(watched), timeout=0.25)
        link.check()
        for ref in ready:
            event = watched.pop(ref)(ref)
            if event is not None:
                events.append([type(event).__name__, getattr(event, "unit", ""), event.message])
cluster.stop()
print(json.dumps(events))
"""


@pytest.mark.long
def test_a_result_that_no_keeper_can_read_counts_as_damaged(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment(PYTHONPATH=root),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    bug, dead, stopped = json.loads(done.stdout.splitlines()[-1])
    assert bug[:2] == ["LoadFailed", "raises"] and "a bug of ours" in bug[2]
    assert dead[:2] == ["LoadFailed", "kills"] and "3 store keepers died" in dead[2]
    assert stopped[:2] == ["StopRequested", ""]
    assert "did not answer for 3 s" in stopped[2] and "stuck" in stopped[2]
