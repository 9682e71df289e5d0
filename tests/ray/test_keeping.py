"""The link to a store keeper that dies, on real Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.ray.harness import environment

#: Keepers that die at every load of the first result, and answer for the second.
SCRIPT = """
import json, sys
from orchestrator import actors
from orchestrator.cluster import open_cluster

def shell():
    class DyingKeeper:
        def __init__(self, root, store_uri):
            pass
        def load(self, recipe):
            if recipe == "raises":
                raise KeyError("a bug of ours")
            import os
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
for name in ("raises", "kills"):
    link.load(name)
    for _ in range(20):
        if not watched:
            break
        (ref, handler), = list(watched.items())
        ray.wait([ref], timeout=60)
        del watched[ref]
        event = handler(ref)
        if event is not None:
            events.append([type(event).__name__, event.unit, event.message])
cluster.stop()
print(json.dumps(events))
"""


def test_a_result_that_kills_every_keeper_counts_as_damaged(tmp_path: Path) -> None:
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
    bug, dead = json.loads(done.stdout.splitlines()[-1])
    assert bug[:2] == ["LoadFailed", "raises"] and "a bug of ours" in bug[2]
    assert dead[:2] == ["LoadFailed", "kills"] and "3 store keepers died" in dead[2]
