"""The memory model of unsliced denoisers against what the accounting measures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from jobs.families import FAMILIES
from jobs.families.whole_memory import _MOMENTS, whole_bytes
from tests.accel.memory_cases import (
    BESIDE_TEXT,
    DENOISERS,
    PUBLISHED,
    PUBLISHED_FEW,
    Case,
    Size,
    measure,
)
from tests.marks import few
from workers.families import FAMILIES as WORKERS_FAMILIES

#: What placement may rely on is 15 %; what is counted here is nearer.
TOLERANCE = 0.05

#: Height and width of the latents, dtype.
RUNS = (
    (32, 32, "float16"),
    (64, 96, "float32"),
    (64, 96, "bfloat16"),
    (24, 40, "float32"),
    (8, 128, "float16"),
)


def predicted_over_measured(case: Case, latent_size: Size, dtype: str) -> float:
    _, activations, config = measure(case, latent_size, dtype, None)
    given = {"branches": case.branches, "text_tokens": case.text_tokens}
    return whole_bytes(config, latent_size, dtype, **given) / activations


def spread() -> Iterator[Any]:
    """Every case at every run; one run of the plain cases is quick."""
    for name in DENOISERS:
        for run in RUNS:
            quick = run == RUNS[0] and "," not in name
            yield pytest.param(name, *run, marks=() if quick else pytest.mark.long)


@pytest.mark.parametrize("name, height, width, dtype", spread())
def test_the_model_predicts_what_is_measured(
    name: str, height: int, width: int, dtype: str
) -> None:
    case = DENOISERS[name]
    found = predicted_over_measured(case, case.size(height, width), dtype)
    assert found == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.parametrize("case, dtype", BESIDE_TEXT)
def test_long_text_beside_a_small_tile(case: Case, dtype: str) -> None:
    found = predicted_over_measured(case, case.size(16, 16), dtype)
    assert found == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", few(["bfloat16", "float32"], "bfloat16"))
@pytest.mark.parametrize("name", few(PUBLISHED, *PUBLISHED_FEW))
def test_published_models_at_their_sizes(name: str, dtype: str) -> None:
    found = predicted_over_measured(*PUBLISHED[name], dtype)
    assert found == pytest.approx(1, abs=TOLERANCE)


def test_every_family_has_a_memory_model() -> None:
    kinds = {name: WORKERS_FAMILIES[name].denoiser_kind.__name__ for name in FAMILIES}
    assert set(kinds.values()) == set(_MOMENTS)
    assert kinds == {name: each.classes[each.denoiser] for name, each in FAMILIES.items()}
