"""The workers of a render: who is wanted, who may take part, who counts as lost.

Pure, like the state that owns it: it is told the time, and says what to do through ``emit``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

from jobs.numerics import WorkerProfile
from jobs.units import Unit
from orchestrator.events import Command, Outcome, StartWorker
from orchestrator.placement import Seat, fits
from orchestrator.plan import Plan
from orchestrator.sizes import gb


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The numbers behind the decisions. Seconds unless named otherwise."""

    workers: int = 1
    depth: int = 2  # units sent to a worker at a time
    max_faults: int = 3  # tries of a unit that fail by themselves
    max_deaths: int = 4  # workers that die or hang while they compute the same unit
    same_loss_s: float = 2.0  # workers lost on the same unit within this time are one loss
    max_worker_faults: int = 3  # then the worker is replaced
    max_cluster_failures: int = 25  # of one unit; only to end some day
    max_write_failures: int = 25  # in a row, of one result whose writer dies
    max_damages: int = 5  # of one durable result; then the storage is not to be trusted
    max_barren_losses: int = 6  # workers lost in a row without a finished unit between
    join_limit_s: float = 1800.0
    first_unit_limit_s: float = 3600.0  # before anything of its kind was measured
    hang_floor_s: float = 120.0
    hang_factor: float = 30.0
    max_backoff_s: float = 300.0  # before a worker is replaced that never finished a unit


@dataclass(slots=True)
class WorkerRecord:
    worker: str
    started_s: float
    profile: WorkerProfile | None = None
    queue: deque[Unit] = field(default_factory=deque)  # the first one is being computed
    head_since_s: float = 0.0
    faults: int = 0
    units: int = 0
    encode_s: float = 0.0  # the longest that encoding a shot took it
    steps: int = 0  # that called the model
    usual_steps: int = 0  # of them, of windows no longer than usual: their time is its speed
    usual_steps_s: float = 0.0

    @property
    def step_s(self) -> float:
        return self.usual_steps_s / self.usual_steps if self.usual_steps else 0.0

    @property
    def holds_a_tile(self) -> bool:
        """Whether a tile has taken its memory by now."""
        return self.steps > 0 or (bool(self.queue) and self.queue[0].kind == "step")


class Roster:
    """``pinned`` is the digest of the only numerics class allowed, if the job pins one."""

    def __init__(
        self, plan: Plan, policy: Policy, pinned: str | None, emit: Callable[[Command], None]
    ) -> None:
        self.plan = plan
        self.policy = policy
        self.pinned = pinned
        self.emit = emit
        self.workers: dict[str, WorkerRecord] = {}
        self._next_worker = 1
        self._barren_losses = 0  # since a unit was finished
        self._useless_starts = 0  # since a new worker finished its first unit
        self._not_before_s = 0.0
        self._last_loss = ""
        self._refusals: list[str] = []  # since a worker that took part was lost
        self._elapsed_s: dict[tuple[str, float], deque[float]] = {}  # by kind and length
        self.seats: dict[str, Seat] = {}  # joined workers with a free place

    # -- who is wanted

    def staff(self, now_s: float) -> None:
        """Keep as many workers as were asked for.

        One that was refused is not replaced: the next would find the same device, and be
        refused again. One that was lost before it did anything is replaced ever more slowly.
        """
        if self._gives_up or now_s < self._not_before_s:
            return
        while len(self.workers) + len(self._refusals) < self.policy.workers:
            name = f"w{self._next_worker}"
            self._next_worker += 1
            self.workers[name] = WorkerRecord(name, now_s)
            self.emit(StartWorker(name))

    @property
    def _gives_up(self) -> bool:
        # A host with many devices may be lost, and come back, as a whole: that is one loss.
        limit = max(self.policy.max_barren_losses, 2 * self.policy.workers)
        return self._barren_losses > limit

    def hopeless(self) -> tuple[Outcome, str] | None:
        """Why there will never be a worker again, or None."""
        if self.workers:
            return None
        if self._gives_up:
            return "failed", f"workers keep dying: {self._last_loss}"
        if len(self._refusals) >= self.policy.workers:
            return "cannot_run", "; ".join(dict.fromkeys(self._refusals))
        return None

    # -- who may take part

    def join(self, record: WorkerRecord, profile: WorkerProfile) -> str | None:
        """Let a worker take part; or strike it off and return why it cannot."""
        refusal = self._refusal(profile)
        if refusal is None:
            record.profile = profile
            self._place(record)
            return None
        self.refuse(record, refusal)
        return refusal

    def refuse(self, record: WorkerRecord, reason: str) -> None:
        """Strike a worker off that cannot take part, whoever found that out."""
        del self.workers[record.worker]
        self._refusals.append(reason)

    def _refusal(self, profile: WorkerProfile) -> str | None:
        beside = sum(  # take part, but their tiles take no memory yet
            not record.holds_a_tile and profile.shares_memory(record.profile)
            for record in self.workers.values()
            if record.profile is not None
        )
        decoder = max(0, self.plan.model_bytes - profile.model_bytes)  # is loaded when it decodes
        needed = (self.plan.tile_bytes + decoder) * (1 + beside)
        if not fits(profile.free_bytes, needed):
            short = needed - profile.free_bytes
            one = "a tile and the decoder need" if decoder else "a tile needs"
            tiles = f"{1 + beside} tiles, one a worker, need" if beside else one
            fewer = "with fewer workers, " if beside else ""
            return (
                f"{tiles} about {gb(needed)}, {profile.host} has "
                f"{gb(profile.free_bytes)} free after loading the model: {gb(short)} short; as a "
                f"new job {self._less}render it smaller, {fewer}or where there is more memory"
            )
        digest = profile.numerics.digest()
        if self.plan.numerics == "pinned":
            self.pinned = self.pinned or digest
            if digest != self.pinned:
                return (
                    f"the job pins numerics class {self.pinned}, but {profile.host} is {digest} "
                    f"({profile.numerics}); render with numerics: any, or on the same machines"
                )
        return None

    @property
    def _less(self) -> str:
        """What would make a tile of this job take less."""
        plan, ways = self.plan, []
        if plan.longest_frames != plan.usual_frames:  # the coarsest stage is one window
            ways += ["cut its longest shot in two", "say pyramid_first_stage: windows"]
        sliced = plan.accelerations.slicing
        more = 8 if sliced is None else 2 * (sliced.slices or 1)
        ways += [f"slice it (accelerations: {{slicing: {{slices: {more}}}}})"]
        if plan.decoder_dtype == "float32":
            ways += ["decode it in half precision (decoder_dtype: bfloat16)"]
        return "".join(f"{way}, " for way in ways)

    # -- who counts as lost

    def remove(self, record: WorkerRecord, reason: str, now_s: float) -> None:
        """A worker is gone."""
        del self.workers[record.worker]
        self.seats.pop(record.worker, None)
        self._barren_losses += 1
        self._last_loss = f"{reason} ({record.queue[0]})" if record.queue else reason
        if record.profile is not None:
            self._refusals.clear()
        if record.units == 0:
            self._useless_starts += 1
            wait_s = 2.0 ** min(self._useless_starts, 20)
            self._not_before_s = now_s + min(wait_s, self.policy.max_backoff_s)

    def overdue(self, record: WorkerRecord, now_s: float) -> str | None:
        """Why a worker counts as lost though its process may live, or None."""
        if record.profile is None:
            limit = self.policy.join_limit_s
            waited = now_s - record.started_s
            return f"did not join within {limit:.0f} s" if waited > limit else None
        if not record.queue:
            return None
        limit = self._limit_s(record, record.queue[0])
        if now_s - record.head_since_s <= limit:
            return None
        return f"hangs: {record.queue[0]} has taken more than {limit:.0f} s"

    def _limit_s(self, record: WorkerRecord, unit: Unit) -> float:
        """How long a unit may take before its worker counts as hanging."""
        kind, longer = pace = self._pace(unit)
        known: Iterable[float] = self._elapsed_s.get(pace, ())
        if kind == "encode":  # another may have its encoders loaded, or on its device
            known = [record.encode_s] if record.encode_s else []
        if known:
            return max(self.policy.hang_floor_s, self.policy.hang_factor * median(known))
        usual = self._elapsed_s.get((kind, 1.0), ()) if longer > 1 else ()
        guess_s = median(usual) * longer**2 if usual else 0.0  # attention grows so, the rest less
        return max(self.policy.first_unit_limit_s * longer, self.policy.hang_factor * guess_s)

    def _pace(self, unit: Unit) -> tuple[str, float]:
        """Units that are alike in this take about as long."""
        return unit.kind, max(1.0, self.plan.length(unit))

    # -- what they do

    def encoders(self, avoid: Container[str]) -> set[str]:
        """The joined workers but for ``avoid`` whose device holds the encoders beside the denoiser;
        all of them if none does."""
        there = {each.worker: each.profile for each in self.joined() if each.worker not in avoid}
        roomy = {
            name
            for name, profile in there.items()
            if profile is not None
            and fits(profile.free_bytes + profile.model_bytes, self.plan.encoding_bytes)
        }
        return roomy or set(there)

    def joined(self) -> list[WorkerRecord]:
        return [record for record in self.workers.values() if record.profile is not None]

    def sent(self, record: WorkerRecord, unit: Unit, now_s: float) -> None:
        if not record.queue:
            record.head_since_s = now_s
        record.queue.append(unit)
        self._place(record)

    def returned(self, record: WorkerRecord, unit: Unit, now_s: float) -> None:
        """A sent unit came back, finished or failed."""
        if record.queue[0] == unit:
            record.head_since_s = now_s
        record.queue.remove(unit)
        self._place(record)

    def finished(self, record: WorkerRecord, unit: Unit, elapsed_s: float) -> None:
        if record.units == 0:
            self._useless_starts = 0
        record.units += 1
        if unit.kind == "encode":
            record.encode_s = max(record.encode_s, elapsed_s)
        if unit.kind == "step" and not self.plan.is_last_step(unit):
            record.steps += 1
            if self.plan.length(unit) <= 1:
                record.usual_steps += 1
                record.usual_steps_s += elapsed_s
        record.faults = self._barren_losses = 0
        self._place(record)
        self._elapsed_s.setdefault(self._pace(unit), deque(maxlen=101)).append(elapsed_s)

    def _places(self, record: WorkerRecord) -> int:
        """How many units may be with a worker: one, until it has finished its first."""
        return self.policy.depth if record.units else 1

    def all_seats(self, claims: Mapping[str, int]) -> dict[str, Seat]:
        """Every joined worker's seat, free or not; ``claims`` units more wait for it."""
        return {
            record.worker: Seat(
                worker=record.worker,
                queued=len(record.queue) + claims.get(record.worker, 0),
                step_s=record.step_s,
            )
            for record in self.joined()
        }

    def _place(self, record: WorkerRecord) -> None:
        """Note a worker's seat as it is now."""
        name, queued = record.worker, len(record.queue)
        if queued < self._places(record):
            self.seats[name] = Seat(worker=name, queued=queued, step_s=record.step_s)
        else:
            self.seats.pop(name, None)

    def validate(self) -> None:
        """Check what must always be true; for tests and the simulator."""
        for worker in self.workers.values():
            free = worker.profile is not None and len(worker.queue) < self._places(worker)
            assert len(worker.queue) <= self.policy.depth, worker
            assert free == (worker.worker in self.seats), worker
        assert self.seats.keys() <= self.workers.keys()
