"""One render of a stored job, from lease to film: sessions on disposable clusters.

The store is the truth. Whatever dies, a session starts again from what is durable: inside this
process when Ray died, or by ``longtake resume`` when this process did.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import (
    BadJob,
    CannotRunHere,
    DamagedRecord,
    StoreConflict,
    StoreError,
)
from jobs.host_memory import host_memory
from jobs.journal import Journal
from jobs.lease import HEARTBEAT_S, Lease
from jobs.results import Results
from jobs.store import JobFolder, Store
from jobs.units import Unit
from orchestrator.cluster import Cluster, ClusterLost, look_at, open_cluster
from orchestrator.events import EndRender
from orchestrator.here import worker_setup
from orchestrator.plan import Plan
from orchestrator.recipes import Recipes, film_key
from orchestrator.roster import Policy
from orchestrator.session import Session
from orchestrator.show import next_command
from orchestrator.state import RenderState
from orchestrator.stops import Stops
from orchestrator.tile_memory import live_bytes

#: How often Ray may die under a render without a unit finished in between.
MAX_BARREN_CLUSTERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """How to render, as opposed to what: none of it changes the film."""

    out: Path
    workers: int | None = None
    address: str | None = None  # of a Ray cluster; None starts one here
    take_over: bool = False
    timeout_s: float | None = None
    device: str = "auto"  # or "cpu", "cuda"


def render_job(
    store: Store,
    folder: JobFolder,
    plan: Plan,
    options: RenderOptions,
    watcher: Any,
    say: Callable[[str], None],
) -> EndRender:
    """Render a stored job to its end, whichever it is."""
    try:
        with Lease.acquire(folder.lease_path, take_over=options.take_over) as lease:
            stops = Stops(
                lease,
                options.timeout_s,
                next_command("resume", folder.id, store.root, options.address),
            )
            with stops.listening():
                return _Render(store, folder, plan, options, watcher, say, stops).run()
    except (StoreError, CannotRunHere) as error:
        return _ended_by(error)


def _ended_by(error: StoreError | CannotRunHere) -> EndRender:
    if isinstance(error, StoreConflict):
        return EndRender("conflict", str(error))
    return EndRender("store_failed" if isinstance(error, StoreError) else "cannot_run", str(error))


def _note_end(journal: Journal, ended: EndRender) -> None:
    """Every ending is in the journal, unless the store is what failed."""
    try:
        journal.append([{"type": "ended", "outcome": ended.outcome, "message": ended.message}])
    except StoreError:
        if ended.outcome == "done":  # not so, for whoever looks
            raise


class _Render:
    """A job whose lease is held."""

    def __init__(
        self,
        store: Store,
        folder: JobFolder,
        plan: Plan,
        options: RenderOptions,
        watcher: Any,
        say: Callable[[str], None],
        stops: Stops,
    ) -> None:
        self._store, self._folder, self._plan = store, folder, plan
        self._options = options
        self._watcher, self._say, self._stops = watcher, say, stops
        self._recipes = Recipes(plan, folder.id)
        self._journal = Journal.open(folder, f"driver-{os.getpid()}", repair=True)
        self._read_all = False

    def run(self) -> EndRender:
        """Render, and note in the journal how it ended."""
        for path in self._journal.set_aside:
            self._say(f"a damaged part of the journal was set aside: {path}; no result is lost")
        self._read_all = self._is_to_be_read_through()
        self._journal.begin_epoch()
        self._journal.append([{"type": "out", "key": "out", "path": str(self._options.out)}])
        try:
            ended = self._sessions()
        except (StoreError, CannotRunHere) as error:
            ended = _ended_by(error)
        _note_end(self._journal, ended)
        return ended

    def _is_to_be_read_through(self) -> bool:
        """Whether the job was done once, or its journal is damaged: it is resumed for something
        that is not as recorded, and that may be anywhere."""
        once_done = any(
            record["type"] == "ended" and record["outcome"] == "done"
            for record in self._journal.records()
        )
        return once_done or any(self._folder.journal_path.glob("*.damaged"))

    def _sessions(self) -> EndRender:
        """Sessions until one ends; a Ray that died is replaced."""
        if self._options.take_over:
            self._stops.sleep(2 * HEARTBEAT_S)  # the driver before has noticed, and stores no more
        barren = 0
        seen: set[Unit] = set()
        while True:
            durable = self._durable()
            barren = 0 if durable - seen else barren + 1
            seen |= durable
            stop = self._stops.reason(time.monotonic())
            if stop is not None:
                return EndRender(*stop)
            try:
                return self._session(durable)
            except ClusterLost as lost:
                if self._stops.reason(time.monotonic()) is not None:
                    continue  # Ctrl-C in a terminal reaches Ray's processes, too
                if barren > MAX_BARREN_CLUSTERS:
                    return EndRender("failed", f"Ray died {barren} times in a row: {lost}")
                self._say(f"Ray died ({lost}); starting it again from what is stored")

    def _session(self, durable: set[Unit]) -> EndRender:
        options = self._options
        wanted = options.workers or default_workers(self._plan)
        cpus = wanted * self._plan.threads
        cluster = open_cluster(options.address, cpus, live_bytes(self._plan))
        try:
            self._stops.arm()
            return self._drive(cluster, durable)
        finally:
            cluster.stop()

    def _drive(self, cluster: Cluster, durable: set[Unit]) -> EndRender:
        # Only now: Ray reads its environment (the token among it) when it is first imported.
        from orchestrator.driver import Driver

        plan, options = self._plan, self._options
        on_gpu = takes_gpus(cluster, options.device, self._say)
        if not on_gpu and (said := slow_on_processors(plan)):
            self._say(f"warning: {said}")
        policy = Policy(workers=self._workers(cluster, on_gpu))
        state = RenderState(plan, policy, durable=durable, pinned=self._pinned())
        any_class = plan.numerics == "any"
        session = Session(
            plan=plan,
            recipes=self._recipes,
            cluster=cluster,
            journal=self._journal,
            setup=worker_setup(
                plan,
                "",
                # A worker that cannot use its GPU refuses, rather than render on the processor.
                device="cuda" if on_gpu else options.device,
                log_dir=str(self._folder.logs),
                encoding_bytes=plan.encoding_bytes if any_class else 0,
                deepens=any_class,
            ),
            gpu_per_worker=1 if on_gpu else 0,
            store_uri=self._store.uri,
            out=str(options.out),
            provenance=provenance(self._folder.id, plan),
            watcher=self._watcher,
            stop_reason=self._stops.reason,
        )
        return Driver(session, state).run()

    def _workers(self, cluster: Cluster, on_gpu: bool) -> int:
        """How many workers to keep: as asked, or one per GPU, or one per ``threads`` cores."""
        plan, asked = self._plan, self._options.workers
        if cluster.local and not on_gpu:
            return asked or default_workers(plan)
        most = most_workers(plan, cluster, self._options.device)
        if asked is not None and asked > most:
            device = "GPUs" if on_gpu else f"times {plan.threads} processors"
            self._say(f"--workers {asked}: the cluster has {most} {device}; using those")
        return min(asked or most, most)

    def _durable(self) -> set[Unit]:
        """What is stored. A pinned job takes only what its own class made."""
        pinned = self._pinned()
        if self._plan.numerics == "pinned" and pinned is None:
            return set()
        results, read, self._read_all = Results(self._store), self._read_all, False
        if read:
            self._say("reading all that is stored")
        return take_stock(
            self._plan, self._recipes, results, pinned, self._say, read=read, stops=self._stops
        )

    def _pinned(self) -> str | None:
        """The numerics class that the job began with, if it pins one."""
        if self._plan.numerics != "pinned":
            return None
        for record in self._journal.records():
            if record["type"] == "pinned":
                return str(record["numerics"])
        return class_of_results(self._plan, self._recipes, Results(self._store))


def take_stock(
    plan: Plan,
    recipes: Recipes,
    results: Results,
    pinned: str | None,
    say: Callable[[str], None],
    *,
    read: bool = False,
    stops: Stops | None = None,
) -> set[Unit]:
    """The units whose results are in the store, whichever job put them there; what is damaged is
    set aside. ``read`` them all, until it ``stops``, or believe their records until needed.

    A piece whose latents are gone counts as missing: the film could not be made again from them.
    """
    found: set[Unit] = set()
    for unit in filter(plan.is_durable, plan.units()):
        if stops is not None and stops.reason(time.monotonic()) is not None:
            return found
        key = recipes.key(unit)
        try:
            record = results.lookup(key)
            if record is not None and read:
                results.read(key)
        except DamagedRecord as damage:
            say(f"{damage}; it is set aside, and {unit} is computed again")
            results.quarantine(key)
            continue
        if record is not None and pinned in (None, record.numerics):
            found.add(unit)
    return found - {goal for goal in plan.goals() if not found.issuperset(plan.inputs(goal))}


def class_of_results(plan: Plan, recipes: Recipes, results: Results) -> str | None:
    """The numerics class of a pinned job by its results, which are its own: its journal may have
    been damaged."""
    for unit in filter(plan.is_durable, plan.units()):
        with contextlib.suppress(DamagedRecord):
            record = results.lookup(recipes.key(unit))
            if record is not None:
                return record.numerics
    return None


def default_workers(plan: Plan) -> int:
    """Workers for this machine's processors: one per ``threads`` cores, as memory allows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    each = plan.peak_bytes + 400 * 2**20
    return max(1, min((cores or 1) // plan.threads, host_memory().available // each))


def slow_on_processors(plan: Plan) -> str:
    """Precisions of a job that processors have no kernels for; "" if it has none."""
    asked = {"dtype": plan.dtype, "decoder_dtype": plan.decoder_dtype}
    slow = [f"{name}: {dtype}" for name, dtype in asked.items() if dtype == "float16"]
    if not slow:
        return ""
    return (
        f"{' and '.join(slow)} can take ten times as long as float32 on processors, which this "
        "render has; bfloat16 is as small, and fast here"
    )


def workers_here(plan: Plan) -> int:
    """As many as a render on this machine has if nothing is said: one per GPU, or else as
    ``default_workers``."""
    from workers.devices import gpu_count

    return gpu_count() or default_workers(plan)


def takes_gpus(cluster: Cluster, device: str, say: Callable[[str], None]) -> bool:
    """Whether each worker has a GPU: where Ray finds any. One of this machine that torch has no use
    for is left alone with ``auto``, and said."""
    if not cluster.gpus or device == "cpu":
        return False
    if cluster.local and device == "auto":
        from workers.devices import FOR_A_GPU, gpu_count, torch_here

        if not gpu_count():
            say(
                f"warning: rendering on processors: {torch_here()} cannot use the GPU of this "
                f"machine; {FOR_A_GPU}"
            )
            return False
    return True


def provenance(job_id: str, plan: Plan) -> dict[str, Any]:
    """What the film's metadata says of where it came from."""
    return {
        "title": plan.title,
        "job": job_id,
        "film": film_key(plan),
        "model": plan.model if "/" not in plan.model else Path(plan.model).name,
        "model_identity": plan.model_identity,
        "longtake": importlib.metadata.version("longtake"),
    }


def check_devices(plan: Plan, address: str | None, device: str) -> None:
    """Before a job is made: raises CannotRunHere if there is no Ray at ``address``, or none of its
    workers could be there; None: on this machine."""
    if address is not None:
        most_workers(plan, look_at(address), device)
    elif device == "cuda":
        from workers.devices import device_of

        device_of(device)


def most_workers(plan: Plan, cluster: Cluster, device: str) -> int:
    """How many workers a cluster has room for: one per GPU, or else as its nodes' processors
    allow. Raises CannotRunHere if none."""
    if device == "cuda" and not cluster.gpus:
        raise CannotRunHere("the cluster has no GPU; give --device cpu or auto")
    most = cluster.gpus if cluster.gpus and device != "cpu" else cluster.room_for(plan.threads)
    if not most:
        raise CannotRunHere(
            f"a worker of this job takes {plan.threads} processors (threads: in the job), and no "
            f"node of the cluster has more than {max(cluster.cpus, default=0)}"
        )
    return most


def check_out(path: Path, codec: str) -> Path:
    """The absolute path of the film, its folder without links and "..". Raises BadJob if it cannot
    be written."""
    from workers.video import check_output

    out = path.expanduser().absolute()
    if not out.name:
        raise BadJob(f"--out {path}: give a file name for the film")
    check_output(out, codec)
    return out.parent.resolve() / out.name
