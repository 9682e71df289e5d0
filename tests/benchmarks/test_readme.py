"""The README's figures are those of ``docs/figures.md``, which has more of each."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks.common import RESULTS

ROOT = RESULTS.parents[1]

LONG = ["seconds in which the film looks", "borders that are plain to see"]

#: How each row of the README's table begins, and how those of ``docs/figures.md`` that it is from;
#: of several that begin so, the first.
SOURCES = {
    "two one-thread workers": ["two one-thread workers"],
    "orchestration's share": ["share of the wall time that is orchestration"],
    "a pyramid of three stages": ["20 s of film, faster", "the same: time of the whole render"],
    "pyramids after half": ["what the pyramid shows right after half"],
    "preset `balanced`": ["preset `balanced`"],
    "preset `fast`": ["preset `fast`"],
    "`fast` with the pyramid": ["`fast` with the pyramid"],
    "a clip that is one window": ["the same of a clip"],
    "best of eight other caches": ["peer: SeaCache", "`adaptive, form: spectral` (SeaCache"],
    "slicing: peak memory": ["AnimateDiff, 16 frames", "Stable Video Diffusion, 14 frames"],
    "the same in a worker": ["as a worker holds it"],
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


#: Columns of the page's table on long films, and the newest results that each is from.
FILMS = {
    0: "long_films_cpu_2026-11-30",
    1: "long_films_demo-pyramid_cpu_2026-12-01",
    2: "long_films_demo-pyramid_whole_cpu_2026-11-30",
    3: "long_films_demo-pyramid_repeated_1_cpu_2026-11-30",
}


def test_long_films_stand_in_their_own_columns() -> None:
    page = rows((ROOT / "docs/figures.md").read_text(encoding="utf-8"))
    told = {name: cells.split("|") for name, cells in page}
    steady, colour = (
        next(cells for name, cells in told.items() if name.startswith(begins))
        for begins in ("seconds in which the film looks", "seconds with the right colour")
    )
    for column, name in FILMS.items():
        found = [
            each["rendered"]["all"]
            for each in json.loads((RESULTS / f"{name}.json").read_text())["lengths"]
        ]
        assert [int(n) for n in numbers(colour[column])] == [
            round(100 * each["right"]["colour"]) for each in found
        ], name
        assert [int(n) for n in numbers(steady[column])] == [
            round(100 * each["steady"]) for each in found
        ], name


@pytest.mark.parametrize(
    ("begins", "column"),
    [("with the pyramid, windows", 1), ("with the pyramid's first", 2), ("whose noise", 3)],
)
def test_the_readme_has_long_films_from_their_own_columns(begins: str, column: int) -> None:
    page = rows((ROOT / "docs/figures.md").read_text(encoding="utf-8"))
    readme = rows((ROOT / "README.md").read_text(encoding="utf-8"))
    steady, seams = (
        next(cells.split("|") for name, cells in page if name.startswith(each)) for each in LONG
    )
    (said,) = (cells for name, cells in readme if name.startswith(f"two minutes {begins}"))
    # Of two minutes, the last of three lengths; of borders the share, before the worst one.
    want = [numbers(steady[column])[2], numbers(steady[0])[2]]
    want += [numbers(seams[column])[2], numbers(seams[0])[2]]
    assert numbers(said) == want
