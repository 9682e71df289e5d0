"""``longtake calibrate``: finds a model's plan of attention and keeps it where jobs look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.attention_plan import STRATEGIES, AttentionPlan, usual_folder
from jobs.errors import BadJob
from jobs.units import ShotRender
from orchestrator.prepare import Prepared
from workers.parts import whole_or_absent


def calibrate(
    prepared: Prepared, device: str, delta: float, folder: Path, say: Callable[[str], None]
) -> tuple[dict[str, Any], AttentionPlan]:
    """Search a plan on the shots of a job, each shortened to one window. What is found is kept
    step by step: the same call goes on after an interruption. Raises BadJob."""
    from workers.calibration import find_plan

    family, shots = _opened(prepared, "fast_attention", device)
    found, _ = find_plan(
        family, prepared.plan.model_identity, shots, delta=delta, folder=folder,
        progress=lambda at: say(_progress(at)) if at.layer == at.layers - 1 else None,
    )  # fmt: skip
    report = {"folder": str(folder), "steps": found.steps, "layers": found.layers}
    return report | _shares(found), found


def find_key_steps(prepared: Prepared, device: str, threshold: float) -> dict[str, Any]:
    """Key steps for Step Rehash, from the shots of a job, each shortened to one window: the
    greedy choice with ``threshold`` on the similarity of their features. Raises BadJob."""
    from workers.calibration import key_steps, step_similarity

    family, shots = _opened(prepared, "rehash", device)
    keys = key_steps(step_similarity(family, shots), threshold)
    return {"steps": shots[0].steps, "key_steps": [list(keys)]}


def _opened(prepared: Prepared, technique: str, device: str) -> tuple[Any, list[ShotRender]]:
    from workers.families import open_family

    plan, known = prepared.plan, prepared.model.family
    if technique not in known.accelerations:
        raise BadJob(f"{known.name} models do not take {technique} yet: there is nothing to find")
    if len(plan.shots[0].stages) > 1:
        raise BadJob("calibration is for renders without a pyramid yet; say pyramid: off")
    family = open_family(
        known.name, str(prepared.model.folder), plan.dtype, device,
        [(lora.path, lora.scale) for lora in plan.loras],
    )  # fmt: skip
    return family, [_one_window(s.render, s.stages[0].windows[0].stop) for s in plan.shots]


def _progress(at: Any) -> str:
    return f"step {at.step + 1} of {at.steps}: loss {at.loss:.4f}"


def _one_window(shot: ShotRender, latent_frames: int) -> ShotRender:
    return replace(shot, latent_frames=latent_frames)


def _shares(plan: AttentionPlan) -> dict[str, Any]:
    """How much of all layers and steps each strategy has."""
    rows = [strategy for row in plan.rows for strategy in row]
    return {"shares": {name: rows.count(name) / len(rows) for name in STRATEGIES}}


def draw(plan: AttentionPlan, out: Path) -> None:
    """A picture of the plan: layers over steps."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.5 + 0.18 * plan.layers), layout="constrained")
    axes = figure.subplots()
    cells = [[STRATEGIES.index(row[layer]) for row in plan.rows] for layer in range(plan.layers)]
    colours = ListedColormap(["#fff", "#9ecae1", "#3182bd", "#bbb", "#333"])
    mesh = axes.pcolormesh(cells, cmap=colours, vmin=-0.5, vmax=4.5, edgecolors="#ddd", lw=0.3)
    bar = figure.colorbar(mesh, ticks=range(len(STRATEGIES)))
    bar.ax.set_yticklabels(STRATEGIES)
    axes.set(xlabel="step", ylabel="layer")
    axes.invert_yaxis()
    with whole_or_absent(out, "--picture") as part:
        figure.savefig(part, format="png", dpi=110)


def as_text(report: dict[str, Any]) -> str:
    if "key_steps" in report:
        use = f"accelerations: {{rehash: {{key_steps: {report['key_steps']}}}}}"
        return f"{len(report['key_steps'][0])} key steps of {report['steps']}; use them: {use}"
    lines = [f"a plan of {report['steps']} steps and {report['layers']} layers: {report['folder']}"]
    lines += [f"  {name}: {share:.0%}" for name, share in report["shares"].items()]
    where = "" if Path(report["folder"]) == usual_folder() else f"plans: {report['folder']}"
    use = f"use it: accelerations: {{fast_attention: {{{where}}}}} in a job file"
    return "\n".join([*lines, use])
