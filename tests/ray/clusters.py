"""A Ray cluster of the tests' own, for renders that join one with ``--address``."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Ray reads its token once per process: every cluster of a test run has the same.
TOKEN = secrets.token_hex(32)

NODE = {"include_dashboard": False, "object_store_memory": 200 * 2**20}


@contextmanager
def cluster_of_nodes(*num_cpus: int, gpus: int = 0) -> Iterator[tuple[Any, dict[str, str]]]:
    """A cluster with a head of the first number of CPUs and nodes of the others, closed by a
    token; and the environment of a command that joins it. ``gpus``: that Ray takes the head to
    have."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    before = {name: os.environ.get(name) for name in token}
    os.environ.update(token, RAY_USAGE_STATS_ENABLED="0")
    from ray.cluster_utils import Cluster  # reads the token when it is first imported

    head = {"num_cpus": num_cpus[0], "num_gpus": gpus, **NODE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for count in num_cpus[1:]:
            cluster.add_node(num_cpus=count, **NODE)
        yield cluster, token
    finally:
        cluster.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
