"""The count of operations: by hand on single layers, and of whole models in both ways."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from accel import compose
from benchmarks.operations import Operations, counted
from jobs.accelerations import Accelerations, FastAttention, Rehash, Slicing
from jobs.attention_plan import AttentionPlan
from tests.accel import tiny_models
from tests.accel.test_rehash import tile

CASES = {
    "wan": partial(tiny_models.wan, layers=3),
    "motion": tiny_models.motion_unet,
    "svd": tiny_models.svd_unet,
    "cogvideox": partial(tiny_models.cogvideox, layers=3),
    "hunyuan video": tiny_models.hunyuan_video,
    "ltx": partial(tiny_models.ltx, layers=3),
}
PLAN = AttentionPlan((("full",) * 3, ("window", "share_steps", "full")), (1, 1, 3))
ASKED = {
    "nothing": Accelerations(),
    "slicing": Accelerations(slicing=Slicing(slices=3)),
    "rehash": Accelerations(rehash=Rehash(key_steps=((0,),))),
    "slicing and rehash": Accelerations(
        slicing=Slicing(slices=3), rehash=Rehash(key_steps=((0,),))
    ),
    "fast attention": Accelerations(fast_attention=FastAttention(stages=(PLAN,))),
}
FITS = [(kind, name) for kind in CASES for name in ASKED if name != "fast attention"]
FITS += [("wan", "fast attention")]


@pytest.mark.parametrize(("dtype", "inference"), [(torch.float32, True), (torch.bfloat16, False)])
def test_single_layers_by_hand(dtype: torch.dtype, inference: bool) -> None:
    linear = torch.nn.Linear(5, 7, dtype=dtype)
    conv = torch.nn.Conv2d(4, 6, 3, padding=1, groups=2, dtype=dtype)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=dtype) for n in (10, 11, 11))
    x, picture = torch.randn(3, 5, dtype=dtype), torch.randn(1, 4, 9, 9, dtype=dtype)
    for run, multiplications in (
        (lambda: linear(x), 3 * 5 * 7),
        (lambda: conv(picture), 81 * 6 * 2 * 9),
        (lambda: F.scaled_dot_product_attention(q, k, v), 2 * 3 * 10 * 11 * (8 + 8)),
        (lambda: torch.nn.functional.gelu(x), 0),
    ):
        grad = torch.inference_mode if inference else torch.no_grad
        with grad(), Operations() as operations:
            run()
        assert operations.count == 2 * multiplications


def both_counts(kind: str, asked: Accelerations) -> tuple[list[int], list[int]]:
    """Of a first step and the one after it: operator by operator, and by modules."""
    case, before = CASES[kind](), None
    applied = compose.apply(case.model, compose.attached(asked))
    exact, cheap = [], []
    with torch.no_grad(), counted(case.model) as counts:
        for step in range(2):
            before = tile(step, before, steps=2 if asked.fast_attention else 9)
            done = counts["operations"]
            with applied.run(before, "cond"), Operations() as operations:
                case.forward()
            exact.append(operations.count)
            cheap.append(2 * (counts["operations"] - done))
    assert counts["passes"] == 2
    return exact, cheap


@pytest.mark.parametrize(("kind", "name"), FITS)
def test_the_cheap_count_is_the_exact_one(kind: str, name: str) -> None:
    exact, cheap = both_counts(kind, ASKED[name])
    assert cheap == exact and all(exact)
    if name in ("rehash", "slicing and rehash", "fast attention"):
        assert exact[1] < exact[0]


def test_only_the_models_own_attention_counts_and_torchs_is_put_back() -> None:
    case, plain = tiny_models.wan(), F.scaled_dot_product_attention
    x: Any = torch.randn(1, 1, 4, 8)
    with counted(case.model) as counts, torch.no_grad():
        F.scaled_dot_product_attention(x, x, x)
        assert counts["operations"] == 0
        case.forward()
        once = counts["operations"]
        F.scaled_dot_product_attention(x, x, x)
    assert counts["operations"] == once > 0
    assert F.scaled_dot_product_attention is plain
    assert not any(module._forward_hooks for module in case.model.modules())
