"""Plans of every shape for the scheduler's tests, without a model."""

from __future__ import annotations

import random

from jobs.accelerations import Accelerations
from jobs.geometry import ModelGeometry
from jobs.units import ShotRender, Unit
from orchestrator.plan import Plan, ShotPlan, lay_shot
from orchestrator.roster import Policy
from orchestrator.simcluster import Faults
from orchestrator.simulator import SimReport, Simulation, UnitCost, even_cost

GEOMETRY = ModelGeometry(
    family="wan",
    latent_channels=4,
    spatial_scale=8,
    temporal_scale=4,
    size_multiple=16,
    window_latent_frames=6,
    overlap_latent_frames=2,
    decode_context_latent_frames=3,
    experts=1,
    text_tokens=16,
    text_dim=8,
)


def make_shot(
    latent_frames: int,
    *,
    window: int,
    overlap: int,
    stage_steps: tuple[int, ...],
    first_pixel_frame: int = 0,
    whole_first_stage: bool = False,
) -> ShotPlan:
    render = ShotRender(
        prompt="a boat on a lake",
        negative_prompt="",
        seed=7,
        guidance=(1.0,),
        stage_steps=stage_steps,
        stage_positions=False,
        scheduler="auto",
        flow_shift=None,
        text_tokens=16,
        latent_frames=latent_frames,
        latent_height=8,
        latent_width=8,
        pixel_frames=GEOMETRY.pixel_frames(latent_frames),
        fps=16,
    )
    return lay_shot(
        render, window=window, overlap=overlap, first_pixel_frame=first_pixel_frame,
        whole_first_stage=whole_first_stage,
    )  # fmt: skip


def make_plan(
    *latent_frames: int,
    window: int = 6,
    overlap: int = 2,
    steps: int = 4,
    stage_steps: tuple[int, ...] = (),
    checkpoint_every: int = 2,
    decode_context: int = 3,
    tile_bytes: int = 0,
    numerics: str = "any",
    whole_first_stage: bool = False,
) -> Plan:
    """A film of one shot per number of latent frames; ``stage_steps`` make it a pyramid."""
    shots: list[ShotPlan] = []
    first = 0
    for count in latent_frames or (6,):
        shot = make_shot(
            count,
            window=window,
            overlap=overlap,
            stage_steps=stage_steps or (steps,),
            first_pixel_frame=first,
            whole_first_stage=whole_first_stage,
        )
        shots.append(shot)
        first += shot.render.pixel_frames
    return Plan(
        model="demo",
        model_identity="0" * 64,
        geometry=GEOMETRY,
        dtype="float32",
        preset="exact",
        accelerations=Accelerations(),
        threads=1,
        numerics=numerics,
        checkpoint_every=checkpoint_every,
        codec="h264",
        quality=20,
        fps=16,
        width_px=64,
        height_px=64,
        shots=tuple(shots),
        tile_bytes=tile_bytes,
        model_bytes=0,
        decode_context=decode_context,
    )


def cost_by_length(plan: Plan, power: float = 1.0) -> UnitCost:
    """A step takes longer in a longer window; with attention alone, power 2."""
    return lambda unit: even_cost(unit) * max(1.0, plan.length(unit)) ** power


def frames_for(windows: int, *, window: int = 6, overlap: int = 2) -> int:
    """The most latent frames that this many windows cover."""
    return window + (windows - 1) * (window - overlap)


FAULTS = (
    "worker_dies", "worker_hangs", "unit_fails", "cluster_fails", "worker_lies", "object_lost",
    "node_lost", "write_dies", "result_damaged", "film_damaged", "cluster_lost", "interrupted",
    "start_fails",
)  # fmt: skip

#: These may end a render by a named failure; the others never may.
FATAL = {"worker_dies", "worker_hangs", "unit_fails", "node_lost", "start_fails"}


#: Faults that are worse together: late reports of workers that were given up, losses while
#: their outputs are written, pieces that fail and whose predecessors are lost.
THEMES = (
    {"worker_hangs": 0.05, "worker_lies": 0.3},
    {"unit_fails": 0.2, "worker_lies": 0.3},
    {"worker_dies": 0.1, "worker_lies": 0.1, "late_s": 1.5},
    {"node_lost": 0.05, "write_dies": 0.3},
    {"object_lost": 0.2, "write_dies": 0.3, "unit_fails": 0.1},
    {"cluster_lost": 0.02, "write_dies": 0.2, "object_lost": 0.05},
    {"film_damaged": 0.05, "object_lost": 0.05},
    {"interrupted": 0.02, "result_damaged": 0.05, "node_lost": 0.02},
)


def random_plan(rng: random.Random, *, small: bool = False) -> Plan:
    """One to three shots of 1 to 14 windows; up to four windows cover a place. Two pyramids
    of five have a whole first stage."""
    window = rng.randint(2, 8)
    overlap = rng.randint(0, window - 1)
    most = 5 if small else 14
    counts = [rng.randint(1, most) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    stage_steps = _random_stages(rng, 6 if small else 12)
    checkpoint_every, decode_context = rng.randint(1, 5), rng.randint(0, 9)
    latent_frames = [
        max(1, frames_for(n, window=window, overlap=overlap) - rng.randint(0, 1)) for n in counts
    ]
    return make_plan(
        *latent_frames,
        window=window,
        overlap=overlap,
        stage_steps=stage_steps,
        checkpoint_every=checkpoint_every,
        decode_context=decode_context,
        whole_first_stage=len(stage_steps) > 1 and sum(latent_frames) % 5 in (1, 2),  # not drawn
    )


def _random_stages(rng: random.Random, most_steps: int) -> tuple[int, ...]:
    """The steps of one stage or, in every third plan, of two to four."""
    stages = rng.choice((1, 1, 1, 1, 2, 3, 4))
    return tuple(rng.randint(1, max(1, most_steps // stages)) for _ in range(stages))


def random_faults(rng: random.Random, seed: int, plan: Plan) -> Faults:
    """A few kinds of faults at a time, from rare to frequent."""
    keeps = {"remembers": seed % 7 in (2, 5), "stays": seed % 7 == 5}  # not drawn
    if rng.random() < 0.4:
        slow, theme = rng.choice((0.0, 0.3)), rng.choice(THEMES)
        return Faults(seed=seed + 1, slow=slow, **keeps, **theme)
    kinds = rng.sample(FAULTS, rng.randint(0, 4))
    chances = {kind: rng.choice((0.005, 0.02, 0.08)) for kind in kinds}
    for kind in {"cluster_lost", "interrupted"} & chances.keys():
        chances[kind] = min(0.01, chances[kind])  # each costs all steps since the last line
    if rng.random() < 0.3:
        chances["late_s"] = rng.choice((0.1, 1.5))
    poison: Unit | None = None
    if rng.random() < 0.03:
        poison = rng.choice(list(plan.units()))
    slow = rng.choice((0.0, 0.0, 0.3))
    return Faults(seed=seed + 1, slow=slow, poison=poison, **keeps, **chances)


def random_policy(rng: random.Random) -> Policy:
    return Policy(workers=rng.randint(1, 8), depth=rng.choice((1, 2, 2, 3)))


def random_speeds(rng: random.Random) -> tuple[float, ...]:
    return tuple(rng.choice((0.25, 0.5, 1.0, 1.0, 2.0)) for _ in range(rng.randint(1, 4)))


def crowded_run(seed: int) -> SimReport:
    """Windows that overlap several others, on a cluster that loses outputs while it writes them."""
    plan = make_plan(
        frames_for(9, window=8, overlap=6), window=8, overlap=6, steps=7, checkpoint_every=1
    )
    faults = Faults(seed=seed, object_lost=0.1, write_dies=0.6)
    policy = Policy(workers=4, max_cluster_failures=99, max_write_failures=999)
    return Simulation(plan, policy, faults).run()
