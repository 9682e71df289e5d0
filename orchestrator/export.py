"""Files that a person asked for beside the film."""

from __future__ import annotations

from pathlib import Path

from jobs.arrays import decode_bundle
from jobs.errors import BadJob
from jobs.results import Results
from jobs.store import Store
from jobs.units import Unit
from orchestrator.plan import Plan
from orchestrator.recipes import Recipes


def check_file(path: Path | None, option: str, ending: str) -> None:
    """Raises BadJob for a path that could not be written after hours of work, or that another kind
    of file stands under."""
    if path is None:
        return
    if path.suffix != ending:
        raise BadJob(f"{option} {path}: the file's name must end in {ending}")
    if path.expanduser().is_dir():
        raise BadJob(f"{option} {path}: is a folder; give a file name")
    if not path.expanduser().absolute().parent.is_dir():
        raise BadJob(f"{option} {path}: the folder does not exist; create it first")


def save_latents(store: Store, plan: Plan, job: str, path: Path) -> None:
    """Write the finished latents of every shot as ``shot_000``...: [1, C, T, H, W]. A file that
    stands under that name is kept under another: it may be an adapter."""
    from safetensors.torch import save

    from workers.bundles import to_tensor
    from workers.parts import keep_other, whole_or_absent
    from workers.tiles import assemble

    recipes, results = Recipes(plan, job), Results(store)
    tensors = {}
    for number, shot in enumerate(plan.shots):
        stage = shot.stages[-1]
        parts = []
        for window in stage.windows:
            last = Unit("step", number, len(shot.stages) - 1, window.index, 0, stage.steps)
            bundle = decode_bundle(results.read(recipes.key(last)))
            parts.append((window.start, to_tensor(bundle, "latents")))
        owned = [stage.owned(window.index) for window in stage.windows]
        tensors[f"shot_{number:03}"] = assemble(parts, owned).contiguous()
    with whole_or_absent(path.expanduser(), "--save-latents") as part:
        part.write_bytes(save(tensors))
        keep_other(path.expanduser())
