"""Slicing and Step Rehash together: what Rehash alone gives, in less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch._subclasses import FakeTensorMode

from accel import compose
from accel.memory import TensorAccounting
from accel.rehash import apply
from accel.slicing import apply as slice_
from jobs.accelerations import Accelerations, Rehash, Slicing
from jobs.errors import CannotRunHere
from jobs.families.features import feature_bytes
from jobs.families.slicing_memory import sliced_bytes
from tests.accel import memory_cases as memory
from tests.accel.test_rehash import MODELS, forward, inputs, tile
from tests.accel.test_slicing import structure
from tests.accel.tiny_models import random_
from tests.marks import few

REHASH = Rehash(key_steps=((0, 2),))
STEPS = 4


def of(kind: str) -> torch.nn.Module:
    return random_(MODELS[kind](), std=0.1)


def steps(model: torch.nn.Module, asked: Accelerations) -> tuple[list[torch.Tensor], list[Any]]:
    """Results of a key step, one that reuses it, and so again, each of its own latents; and what
    engaged."""
    applied, before = compose.apply(model, compose.attached(asked)), None
    results, engaged = [], []
    for step in range(STEPS):
        before = tile(step, before)
        with applied.run(before, "cond"):
            results.append(forward(model, **inputs(model, seed=step)))
        engaged.append(before.engaged)
    applied.remove()
    return results, engaged


@pytest.mark.parametrize("slices", [2, 3, 64])
@pytest.mark.parametrize("kind", MODELS)
def test_sliced_steps_are_those_of_rehash_alone(kind: str, slices: int) -> None:
    model = of(kind)
    before = structure(model)
    alone, _ = steps(model, Accelerations(rehash=REHASH))
    both, engaged = steps(model, Accelerations(rehash=REHASH, slicing=Slicing(slices=slices)))
    full, _ = steps(model, Accelerations())
    assert structure(model) == before
    torch.testing.assert_close(both, alone, atol=1e-10, rtol=1e-10)
    for step, (of_both, of_all) in enumerate(zip(both, full, strict=True)):
        assert torch.allclose(of_both, of_all, atol=1e-10) == (step % 2 == 0), "reused, or not"
    assert [each["rehash.reused"] for each in engaged] == [0, 1, 0, 1]
    assert all(each["slicing"] > 0 for each in engaged)


@pytest.mark.parametrize("kind", ["animatediff", "svd"])
def test_a_sliced_step_between_runs_the_last_layer_alone(kind: str) -> None:
    model, ran = of(kind), []
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    asked = Accelerations(rehash=REHASH, slicing=Slicing(slices=2))
    applied, first = compose.apply(model, compose.attached(asked)), tile(0)
    for step, made in enumerate((first, tile(1, first))):
        ran.clear()
        with applied.run(made, "cond"):
            forward(model, **inputs(model, seed=step))
    last = len(model.up_blocks[-1].resnets) - 1
    parts = {tuple(name.split(".")[:4]) for name in ran if name.startswith(("up", "down", "mid"))}
    assert parts and {(part[:2], part[3]) for part in parts} == {(("up_blocks", "1"), str(last))}


def test_a_last_up_block_without_attention_is_refused_with_slicing() -> None:
    model: Any = UNetSpatioTemporalConditionModel
    model = model(
        block_out_channels=(32, 32),
        down_block_types=("DownBlockSpatioTemporal",) * 2,
        up_block_types=("UpBlockSpatioTemporal",) * 2,
        layers_per_block=1,
        num_attention_heads=2,
    ).eval()
    apply(model, REHASH).remove()
    slice_(model, Slicing(slices=2))
    with pytest.raises(CannotRunHere, match="has resnets alone"):
        apply(model, REHASH)


SHAPES = {
    "wan": memory.wan(4, 1536, layers=4),
    "ltx": memory.ltx(layers=4),
    "cogvideox": memory.cogvideox(layers=4),
    "hunyuan video": memory.hunyuan_video(),
    "animatediff": memory.motion((64, 128), 2),
    "svd": memory.svd((64, 128), 1),
}


@pytest.mark.parametrize("kind", few(SHAPES, "wan"))
@torch.no_grad()
def test_a_tile_holds_what_planning_adds_up(kind: str) -> None:
    """A sliced step, and a feature of both guidance branches that comes and one that is left."""
    case, slices = SHAPES[kind], 12
    size = case.size(24, 40)
    asked = Accelerations(rehash=REHASH, slicing=Slicing(slices=slices))
    branches = ("cond", "uncond") if case.branches == 1 else ("both",)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model: Any = case.make().eval()
        applied, before, peaks = compose.apply(model, compose.attached(asked)), None, []
        for step in range(3):  # a key step, one that reuses, and a key step with what is carried
            before = tile(step, before)
            with TensorAccounting() as counted:
                for branch in branches:
                    with applied.run(before, branch):
                        case.forward(model, size)
            brought_bytes = sum(each.nbytes for each in before.carried.values())
            peaks.append(brought_bytes + counted.peak_bytes)
    config = dict(model.config) | {"_class_name": type(model).__name__}
    planned = sliced_bytes(
        config, size, "float32", slices, text_tokens=case.text_tokens, branches=case.branches
    ) + 2 * 2 * feature_bytes(config, size, "float32")
    assert max(peaks) == peaks[2] == pytest.approx(planned, rel=memory.TOLERANCE)
