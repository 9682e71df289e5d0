"""What accelerations did in a render, as the journal has it: proof that they engaged. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jobs.accelerations import Accelerations, Adaptive, FastAttention, Rehash, Slicing
from jobs.presets import PRESETS, chosen_by
from jobs.units import Unit
from orchestrator.plan import Plan


def is_told(unit: Unit, counts: Mapping[str, int], plan: Plan) -> bool:
    """Whether the journal of an accelerated job has a record of a unit: of whatever was counted,
    and of every step that predicts, for there nothing is an answer, too."""
    is_accelerated = plan.accelerations != Accelerations()  # else in slices, for want of memory
    return is_accelerated and (bool(counts) or _predicts(unit, plan))


def _predicts(unit: Unit, plan: Plan) -> bool:
    return unit.kind == "step" and not plan.is_last_step(unit)


def engagement(unit: Unit, counts: Mapping[str, int]) -> dict[str, Any]:
    """The journal's record of a unit: a step of a tile, or a decoded piece. Computed again, it
    takes the place of the first."""
    place = {"shot": unit.shot, "stage": unit.stage, "index": unit.index, "step": unit.step}
    record = {"type": "engaged", "key": str(unit), "kind": unit.kind, "counts": dict(counts)}
    return record | place


def deepened(unit: Unit, worker: str, slices: int, numerics: str, asked: Accelerations) -> str:
    """What a person is told, and finds later, of a worker that went on in more slices than the job
    ``asked`` for."""
    what = "decoded pieces" if unit.kind == "decode" else "computed steps"
    rounding = "the same but for rounding"
    if unit.kind == "step" and asked.adaptive is not None:
        rounding += ", which may change what adaptive skips"
    return (
        f"{worker} ran out of memory at {unit}, and {what} in {slices} slices from there on "
        f"(numerics class {numerics}): {rounding}. In a job file, accelerations: {{slicing: "
        f"{{slices: {slices}}}}} does so from the start"
    )


def moved(worker: str, numerics: str) -> str:
    """What a person is told, and finds later, of a worker whose encoders are not on its device."""
    return (
        f"{worker} has no room for the model's encoders on its device, and encoded on the "
        f"processor, which is slower (numerics class {numerics})"
    )


def engaged(records: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """What was counted in a job, over all its units. What was counted as nothing is there, too."""
    last = {record["key"]: record["counts"] for record in records if record["type"] == "engaged"}
    total = Counter[str]()
    for counts in last.values():
        total.update(counts)
    return total


def all_counted(records: Iterable[Mapping[str, Any]], plan: Plan) -> bool:
    """Whether every step of every tile that predicts is counted. A step is not that another job
    computed, or a session that was killed before its journal was written."""
    counted = {record["key"] for record in records if record["type"] == "engaged"}
    return all(str(unit) in counted for unit in plan.units() if _predicts(unit, plan))


#: What a tile did at a step. Layers may do both of ``w`` and ``s``: then what more of them did.
LETTERS = {
    " ": "not known",
    ".": "skipped the model",
    "r": "reused a key step's features",
    "s": "shared attention over steps or branches",
    "w": "windowed attention",
    "x": "ran the model in full",
}


def tile_steps(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What every tile did at each of its steps, by shot, stage and window, in a letter each:
    ``LETTERS`` has their meaning."""
    tiles: dict[tuple[int, int, int], dict[int, str]] = {}
    for record in records:
        if record["type"] == "engaged" and record.get("kind", "step") == "step":
            place = record["shot"], record["stage"], record["index"]
            tiles.setdefault(place, {})[record["step"]] = _letter(record["counts"])
    return [
        {
            "shot": shot,
            "stage": stage,
            "window": window,
            "steps": "".join(steps.get(step, " ") for step in range(max(steps) + 1)),
        }
        for (shot, stage, window), steps in sorted(tiles.items())
    ]


def _letter(counts: Mapping[str, int]) -> str:
    if counts.get("adaptive.skipped"):
        return "."
    if counts.get("rehash.reused"):
        return "r"
    windowed = counts.get("fast_attention.window", 0)
    shared = sum(counts.get(f"fast_attention.share_{what}", 0) for what in ("steps", "branches"))
    if not windowed + shared:
        return "x"
    return "w" if windowed > shared else "s"


def own_accelerations(plan: Plan) -> list[str]:
    """The accelerations that a job asks for itself, beside its preset."""
    chosen = chosen_by(plan.preset, plan.accelerations, plan.geometry.family)
    return [name for name, each in plan.accelerations if each is not None and name not in chosen]


@dataclass(frozen=True, slots=True)
class Proof:
    """What an acceleration that was asked for did in a render."""

    name: str
    said: str  # with counts
    engaged: bool | None  # None: not known, for not all of its steps are counted
    fix: str = ""  # what lets it do more, if the job itself chose it
    always: str = ""  # what keeps it from more, whoever chose it
    preset: str = ""  # that chose it; "" if the job itself did

    @property
    def asked(self) -> str:
        """It by name, after the preset that chose it."""
        return f"preset {self.preset}: {self.name}" if self.preset else self.name

    @property
    def why(self) -> str:
        """Why it did not do more, and what lets it."""
        said = "; ".join(filter(None, ["" if self.preset else self.fix, self.always]))
        return f"{self.said} ({said})" if said else self.said


def proofs(plan: Plan, counts: Mapping[str, int], *, complete: bool) -> list[Proof]:
    """One for each acceleration that was asked for. ``complete``: of ``all_counted`` steps; else
    one that did nothing in them may have done something in the others."""
    asked = plan.accelerations
    chosen = chosen_by(plan.preset, asked, plan.geometry.family)
    known = {name.partition(".")[0] for name in counts}
    given = {name: config for name in _PROOFS if (config := getattr(asked, name))}
    found = [
        _PROOFS[name](config, counts) if name in known else _unseen(name, complete=complete)
        for name, config in given.items()
    ]
    found = [replace(each, preset=plan.preset if each.name in chosen else "") for each in found]
    return found if complete else [_in_some_steps(proof) for proof in found]


def _unseen(name: str, *, complete: bool) -> Proof:
    """Of a technique that counted nothing at all, not even what it left as it was."""
    if complete:
        return Proof(name, "it was never called", False, "a fault of Longtake: please report it")
    return Proof(name, "no step was left to compute: other jobs had rendered them all", None)


def _in_some_steps(proof: Proof) -> Proof:
    if proof.engaged is not False:
        return proof
    said = f"{proof.said}; whether it did anything is not known, for other renders or a killed "
    return replace(proof, said=f"{said}session computed some steps", engaged=None)


def idle_message(found: Iterable[Proof]) -> str:
    """What is wrong if any of them did nothing; else empty."""
    idle = [proof for proof in found if proof.engaged is False]
    if not idle:
        return ""
    names = " and ".join(proof.asked for proof in idle)
    why = "; ".join(proof.why for proof in idle)
    own = " and ".join(proof.name for proof in idle if not proof.preset)
    fixes = [f"change the job's accelerations as said, or remove {own}"] if own else []
    fixes += [
        f"give more steps, or preset {_other_presets(each.preset)}" for each in idle if each.preset
    ]
    return f"{names} did nothing: {why}. The film is finished and stays where it is; " + "; ".join(
        dict.fromkeys(fixes)
    )


def _other_presets(preset: str) -> str:
    """The faster ones, and the one that does nothing."""
    names = list(PRESETS)
    return " or ".join([*names[names.index(preset) + 1 :], "exact"])


def proof_lines(found: Iterable[Proof]) -> list[str]:
    """What each did that did not do nothing."""
    return [f"{proof.name}: {proof.said}" for proof in found if proof.engaged is not False]


def _adaptive(config: Adaptive, counts: Mapping[str, int]) -> Proof:
    skipped, called = counts.get("adaptive.skipped", 0), counts.get("adaptive.computed", 0)
    said = f"skipped the model in {skipped} of {skipped + called} steps of tiles"
    always = f"its first {config.first} and last {config.last} steps always run"
    fix = f"a higher threshold than {config.threshold:g} skips more, so do more steps"
    return Proof("adaptive", said, skipped > 0, fix, always)


def _rehash(config: Rehash, counts: Mapping[str, int]) -> Proof:
    reused, keys = counts.get("rehash.reused", 0), counts.get("rehash.key", 0)
    said = f"reused features in {reused} of {reused + keys} passes of the model"
    return Proof("rehash", said, reused > 0, "give it fewer key steps")


def _slicing(config: Slicing, counts: Mapping[str, int]) -> Proof:
    cut, decoder = counts.get("slicing", 0), counts.get("slicing.decoder", 0)
    said = f"ran {cut} groups of operators in slices"
    said += f" and {decoder} of the decoder" if decoder else ""
    return Proof("slicing", said, cut + decoder > 0, "the model is too small for it")


def _fast_attention(config: FastAttention, counts: Mapping[str, int]) -> Proof:
    kinds = {"windowed": "window", "shared over steps": "share_steps"}
    kinds["shared over branches"] = "share_branches"
    done = {said: counts.get(f"fast_attention.{name}", 0) for said, name in kinds.items()}
    said = f"of {counts.get('fast_attention.layers', 0)} calls of layers "
    said += ", ".join(f"{count} {name}" for name, count in done.items())
    fix = "longtake calibrate with a larger --delta changes more"
    return Proof("fast_attention", said, any(done.values()), fix)


_PROOFS: dict[str, Callable[[Any, Mapping[str, int]], Proof]] = {
    "adaptive": _adaptive,
    "rehash": _rehash,
    "slicing": _slicing,
    "fast_attention": _fast_attention,
}
