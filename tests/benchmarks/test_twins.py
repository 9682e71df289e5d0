"""What pages and warnings say of the twins is what was measured."""

import json
from statistics import mean

import pytest

from benchmarks.common import RESULTS
from benchmarks.twins import MEASURES
from jobs.spec_pyramid import UNTRAINED


@pytest.mark.parametrize("family", sorted({family for family, _, _ in UNTRAINED}))
def test_the_warning_of_an_untrained_pyramid_says_what_was_measured(family: str) -> None:
    """By the newest results: of the plain twin with a pyramid that it does not know, and without,
    in windows that start a shot."""
    found = json.loads(max(RESULTS.glob(f"twins_{family}_*.json")).read_text())
    said = UNTRAINED[family, 1, found["stages"]]
    whole = (found["untrained"], found["quality"]["plain"])
    names = MEASURES if said.what == "properties" else ("motion",)
    shares = [mean(each["starts"]["all"][name]["share"] for name in names) for each in whole]
    assert [said.right, said.instead_of] == pytest.approx([100 * s for s in shares], abs=0.6)
