"""The README's figures are those of ``docs/figures.md``, which has more of each."""

from __future__ import annotations

import re

from benchmarks.common import RESULTS

ROOT = RESULTS.parents[1]

LONG = ["seconds in which the film looks", "borders that are plain to see"]

#: How each row of the README's table begins, and how those of ``docs/figures.md`` that it is from;
#: of several that begin so, the first.
SOURCES = {
    "two one-thread workers": ["two one-thread workers"],
    "orchestration's share": ["share of the wall time that is orchestration"],
    "a pyramid of three stages": ["20 s of film, faster than the twin"],
    "pyramids after half": ["what the pyramid shows right after half"],
    "preset `balanced`": ["preset `balanced`"],
    "preset `fast`": ["preset `fast`"],
    "`fast` with the pyramid": ["`fast` with the pyramid"],
    "a clip that is one window": ["the same of a clip"],
    "best of eight other caches": ["peer: SeaCache", "`adaptive, form: spectral` (SeaCache"],
    "slicing: peak memory": ["AnimateDiff, 16 frames", "Stable Video Diffusion, 14 frames"],
    "the same of a worker": ["as a worker holds it"],
    "Step Rehash": ["Step Rehash at 13 key steps"],
    "window attention": ["window attention"],
    "two minutes with the pyramid, windows": LONG,
    "two minutes with the pyramid's first": LONG,
    "two minutes whose noise": LONG,
}


def rows(text: str) -> list[tuple[str, str]]:
    """The first cell of every table's row, and the others."""
    return re.findall(r"^\| (.+?) \|(.+)\|$", text, re.MULTILINE)


def numbers(cells: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?", cells)


def test_the_readme_has_the_figures_of_the_page() -> None:
    page = rows((ROOT / "docs/figures.md").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("| what | figure |\n")[2]
    told, stale = rows(readme)[1:], {}
    for what, figure in told:
        (begins,) = (begins for start, begins in SOURCES.items() if what.startswith(start))
        known = [next(cells for name, cells in page if name.startswith(each)) for each in begins]
        if missing := set(numbers(figure)) - set(numbers("".join(known))):
            stale[what] = missing
    assert len(told) == len(SOURCES)
    assert stale == {}
