"""The memory model of slicing against what the accounting measures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from accel.slicing import MODELS
from jobs.errors import CannotRunHere
from jobs.families.slicing_memory import _GROUPS, fewest_slices, sliced_bytes
from tests.accel.memory_cases import (
    BESIDE_TEXT,
    DECODERS,
    DENOISERS,
    PUBLISHED,
    PUBLISHED_FEW,
    TOLERANCE,
    Case,
    Size,
    measure,
)
from tests.marks import few

CASES = DENOISERS | DECODERS

#: Height and width of the latents, slices, dtype.
RUNS = (
    (32, 32, 6, "float16"),
    (64, 96, 2, "float32"),
    (64, 96, 5, "float16"),
    (24, 40, 12, "float32"),
)


def spread() -> Iterator[Any]:
    """Every case at every run; one run of the plain cases is quick, for fake tensors take time by
    the operator."""
    for name in CASES:
        for run in RUNS:
            quick = run == RUNS[0] and "," not in name
            yield pytest.param(name, *run, marks=() if quick else pytest.mark.long)


@pytest.mark.parametrize("name, height, width, slices, dtype", spread())
def test_the_model_predicts_what_is_measured(
    name: str, height: int, width: int, slices: int, dtype: str
) -> None:
    case = CASES[name]
    check(case, case.size(height, width), dtype, slices)


def check(case: Case, size: Size, dtype: str, slices: int) -> None:
    weights, activations, config = measure(case, size, dtype, slices)
    given = {"branches": case.branches, "text_tokens": case.text_tokens}
    predicted = sliced_bytes(config, size, dtype, slices, **given)
    assert predicted == pytest.approx(activations, rel=TOLERANCE)
    whole = sliced_bytes(config, size, dtype, slices, **given, weights_bytes=weights)
    assert whole == predicted + weights


@pytest.mark.parametrize("case, dtype", BESIDE_TEXT)
def test_long_text_beside_a_small_tile(case: Case, dtype: str) -> None:
    check(case, case.size(16, 16), dtype, 4)


@pytest.mark.slow
@pytest.mark.parametrize("slices", few([4, 16], 4))
@pytest.mark.parametrize("name", few(PUBLISHED, *PUBLISHED_FEW))
def test_published_models_at_their_sizes(name: str, slices: int) -> None:
    check(*PUBLISHED[name], "bfloat16", slices)


def test_text_that_runs_beside_the_video_is_held_in_four_copies() -> None:
    config = {
        "_class_name": "HunyuanVideoTransformer3DModel", "patch_size": 2, "patch_size_t": 1,
        "num_attention_heads": 3, "attention_head_dim": 128,
    }  # fmt: skip
    few, many = (
        sliced_bytes(config, (6, 64, 64), "float16", 6, text_tokens=tokens, branches=1)
        for tokens in (256, 1024)
    )
    assert many - few == 4 * 768 * 3 * 128 * 2


def test_every_model_that_slicing_knows_has_a_memory_model() -> None:
    assert sorted(_GROUPS) == sorted(MODELS)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(CannotRunHere, match="does not know DiT; it knows: AutoencoderKL, "):
        sliced_bytes({"_class_name": "DiT"}, (1, 8, 8), "float32", 2, text_tokens=0)


def test_a_budget_gives_slices_that_keep_it() -> None:
    case, size, budget_bytes = CASES["wan"], (6, 64, 64), 36_000_000
    weights, _, config = measure(case, size, "float32", 2)
    about = {"branches": case.branches, "text_tokens": 512, "weights_bytes": weights}
    predict = partial(sliced_bytes, config, size, "float32", **about)
    slices = fewest_slices(predict, weights + budget_bytes)
    assert slices > 2
    _, activations, _ = measure(case, size, "float32", slices)
    assert activations < budget_bytes * (1 + TOLERANCE)
    _, too_few, _ = measure(case, size, "float32", slices - 1)
    assert too_few > budget_bytes * (1 - TOLERANCE)


def test_the_fewest_slices_that_fit() -> None:
    assert fewest_slices(lambda slices: 100 + 1000 // slices, 250) == 7
    assert fewest_slices(lambda slices: 100, 100) == 2
    assert fewest_slices(lambda slices: 101, 100) is None
