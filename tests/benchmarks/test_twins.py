"""What pages and warnings say of the twins is what was measured."""

import json
from statistics import mean
from typing import Any

import pytest

from benchmarks.common import RESULTS
from benchmarks.twins import MEASURES
from jobs.spec_pyramid import UNTRAINED

#: The models that ship, by family and stages that their weights were trained for.
MODELS = {
    ("wan", 1): "demo",
    ("wan", 3): "demo-pyramid",
    ("animatediff", 1): "demo-animatediff",
    ("animatediff", 3): "demo-animatediff-pyramid",
}


#: Windows that start a shot, and those inside one.
WINDOWS = ("starts", "inside")


def measured(family: str, trained: int, stages: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The newest result of weights with so many stages, and as they were trained."""
    model = MODELS[family, trained]
    for path in sorted(RESULTS.glob(f"twins_untrained_{model}_*.json"), reverse=True):
        found = json.loads(path.read_text())
        if str(stages) in found["with_stages"]:
            return found["with_stages"][str(stages)], found["as_trained"]
    assert trained == 1
    found = json.loads(max(RESULTS.glob(f"twins_{family}_*.json")).read_text())
    assert found["stages"] == stages
    return found["untrained"], found["quality"]["plain"]


@pytest.mark.parametrize(("family", "trained", "stages"), sorted(UNTRAINED))
def test_the_warning_of_an_untrained_pyramid_says_what_was_measured(
    family: str, trained: int, stages: int
) -> None:
    said = UNTRAINED[family, trained, stages]
    names = MEASURES if said.what == "properties" else ("motion",)
    shares = [
        mean(each[windows]["all"][name]["share"] for name in names for windows in WINDOWS)
        for each in measured(family, trained, stages)
    ]
    assert [said.right, said.instead_of] == pytest.approx([100 * s for s in shares], abs=0.6)
