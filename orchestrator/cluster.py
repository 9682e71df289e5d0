"""Ray, started on this machine or joined: closed by default, and disposable.

A Ray that we start listens with a token, on loopback where Ray allows it, without dashboard or
usage reports. When one of its processes dies, the render goes on in a new one: the store is the
truth.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from jobs.errors import CannotRunHere
from jobs.host_memory import host_memory

#: Memory for outputs in flight on a Ray that we start: at least this, at most a share of what is
#: free. What does not fit is spilled to disk by Ray.
OBJECT_STORE_BYTES = 512 * 2**20
OBJECT_STORE_SHARE = 0.3

#: A machine under load may miss Ray's own time limit for a start, which is 30 s.
START_TRIES = 3

#: How long a host may take to answer at all. Ray itself would ask for minutes.
ANSWER_S = 5.0

#: The processes of a local Ray without which nothing runs.
_VITAL = ("raylet", "gcs_server")


class ClusterLost(Exception):
    """Ray itself is gone: a raylet or the control service died."""


@dataclass
class Cluster:
    """A Ray that this process is connected to."""

    local: bool
    gpus: int
    node_id: str
    cpus: tuple[int, ...]  # of each node
    vital: dict[str, psutil.Process] = field(default_factory=dict)
    _workers: list[psutil.Process] = field(default_factory=list)

    def room_for(self, threads: int) -> int:
        """How many workers with so many threads fit, each on one node."""
        return sum(cpus // threads for cpus in self.cpus)

    def note_process(self, pid: int) -> None:
        """Remember a worker's process on this host: it must not outlive a Ray that died."""
        if self.local:
            with contextlib.suppress(psutil.Error):
                self._workers.append(psutil.Process(pid))

    def check(self) -> None:
        """Raise ClusterLost if a vital process is gone. Costs microseconds."""
        for name, process in self.vital.items():
            if not _lives(process):
                raise ClusterLost(f"{name} of the local Ray died")

    def stop(self) -> None:
        """Disconnect; a Ray that we started is shut down, and nothing of it is left."""
        import ray

        leftovers = psutil.Process().children(recursive=True) if self.local else []
        leftovers += [process for process in self._workers if process.is_running()]
        with contextlib.suppress(Exception):
            ray.shutdown()
        for process in leftovers:
            with contextlib.suppress(psutil.Error):
                process.kill()


def open_cluster(address: str | None, cpus: int, output_bytes: int = 0) -> Cluster:
    """Join the Ray at ``address``, or start one here that may use ``cpus`` processors and has
    room for ``output_bytes``.

    Raises CannotRunHere.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # What fails is told by the driver, once; Ray would print its own traces beside that.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if address is None:
        return _start(cpus, output_bytes)
    return _join(address)


def look_at(address: str) -> Cluster:
    """Join the Ray at ``address`` and leave it again; warn if anybody could. Raises CannotRunHere
    if there is none."""
    _refuse_silent(address)
    print(f"joining the Ray at {address}", file=sys.stderr)
    cluster = open_cluster(address, 0)
    cluster.stop()
    if not _has_token():
        print(
            f"warning: joining the Ray at {address} without a token: whoever can reach it can "
            "run code there. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN on every node",
            file=sys.stderr,
        )
    return cluster


def _start(cpus: int, output_bytes: int) -> Cluster:
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # A Ray that needs no other host stays on loopback: so it is on Windows and macOS anyway, and
    # with this on Linux. (Ray replaces a loopback address that it is given by one of the network.)
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # Nobody reads Ray's own account of every task; the workers and the journal keep ours.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    import ray  # reads these when it is first imported

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    for attempt in range(1, START_TRIES + 1):
        try:
            _init(ray, cpus, output_bytes)
            break
        except Exception as error:
            _clear(ray, before)
            if attempt == START_TRIES:
                raise CannotRunHere(
                    f"Ray could not be started here: {_first_line(error)} Check free memory, "
                    "the load, and the disk space in /tmp"
                ) from error
    vital = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it was short-lived
            if process.pid not in before and process.name() in _VITAL:
                vital[process.name()] = process
    assert len(vital) == len(_VITAL), f"Ray's processes are named otherwise: {vital}"
    return Cluster(
        local=True,
        gpus=_resource(ray, "GPU"),
        cpus=_cpus(ray),
        node_id=ray.get_runtime_context().get_node_id(),
        vital=vital,
    )


def _init(ray: Any, cpus: int, output_bytes: int) -> None:
    with _quiet():
        ray.init(
            address="local",
            num_cpus=cpus + 1,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=_store_bytes(output_bytes),
        )


def _clear(ray: Any, before: set[int]) -> None:
    """Whatever a start that failed left running."""
    with contextlib.suppress(Exception):
        ray.shutdown()
    for process in psutil.Process().children(recursive=True):
        if process.pid not in before:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _store_bytes(output_bytes: int) -> int:
    most = int(host_memory().available * OBJECT_STORE_SHARE)
    return max(OBJECT_STORE_BYTES, min(output_bytes, most))


def _refuse_silent(address: str) -> None:
    """Raise CannotRunHere for an address that is none, or at which nobody listens."""
    if address.startswith("ray://"):
        raise CannotRunHere(
            f"{address}: a Ray client cannot hold a film's outputs; run longtake on a machine of "
            "the cluster, with --address auto"
        )
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise CannotRunHere(
            f"--address {address}: valid: auto, or a host and a port such as 10.0.0.7:6379"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise CannotRunHere(
            f"no Ray at {address} to join: {_first_line(error)}; start one there (ray start, or "
            "ray up cluster.yaml), or correct --address"
        ) from None


def _join(address: str) -> Cluster:
    import ray

    _refuse_silent(address)
    try:
        with _quiet():
            ray.init(address=address, log_to_driver=False, configure_logging=False)
    except Exception as error:
        token = "" if _has_token() else "; if it wants a token, set RAY_AUTH_MODE=token, too"
        raise CannotRunHere(
            f"no Ray at {address} to join: {_first_line(error).rstrip('.')}; start one there (ray "
            f"start, or ray up cluster.yaml){token}"
        ) from error
    return Cluster(
        local=False,
        gpus=_resource(ray, "GPU"),
        cpus=_cpus(ray),
        node_id=ray.get_runtime_context().get_node_id(),
    )


def _has_token() -> bool:
    """Whether this process talks to Ray with a token."""
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    kept = (Path.home() / ".ray" / "auth_token").is_file()
    return os.environ.get("RAY_AUTH_MODE") == "token" and bool(given or kept)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _resource(ray: Any, name: str) -> int:
    return int(ray.cluster_resources().get(name, 0))


def _cpus(ray: Any) -> tuple[int, ...]:
    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return tuple(int(resources.get("CPU", 0)) for resources in nodes)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _quiet() -> Any:
    """Ray's start-up chatter is not for the person in front of the film."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def install_root() -> str:
    """The folder that our packages were imported from."""
    import jobs

    return str(Path(jobs.__file__).resolve().parent.parent)
