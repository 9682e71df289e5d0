"""A report as one HTML page: what was measured, in pictures, with nothing to load beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL.Image import Image

from orchestrator.engagement import LETTERS
from orchestrator.report import MOST_ROWS, Pictures
from orchestrator.sizes import gb
from workers.parts import whole_or_absent
from workers.seams import PLAIN_SEAM

_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fafafa }
img { max-width: 100%; background: #fff } h2 { margin-top: 2.2rem }
table { border-collapse: collapse } td, th { padding: .15rem .8rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr:nth-child(odd) td { background: #f0f0f0 }
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ report.film }}: {{ "%.1f" | format(report.pixel_frames / report.fps) }} s,
{{ report.pixel_frames }} frames.</p>
{% if sheet and report.job and report.shots | length > most_rows %}
<p>Some of its {{ report.shots | length }} shots, evenly spread:</p>{% endif %}
{% if sheet %}<img src="{{ sheet }}" alt="frames of each shot">{% endif %}
{% if report.accelerations %}
<h2>Accelerations</h2>
<ul>{% for line in report.accelerations %}<li>{{ line }}</li>{% endfor %}</ul>
{% endif %}
{% if report.fidelity %}
<h2>Fidelity</h2>
<p>Against {{ report.fidelity.reference }}:
{% if report.fidelity.psnr_db is none %}every frame is equal.{% else %}
PSNR {{ "%.1f" | format(report.fidelity.psnr_db) }} dB, SSIM
{{ "%.3f" | format(report.fidelity.ssim) }}.{% endif %}</p>
<img src="{{ fidelity }}" alt="SSIM of each frame">
<table><tr><th>shot</th><th>PSNR</th><th>worst</th><th>frame</th><th>SSIM</th><th>worst</th>
<th>frame</th></tr>
{% for shot in report.shots %}{% set said = report.fidelity.shots[loop.index0] %}
<tr><td>{{ shot.prompt }}</td><td>{{ said.psnr_db | db }}</td><td>{{ said.worst_psnr_db | db }}</td>
<td>{{ said.worst_psnr_frame }}</td><td>{{ "%.3f" | format(said.ssim) }}</td>
<td>{{ "%.3f" | format(said.worst_ssim) }}</td><td>{{ said.worst_ssim_frame }}</td></tr>{% endfor %}
</table>
{% if worst %}<p>The worst frames of each shot, or of those that differ most: the film's, then the
reference's.</p>
<img src="{{ worst }}" alt="worst frames beside the reference">{% endif %}
{% endif %}
{% if report.seam_median is not none %}
<h2>Window borders</h2>
<p>The change across a border over the usual change near by: at 1 it is no more than where no
windows meet. Median {{ "%.2f" | format(report.seam_median) }}.{% if beats %} Of a pyramid's shot,
near by are places where a frame of the same stage begins; what shows at all of those is its beat,
below.{% endif %}</p>
<img src="{{ seams }}" alt="ratio of each border">
{% endif %}
{% if beats %}
<h2>Beat of the pyramid</h2>
<p>How much more a shot changes where frames of its first stage begin than where only those of its
last do; 1 is even.</p>
<table><tr><th>shot</th><th>beat</th></tr>
{% for shot in report.shots if shot.beat is not none %}<tr><td>{{ shot.prompt }}</td>
<td>{{ "%.2f" | format(shot.beat) }}</td></tr>{% endfor %}
</table>
{% endif %}
{% if report.changes %}
<h2>Changes</h2>
<p>Every frame's change over the usual one near by. {{ report.changes.outliers | length }} of
{{ report.pixel_frames }} frames stand out: jumps, borders of windows, or cuts between shots that
are alike.
{% if report.changes.cuts %}Where the change is far larger it is taken as a cut between shots, and
not counted: at {% for cut in report.changes.cuts %}{{ "%.2f" | format(cut.second) }}
{{- ", " if not loop.last }}{% endfor %} s. A shot is what lies between cuts.{% endif %}</p>
<img src="{{ changes }}" alt="ratio of each frame">
{% endif %}
{% if report.worst_borders %}
<h2>Worst borders</h2>
<table><tr><th>second</th><th>frame</th><th>ratio</th><th>what</th></tr>
{% for at in report.worst_borders %}<tr><td>{{ "%.2f" | format(at.second) }}</td>
<td>{{ at.frame }}</td><td>{{ "%.2f" | format(at.ratio) }}</td><td>{{ at.what }}</td></tr>
{% endfor %}</table>
<p>The frames before and after each.</p>
<img src="{{ borders }}" alt="frames before and after the worst borders">
{% endif %}
<h2>Colours</h2>
<p>Mean and spread of the {{ parts }}s in CIE Lab. A difference of 2 is just seen side by side.</p>
<img src="{{ colours }}" alt="colours of each {{ parts }}">
<p>From a shot's first {{ parts }} to its last{% if slopes %}, and of shots of a minute or more the
slope of the straight line through all{% endif %}.</p>
<table><tr><th>shot</th><th>L</th><th>a</th><th>b</th><th>distance</th>
{% if slopes %}<th>L / min</th><th>a / min</th><th>b / min</th>{% endif %}</tr>
{% for shot in report.shots %}<tr><td>{{ shot.prompt }}</td>
{% for axis in "Lab" %}<td>{{ "%+.2f" | format(shot.colours.mean_change[axis]) }}</td>
{% endfor %}<td>{{ "%.2f" | format(shot.colours.first_to_last) }}</td>
{% if slopes %}{% for axis in "Lab" %}<td>{% if shot.colours.mean_per_minute -%}
{{ "%+.2f" | format(shot.colours.mean_per_minute[axis].slope) }}{% endif %}</td>
{% endfor %}{% endif %}</tr>{% endfor %}</table>
{% if tiles %}
<h2>Steps</h2>
<p>Each row is a window of a shot's stage. Where layers shared attention and others windowed it, the
colour is that of what more of them did.</p>
<img src="{{ tiles }}" alt="what each window did at each step">
{% endif %}
{% if report.time.parts %}
<h2>Time</h2>
<table><tr><th>part</th><th>seconds</th></tr>
{% for part, seconds in report.time.parts.items() %}
<tr><td>{{ part }}</td><td>{{ "%.1f" | format(seconds) }}</td></tr>{% endfor %}</table>
<table><tr><th>worker</th><th>prompts</th><th>steps</th><th>decoding</th></tr>
{% for worker, kinds in report.time.workers.items() %}<tr><td>{{ worker }}</td>
{% for kind in ("encode", "step", "decode") %}<td>{{ "%.1f" | format(kinds.get(kind, 0)) }} s</td>
{% endfor %}</tr>{% endfor %}</table>
{% endif %}
{% if report.memory.workers %}
<h2>Memory</h2>
<p>Planned for each worker: {{ report.memory.planned.model_bytes | gb }} for weights,
{{ report.memory.planned.tile_bytes | gb }} for the window that it works on;
{% if report.memory.planned.encoding_bytes %}before that,
{{ report.memory.planned.encoding_bytes | gb }} for one that reads the prompts. {% endif %}On a GPU,
'held' counts only these. On a processor it counts all that the process took once it had
started, with what libraries need while they work: often more than was planned.</p>
<table><tr><th>worker</th><th>held at most</th><th>planned</th></tr>
{% for worker, peak in report.memory.workers.items() %}<tr><td>{{ worker }}</td>
<td>{{ peak | gb }}</td><td>{{ planned[worker] | gb }}</td></tr>{% endfor %}
</table>
{% endif %}
{% for said in report.memory.made_do %}<p>{{ said }}</p>{% endfor %}
</body></html>
"""


def write_page(report: dict[str, Any], pictures: Pictures, path: Path) -> None:
    """The page as a file, whole or absent. Raises BadJob if it cannot be written."""
    with whole_or_absent(path) as part:
        part.write_text(page(report, pictures), encoding="utf-8")


def page(report: dict[str, Any], pictures: Pictures) -> str:
    """The page; whatever a person wrote into prompts is text there, never markup."""
    environment = Environment(autoescape=True)
    environment.filters |= {"db": _db, "gb": gb}
    return environment.from_string(_PAGE).render(
        title=f"Report of {report['job'] or report['film']}",
        report=report,
        parts="window" if report["job"] else "second",
        beats=any(shot["beat"] is not None for shot in report["shots"]),
        slopes=any(shot["colours"]["mean_per_minute"] for shot in report["shots"]),
        sheet=_as_source(pictures.sheet),
        most_rows=MOST_ROWS,
        worst=_as_source(pictures.worst),
        borders=_as_source(pictures.borders),
        seams=_seam_chart(report) if report["seam_median"] is not None else None,
        changes=_changes_chart(report) if report["changes"] else None,
        colours=_colour_chart(report),
        fidelity=_fidelity_chart(report) if report["fidelity"] else None,
        tiles=_drawn(tiles_figure(report["tiles"])) if report["tiles"] else None,
        planned={
            worker: _planned(report, worker) for worker in report["memory"].get("workers", ())
        },
    )


def _planned(report: Mapping[str, Any], worker: str) -> int:
    """Bytes that a worker was to hold at most: encoders only where they were, and have encoded."""
    memory, did = report["memory"], report["time"]["workers"].get(worker, {})
    planned, elsewhere = memory["planned"], worker in memory["encoders_elsewhere"]
    rendering = planned["model_bytes"] + planned["tile_bytes"]
    held = "encode" in did and not elsewhere
    return int(max(rendering, planned["encoding_bytes"] if held else 0))


def _db(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"


def _seam_chart(report: dict[str, Any]) -> str:
    figure, axes = _figure("seconds", "ratio")
    for shot in report["shots"]:
        at_s = [seam["frame"] / report["fps"] for seam in shot["seams"]]
        axes.plot(at_s, [seam["ratio"] for seam in shot["seams"]], "o-", markersize=3, linewidth=1)
    axes.axhline(1.0, color="gray", linewidth=1)
    axes.axhline(PLAIN_SEAM, color="tab:red", linewidth=1, linestyle="--")
    return _drawn(figure)


def _changes_chart(report: dict[str, Any]) -> str:
    figure, axes = _figure("seconds", "ratio")
    ratios = report["changes"]["ratio_of"]
    axes.plot([n / report["fps"] for n in range(1, len(ratios) + 1)], ratios, linewidth=1)
    axes.axhline(PLAIN_SEAM, color="tab:red", linewidth=1, linestyle="--")
    return _drawn(figure)


def _colour_chart(report: dict[str, Any]) -> str:
    figure, axes = _figure("seconds", "Lab")
    for number, (axis, colour) in enumerate(
        zip("Lab", ("black", "tab:red", "tab:blue"), strict=True)
    ):
        for shot in report["shots"]:
            windows = shot["colours"]["windows"]
            at_s = [(w["start"] + w["stop"]) / 2 / report["fps"] for w in windows]
            mean = [w["mean"][number] for w in windows]
            axes.plot(at_s, mean, color=colour, label=axis if shot is report["shots"][0] else None)
            low, high = (
                [m + sign * w["spread"][number] for m, w in zip(mean, windows, strict=True)]
                for sign in (-1, 1)
            )
            axes.fill_between(at_s, low, high, color=colour, alpha=0.1)
    axes.legend(loc="upper right")
    return _drawn(figure)


def _fidelity_chart(report: dict[str, Any]) -> str:
    figure, axes = _figure("seconds", "SSIM")
    ssim = report["fidelity"]["frames_of"]["ssim"]
    axes.plot([n / report["fps"] for n in range(len(ssim))], ssim, linewidth=1)
    return _drawn(figure)


#: The colour of each letter of ``LETTERS``.
_COLOURS = {
    " ": "#ddd", ".": "#ffe28a", "r": "tab:blue", "s": "tab:green", "w": "tab:orange", "x": "#333"
}  # fmt: skip


def tiles_figure(tiles: Sequence[Mapping[str, Any]]) -> Figure:
    """What each tile did at each step, a row of cells each; beside it what the colours mean that
    are there. A stage with fewer steps than another has a shorter row."""
    letters, steps = list(LETTERS), [tile["steps"] for tile in tiles]
    rows = np.full((len(steps), max(map(len, steps))), np.nan)
    for row, done in zip(rows, steps, strict=True):
        row[: len(done)] = [letters.index(letter) for letter in done]
    figure = Figure(figsize=(9, max(1.8, min(40, 1.2 + 0.14 * len(rows)))), layout="constrained")
    axes = figure.subplots()
    colours, last = ListedColormap([_COLOURS[letter] for letter in letters]), len(letters) - 1
    edges = ["none" if missing else "#ddd" for missing in np.isnan(rows).flat]
    axes.pcolormesh(rows, cmap=colours, vmin=0, vmax=last, edgecolors=edges, linewidth=0.3)
    there = [letter for letter in letters if any(letter in done for done in steps)]
    patches = [Patch(facecolor=_COLOURS[letter], edgecolor="#ddd") for letter in there]
    figure.legend(patches, [LETTERS[letter] for letter in there], loc="outside right upper")
    names = [f"shot {tile['shot'] + 1} stage {tile['stage'] + 1}" for tile in tiles]
    firsts = [n for n, name in enumerate(names) if n == 0 or name != names[n - 1]]
    axes.set_yticks([n + 0.5 for n in firsts], [names[n] for n in firsts])
    axes.invert_yaxis()
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _figure(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _drawn(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return _source(buffer.getvalue())


def _as_source(picture: Image | None) -> str | None:
    if picture is None:
        return None
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    return _source(buffer.getvalue())


def _source(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
