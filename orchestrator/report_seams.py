"""What a report says of places where a film changes more than near by: borders that are known, and
frames that stand out.

Places are pixel frames of the film: the one right after a change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.errors import BadJob
from workers.contact_sheet import Row, no_larger, sheet_of
from workers.films import iter_frames
from workers.seams import PLAIN_SEAM, SeamMeter

#: How many borders are shown in pictures, and how wide these are at most.
SHOWN = 10
WIDTH_PX = 360


def meter_of(frames: Sequence[int], pixel_frames: int) -> SeamMeter:
    """For a film of one shot of which only the frames after its borders are known, if that."""
    known = set(frames)
    borders = [
        {"shot": 0, "window": number, "border": "given", "begins": 0, "frame": frame}
        for number, frame in enumerate(sorted(known), 1)
    ]
    return SeamMeter(borders, {(0, 0): [n for n in range(1, pixel_frames) if n not in known]})


def border_frames(seconds: Sequence[float], film: Path, fps: float, pixel_frames: int) -> list[int]:
    """The frames that begin at these seconds. Raises BadJob for one that is not inside the film."""
    last = pixel_frames - 1
    for second in seconds:
        if not 0.5 <= second * fps < last + 0.5:
            raise BadJob(
                f"--border {second:g} is not inside {film}; its frames meet from "
                f"{1 / fps:.2f} to {last / fps:.2f} s"
            )
    return sorted({round(second * fps) for second in seconds})


def changes(meter: SeamMeter, cuts: Sequence[int], fps: float) -> dict[str, Any]:
    """Every frame's change over the usual one near by; that at ``cuts`` between shots; and the
    other frames where it is plain to see: jumps and seams alike."""
    ratios = meter.changes()
    plain = [
        {"frame": frame, "second": frame / fps, "ratio": ratio}
        for frame, ratio in enumerate(ratios, 1)
        if ratio > PLAIN_SEAM
    ]
    return {
        "ratio_of": ratios,  # from the second frame on
        "cuts": [each for each in plain if each["frame"] in cuts],
        "outliers": [each for each in plain if each["frame"] not in cuts],
    }


def worst_borders(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The borders that show most, of all shots: worst first. Of a film that no job made, beside the
    given ones the frames that stand out."""
    seams = [seam for shot in report["shots"] for seam in shot["seams"]]
    rows = [seam | {"what": _what(seam)} for seam in seams]
    known = {row["frame"] for row in rows}
    outliers = report["changes"]["outliers"] if report["changes"] else []
    rows += [{**each, "what": "stands out"} for each in outliers if each["frame"] not in known]
    worst = sorted(rows, key=lambda row: (-row["ratio"], row["frame"]))[:SHOWN]
    kept = ("frame", "ratio", "what")
    return [{"second": r["frame"] / report["fps"]} | {k: r[k] for k in kept} for r in worst]


def _what(seam: dict[str, Any]) -> str:
    if seam["border"] == "given":
        return "border as given"
    stage = f"stage {seam['stage'] + 1} " if seam.get("stage") is not None else ""
    return f"shot {seam['shot'] + 1} {stage}window {seam['window'] + 1} {seam['border']}"


def border_pictures(film: Path, worst: Sequence[dict[str, Any]]) -> Image.Image | None:
    """Of each of these places the frame before and the one after, a row each; None if there is
    none, and nothing is decoded then."""
    if not worst:
        return None
    rows = [
        Row(f"{at['second']:.2f} s, frame {at['frame']}: {at['ratio']:.2f}", 2 * n, 2 * n + 2)
        for n, at in enumerate(worst)
    ]
    wanted = [frame for at in worst for frame in (at["frame"] - 1, at["frame"])]
    return sheet_of(_in_order(iter_frames(film), wanted), rows, columns=2)


def _in_order(frames: Iterable[np.ndarray], wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """The wanted frames in their order, no larger than a page shows them. None after is read."""
    asked = set(wanted)
    until_last = enumerate(islice(frames, max(asked) + 1))
    kept = {n: np.asarray(no_larger(frame, WIDTH_PX)) for n, frame in until_last if n in asked}
    return (kept[number] for number in wanted)
