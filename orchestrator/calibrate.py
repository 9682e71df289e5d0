"""``longtake calibrate``: finds a model's plans of attention, or its profile for rehash, and keeps
them where jobs look."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jobs.accelerations import Rehash, Slicing
from jobs.attention_plan import STRATEGIES, AttentionPlan, strategy_shares
from jobs.calibration import usual_folder
from jobs.errors import BadJob, CannotRunHere
from jobs.rehash_profile import Similarity, key_steps
from jobs.spec import resolve
from jobs.units import ShotRender
from orchestrator.placement import fits
from orchestrator.plan import ShotPlan
from orchestrator.prepare import Prepared, prepare
from orchestrator.progress import clock
from orchestrator.room import check_room, told_to_make_it_smaller
from orchestrator.sizes import gb
from orchestrator.tile_memory import searched_bytes
from workers.parts import whole_or_absent


def calibrate(
    prepared: Prepared, device: str, delta: float, folder: Path, say: Callable[[str], None]
) -> tuple[dict[str, Any], list[AttentionPlan]]:
    """Search a plan for each stage on the shots of a job. What is found is kept step by step: the
    same call goes on after an interruption. Raises BadJob."""
    given = _given(prepared, "fast_attention", device, say)
    _check_searched(prepared, given)
    from workers.calibration import find_plans

    stage_steps = given.shots[0].stage_steps
    pace = _Pace(sum(stage_steps), first=1, say=say)  # a first step has nothing to choose

    def told(stage: int, at: Any) -> None:
        where = _stage(stage, len(stage_steps)) + f"step {at.step + 1} of {at.steps}"
        before, layer = sum(stage_steps[:stage]) + at.step - 1, at.layer + 1
        pace.begin(before + 1, where)
        left = pace.left(before + layer / at.layers)
        if layer == at.layers:
            pace.tell(f"{where}: loss {at.loss:.4f}{left}")
        elif pace.silent:
            pace.tell(f"{where}, layer {layer} of {at.layers}{left}")

    with told_to_make_it_smaller("the calibration", given.device):
        found = find_plans(
            given.family, prepared.plan.model_identity, given.shots, delta=delta, folder=folder,
            window_latent_frames=given.window_latent_frames, slicing=given.slicing, progress=told,
        )  # fmt: skip
    plans = [each.plan for each in found]
    report = {"folder": str(folder), "layers": plans[0].layers} | _holds_for(prepared)
    stages = [
        {
            "steps": each.plan.steps,
            "window": each.plan.window,
            "tokens": each.tokens,
            "attention": each.share_left,
            "shares": strategy_shares(each.plan.rows),
        }
        for each in found
    ]
    return report | {"stages": stages}, plans


def find_key_steps(
    prepared: Prepared,
    device: str,
    threshold: float,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda said: None,
) -> tuple[dict[str, Any], list[Similarity]]:
    """Make a profile for Step Rehash of each stage on the shots of a job, and keep it in
    ``folder``; tell the key steps that ``threshold`` then chooses. What a shot has shown in a stage
    is kept: the same call goes on after an interruption. Raises BadJob."""
    given, folder = _given(prepared, "rehash", device, say), folder or usual_folder()
    _check_profiled(prepared, given)
    from workers.profiling import find_profiles

    stage_steps = given.shots[0].stage_steps

    shots = len(given.shots)
    pace = _Pace(sum(stage_steps) * shots, first=0, say=say)

    def told(stage: int, shot: int, step: int) -> None:
        where = _stage(stage, len(stage_steps)) + (f"shot {shot + 1} of {shots}, " * (shots > 1))
        where += f"step {step + 1} of {stage_steps[stage]}"
        number = sum(stage_steps[:stage]) * shots + shot * stage_steps[stage] + step
        pace.begin(number, where)
        pace.tell(where + pace.left(number))

    with told_to_make_it_smaller("the calibration", given.device):
        found = find_profiles(
            given.family, prepared.plan.model_identity, given.shots, folder=folder,
            window_latent_frames=given.window_latent_frames, slicing=given.slicing, progress=told,
        )  # fmt: skip
    keys = [list(key_steps(similarity, threshold)) for similarity in found]
    report = {"folder": str(folder), "threshold": threshold} | _holds_for(prepared)
    return report | {"key_steps": keys}, found


def _holds_for(prepared: Prepared) -> dict[str, Any]:
    """What a job has to have in common with the one that was calibrated on."""
    plan = prepared.plan
    return {"size": [plan.width_px, plan.height_px], "steps": plan.shots[0].render.steps}


#: After so long without a word a person wonders.
_SILENCE_S = 30.0


class _Pace:
    """How long the rest of a calibration's steps takes, by those that were done in this run."""

    def __init__(self, steps: int, *, first: int, say: Callable[[str], None]) -> None:
        """``first``: the number of the first step, of so many, that is told of a fresh run."""
        self._steps, self._first, self._say = steps, first, say
        self._began = False
        self._done: tuple[float, float] | None = None  # what was done first, in steps, and when
        self._said_s = time.monotonic()

    def begin(self, number: int, where: str) -> None:
        """The step ``number``, from 0, is under way: said if it goes on from an earlier run."""
        if not self._began and number > self._first:
            self.tell(f"going on from {where}")
        self._began = True

    def left(self, number: float) -> str:
        """Of when the step ``number`` is done, or a part of it; "" where not known yet."""
        now_s = time.monotonic()
        if self._done is None:
            self._done = number, now_s
            return ""
        first, began_s = self._done
        left_s = (now_s - began_s) / (number - first) * (self._steps - 1 - number)
        return f"; about {clock(left_s)} left" if left_s > 0 else ""

    @property
    def silent(self) -> bool:
        """Whether nothing has been told for long."""
        return time.monotonic() - self._said_s > _SILENCE_S

    def tell(self, said: str) -> None:
        self._say(said)
        self._said_s = time.monotonic()


#: What can be found for a model that takes an acceleration, and by which command.
FOUND = {
    "fast_attention": "plans of attention, without --rehash",
    "rehash": "key steps, with --rehash 0.995 (a UNet: 0.99)",
}


@dataclass(frozen=True)
class _Given:
    """What is calibrated on."""

    family: Any
    shots: list[ShotRender]
    window_latent_frames: int
    slicing: Slicing | None
    device: str


def _given(prepared: Prepared, technique: str, device: str, say: Callable[[str], None]) -> _Given:
    """The job's longest shots: what is found holds for shorter windows, too. Of those the ones that
    the first has a calibration in common with, which is the one that planning looks for. Raises
    BadJob, CannotRunHere."""
    from workers.quiet import quiet_libraries

    quiet_libraries()  # first: all else of ``workers`` here imports the models
    from workers.calibration import shot_keys
    from workers.devices import device_of
    from workers.encoding import is_moved, place_encoders
    from workers.families import open_family
    from workers.machine import choose_kernels

    choose_kernels()
    plan, known = prepared.plan, prepared.model.family
    if technique not in known.accelerations:
        found = " or ".join(FOUND[name] for name in FOUND if name in known.accelerations)
        raise BadJob(
            f"{known.name} models do not take {technique} yet. For them can be found: "
            f"{found or 'nothing'}"
        )
    device = device_of(device)
    check_room(plan, device, "a calibration")
    window = max(shot.stages[-1].windows[0].stop for shot in plan.shots)
    longest = max(_window_lengths(shot) for shot in plan.shots)
    family = open_family(
        known.name, str(prepared.model.folder), plan.dtype, device,
        [(lora.path, lora.scale) for lora in plan.loras],
    )  # fmt: skip
    place_encoders(family, plan.encoding_bytes)
    if is_moved(family):
        say(f"{device} has no room for the model's encoders: they are on the processor")
    # What is found on a first window's noise holds for any.
    shots = [
        replace(shot.render, repeated_noise=None)
        for shot in plan.shots
        if _window_lengths(shot) == longest
    ]
    keys = [shot_keys(family, plan.model_identity, shot, window) for shot in shots]
    alike = [shot for shot, key in zip(shots, keys, strict=True) if key == keys[0]]
    return _Given(family, alike, window, plan.accelerations.slicing, device)


def _check_profiled(prepared: Prepared, given: _Given) -> None:
    """A profile holds what rehash keeps of every step at once. Raises CannotRunHere."""
    asked = prepared.spec.accelerations.model_copy(update={"rehash": Rehash(every=2)})
    try:
        kept = prepare(prepared.spec.model_copy(update={"accelerations": asked})).plan.kept_bytes
    except BadJob:  # the steps are so few that nothing would be reused
        return
    steps = max(prepared.plan.shots[0].render.stage_steps)
    what = f"a profile holds the features of {steps} steps at once"
    _check_host_memory(what, steps * kept, prepared, given)


def _check_searched(prepared: Prepared, given: _Given) -> None:
    """A search holds what every layer has made of each shot, and of one of them what it makes
    anew. Raises CannotRunHere."""
    model, dtype, shots = prepared.model, prepared.plan.dtype, len(given.shots)
    job = resolve(prepared.spec, model.geometry, model.defaults)
    needed = (shots + 1) * searched_bytes(job, model, dtype)
    fewer = "calibrate on fewer shots, " if shots > 1 else ""
    of = "a shot" if shots == 1 else f"{shots} shots"
    what = f"a search holds what all layers made of {of}"
    _check_host_memory(what, needed, prepared, given, fewer)


def _check_host_memory(
    what: str, held_bytes: int, prepared: Prepared, given: _Given, fix: str = ""
) -> None:
    """Beside the model, where that is to be in the host's memory, too: it is not loaded yet."""
    from workers.machine import free_bytes

    on_card = given.device.startswith("cuda")
    free, beside = free_bytes("cpu"), 0 if on_card else prepared.plan.peak_bytes
    if not fits(free, held_bytes + beside):
        model = f" beside {gb(beside)} of the model's" if beside else ""
        raise CannotRunHere(
            f"{what}, about {gb(held_bytes)} of this machine's memory{model}, which has {gb(free)} "
            f"free; {fix}make the film smaller (--size, or window_latent_frames in a job file), or "
            "calibrate where there is more memory"
        )


def _window_lengths(shot: ShotPlan) -> list[int]:
    """In frames of each stage."""
    return [stage.windows[0].latent_frames for stage in shot.stages]


def _stage(stage: int, stages: int) -> str:
    return f"stage {stage + 1} of {stages}, " if stages > 1 else ""


def draw(plans: Sequence[AttentionPlan], out: Path) -> None:
    """A picture of the plans: layers over steps, one after the other."""
    layers, rows = plans[0].layers, [row for plan in plans for row in plan.rows]
    figure = Figure(figsize=(9, 1.5 + 0.18 * layers), layout="constrained")
    axes = figure.subplots()
    cells = [[STRATEGIES.index(row[layer]) for row in rows] for layer in range(layers)]
    colours = ListedColormap(["#fff", "#9ecae1", "#3182bd", "#bbb", "#333"])
    mesh = axes.pcolormesh(cells, cmap=colours, vmin=-0.5, vmax=4.5, edgecolors="#ddd", lw=0.3)
    for border in itertools.accumulate(plan.steps for plan in plans[:-1]):
        axes.axvline(border, color="#d62728", lw=2)
    bar = figure.colorbar(mesh, ticks=range(len(STRATEGIES)))
    bar.ax.set_yticklabels(STRATEGIES)
    axes.set(xlabel="step, of all stages" if len(plans) > 1 else "step", ylabel="layer")
    axes.invert_yaxis()
    _save(figure, out)


def similarity_figure(found: Sequence[Similarity], keys: Sequence[Sequence[int]]) -> Figure:
    """How alike the steps of each stage are, dark where they are not, with a ring around each key
    step on the diagonal; to its right lie the steps that its features stand in for."""
    figure = Figure(figsize=(1 + 4.2 * len(found), 4.2), layout="constrained")
    columns = figure.subplots(1, len(found), squeeze=False)[0]
    least = min(float(each.min()) for each in found)
    for stage, (axes, similarity, marked) in enumerate(zip(columns, found, keys, strict=True)):
        image = axes.imshow(similarity, cmap="viridis", vmin=least, vmax=1)
        axes.plot(marked, marked, "o", markerfacecolor="none", color="tab:red", label="key steps")
        axes.set(xlabel="step", ylabel="step", title=_stage(stage, len(found)).rstrip(", "))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    columns[0].legend(loc="lower left")
    figure.colorbar(image, ax=columns, label="cosine similarity")
    return figure


def draw_similarity(found: Sequence[Similarity], keys: Sequence[Sequence[int]], out: Path) -> None:
    """That as a picture. Raises BadJob where it cannot be written."""
    _save(similarity_figure(found, keys), out)


def _save(figure: Figure, out: Path) -> None:
    with whole_or_absent(out.expanduser(), "--picture") as part:
        figure.savefig(part, format="png", dpi=110)


#: Of a real model, and far above those of the small ones, on which a plan saves little of a render
#: at high fidelity (``docs/figures.md``).
_MANY_TOKENS = 4096


def as_text(report: dict[str, Any]) -> str:
    usual = Path(report["folder"]) == usual_folder()
    width, height = report["size"]
    holds = f"in a job file with size: {width}x{height} and steps: {report['steps']}"
    if "key_steps" in report:
        where = "" if usual else f", profiles: {report['folder']}"
        count = sum(map(len, report["key_steps"]))
        use = f"accelerations: {{rehash: {{threshold: {report['threshold']}{where}}}}}"
        said = f"a profile in {report['folder']}: {count} key steps of {report['steps']}"
        if count == report["steps"]:
            return (
                f"{said}: at {report['threshold']} there is nothing to reuse; try a lower --rehash "
                "or more steps (what was measured is kept)"
            )
        return f"{said}, {report['key_steps']}\nuse it: {use} {holds}"
    stages = report["stages"]
    lines = [f"plans of {report['layers']} layers in {report['folder']}"]
    for number, stage in enumerate(stages):
        frames, rows, columns = stage["window"]
        lines.append(
            f"{_stage(number, len(stages))}{stage['steps']} steps, windows of {frames} x {rows} x "
            f"{columns} tokens (frames, rows, columns)"
        )
        lines += [f"  {name}: {share:.0%}" for name, share in stage["shares"].items()]
        lines.append(
            f"  attention then multiplies {stage['attention']:.0%} of what it does in full"
        )
    if all(stage["shares"].get("full") == 1.0 for stage in stages):
        nothing = "nothing can be left out at this delta: try a larger --delta, or more steps"
        return "\n".join([*lines, nothing])
    if (most := max(stage["tokens"] for stage in stages)) < _MANY_TOKENS:
        lines.append(
            f"with {most} tokens attention is a small part of a step, and this may save no time: "
            "it is for the thousands that a real model's size and windows have"
        )
    where = "" if usual else f"plans: {report['folder']}"
    use = f"use it: accelerations: {{fast_attention: {{{where}}}}} {holds}"
    return "\n".join([*lines, use])
