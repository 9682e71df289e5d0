"""The Ray that we start is closed: a token, loopback, no dashboard, no usage reports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.ray.harness import ROOT, environment

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
OPEN = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **LOOPBACK}

#: Starts a Ray as a render does, tells of it, and keeps it until its input is closed.
HOST = """
import json, os, sys
from orchestrator.cluster import open_cluster
cluster = open_cluster(None, 1)
import ray
print(json.dumps({
    "address": ray.get_runtime_context().gcs_address,
    "usage": os.environ["RAY_USAGE_STATS_ENABLED"],
    "token": os.environ["RAY_AUTH_TOKEN"],
}), flush=True)
sys.stdin.read()
cluster.stop()
"""

#: The same, but a Ray that anybody on this machine may come into.
OPEN_HOST = """
import json, sys, ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print(json.dumps({"address": ray.get_runtime_context().gcs_address}), flush=True)
sys.stdin.read()
"""

#: Joins the Ray at an address as a render does, first of all.
JOINING = """
import sys
from orchestrator.cluster import look_at
look_at(sys.argv[1])
"""

#: Asks the Ray at an address for its processors.
GUEST = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("inside", ray.cluster_resources())
"""


def command(script: str, *args: str) -> list[str]:
    return [sys.executable, "-c", script, *args]


@contextmanager
def started(script: str, folder: Path, **env: str) -> Iterator[tuple[dict[str, Any], int]]:
    """What a Ray told of itself, and the process that started it."""
    process = subprocess.Popen(
        command(script),
        env=environment(PYTHONPATH=ROOT, **env),
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdin is not None
    try:
        yield json.loads(process.stdout.readline()), process.pid
    finally:
        process.stdin.close()
        process.wait(60)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], int]]:
    with started(HOST, tmp_path_factory.mktemp("host")) as told:
        yield told


def guest(
    address: str, home: Path, script: str = GUEST, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(script, address),
        env=environment(HOME=str(home), PYTHONPATH=ROOT, **LOOPBACK, **env),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_only_those_with_the_token_come_in(
    host: tuple[dict[str, Any], int], tmp_path: Path
) -> None:
    told, _ = host
    keys = ({"RAY_AUTH_TOKEN": told["token"]}, {"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": ""})
    with ThreadPoolExecutor() as pool:
        friend, guesser, stranger = pool.map(
            lambda key: guest(told["address"], tmp_path, **{"RAY_AUTH_MODE": "token"} | key), keys
        )
    assert "inside" in friend.stdout, friend.stderr
    for other in (guesser, stranger):
        assert other.returncode != 0 and "inside" not in other.stdout


@pytest.mark.long
def test_joining_an_open_ray_is_warned_of(tmp_path: Path) -> None:
    with started(OPEN_HOST, tmp_path, **OPEN) as (told, _):
        ran = guest(told["address"], tmp_path, JOINING)
    assert ran.returncode == 0, ran.stderr
    warning = f"warning: joining the Ray at {told['address']} without a token: whoever can reach it"
    assert ran.stderr.count(warning) == 1 and "Set RAY_AUTH_MODE=token" in ran.stderr, ran.stderr


def is_loopback(ip: str) -> bool:
    address = ip_address(ip)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def test_nothing_listens_to_other_hosts(host: tuple[dict[str, Any], int]) -> None:
    told, pid = host
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    names = [" ".join(process.cmdline()) for process in family]
    assert told["usage"] == "0"
    dashboards = [name for name in names if "dashboard.py" in name]
    assert all("--disable-frontend" in name for name in dashboards), dashboards
    heard = [
        (process.name(), socket.laddr.ip)
        for process in family
        for socket in process.net_connections(kind="tcp")
        if socket.status == psutil.CONN_LISTEN
    ]
    assert heard
    assert [each for each in heard if not is_loopback(each[1])] == []
