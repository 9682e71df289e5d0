"""What accelerations did in a render, as the journal has it: proof that they engaged. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from jobs.accelerations import Accelerations
from jobs.units import Unit


def engagement(unit: Unit, counts: Mapping[str, int]) -> dict[str, Any]:
    """The journal's record of a step of a tile. Computed again, it takes the place of the first."""
    place = {"shot": unit.shot, "stage": unit.stage, "index": unit.index, "step": unit.step}
    return {"type": "engaged", "key": str(unit), "counts": dict(counts)} | place


def engaged(records: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """What was counted in a job, over all its units."""
    last = {record["key"]: record["counts"] for record in records if record["type"] == "engaged"}
    return sum((Counter(counts) for counts in last.values()), Counter())


def tile_steps(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What every tile did at each of its steps, by shot, stage and window: ``x`` ran the model in
    full, ``r`` reused features, ``.`` skipped it; a blank says nothing is known."""
    tiles: dict[tuple[int, int, int], dict[int, str]] = {}
    for record in records:
        if record["type"] == "engaged":
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
    return "r" if counts.get("rehash.reused") else "x"


def engaged_lines(asked: Accelerations, counts: Mapping[str, int]) -> list[str]:
    """A line for each acceleration that was asked for; a warning where it did nothing."""
    if not counts:  # nothing was left to compute
        return []
    lines = []
    if asked.adaptive is not None:
        skipped, called = counts.get("adaptive.skipped", 0), counts.get("adaptive.computed", 0)
        said = f"adaptive: skipped the model in {skipped} of {skipped + called} steps of tiles"
        lines.append(said if skipped else f"warning: {said}; a higher threshold skips more")
    if asked.rehash is not None:
        reused, keys = counts.get("rehash.reused", 0), counts.get("rehash.key", 0)
        said = f"rehash: reused features in {reused} of {reused + keys} passes of the model"
        lines.append(said if reused else f"warning: {said}; give it fewer key steps")
    if asked.slicing is not None:
        cut = counts.get("slicing", 0)
        said = f"slicing: ran {cut} groups of operators in slices"
        lines.append(said if cut else f"warning: {said}; the model is too small for it")
    if asked.fast_attention is not None:
        kinds = {"windowed": "window", "shared over steps": "share_steps"}
        kinds["shared over branches"] = "share_branches"
        done = {said: counts.get(f"fast_attention.{name}", 0) for said, name in kinds.items()}
        said = ", ".join(f"{count} {name}" for name, count in done.items())
        said = f"fast_attention: of {counts.get('fast_attention.layers', 0)} calls of layers {said}"
        more = "; longtake calibrate with a larger --delta changes more"
        lines.append(said if any(done.values()) else f"warning: {said}{more}")
    return lines
