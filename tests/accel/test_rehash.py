"""Step Rehash: what a key step keeps is enough for its own step, and for nothing else's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNetMotionModel, UNetSpatioTemporalConditionModel, WanTransformer3DModel

from accel.handle import LostState, TileStep
from accel.rehash import apply, similarity
from jobs.accelerations import Rehash
from jobs.errors import CannotRunHere
from jobs.rehash_profile import key_steps
from jobs.units import Unit
from tests.accel.test_compose import structure
from tests.accel.test_video_transformers import TINY
from tests.accel.tiny_models import random_
from tests.workers.tiny_animatediff import tiny_unet


def wan(layers: int = 5) -> WanTransformer3DModel:
    torch.manual_seed(1)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
        out_channels=4, text_dim=8, freq_dim=16, ffn_dim=32, num_layers=layers,
        rope_max_seq_len=32,
    ).eval()  # fmt: skip


def svd() -> UNetSpatioTemporalConditionModel:
    torch.manual_seed(1)
    return UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=8, layers_per_block=1, num_attention_heads=(2, 4), num_frames=3,
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=24,
    ).eval()  # fmt: skip


def of_class(name: str) -> Callable[[], torch.nn.Module]:
    """Of four blocks, one of them between what enters and what leaves."""
    return lambda: TINY[name](layers=4).model


TRANSFORMERS = {
    "wan": wan,
    "ltx": of_class("LTXVideoTransformer3DModel"),
    "cogvideox": of_class("CogVideoXTransformer3DModel"),
    "hunyuan-video": of_class("HunyuanVideoTransformer3DModel"),
}
MODELS = TRANSFORMERS | {"animatediff": tiny_unet, "svd": svd}


def inputs(model: torch.nn.Module, seed: int = 0) -> dict[str, Any]:
    """In the model's dtype, whole numbers as they are."""
    given, dtype = drawn(model, seed), next(model.parameters()).dtype
    tensors = {name: each for name, each in given.items() if torch.is_tensor(each)}
    real = {name: each for name, each in tensors.items() if each.is_floating_point()}
    return given | {name: each.to(dtype) for name, each in real.items()}


def drawn(model: torch.nn.Module, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    if isinstance(model, WanTransformer3DModel):
        return {
            "hidden_states": torch.randn(1, 4, 3, 4, 4), "timestep": torch.tensor([500 - seed]),
            "encoder_hidden_states": torch.randn(1, 6, 8),
        }  # fmt: skip
    if isinstance(model, UNetMotionModel):
        return {
            "sample": torch.randn(2, 4, 3, 8, 8), "timestep": torch.tensor(500 - seed),
            "encoder_hidden_states": torch.randn(6, 5, 16),
        }  # fmt: skip
    if type(model).__name__ in TINY:
        return TINY[type(model).__name__]().arguments(seed, 1)
    return {
        "sample": torch.randn(1, 3, 8, 8, 8), "timestep": torch.tensor(0.5 - seed / 100),
        "encoder_hidden_states": torch.randn(1, 1, 8),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]]),
    }  # fmt: skip


@torch.no_grad()
def forward(model: torch.nn.Module, **given: Any) -> torch.Tensor:
    return model(**given, return_dict=False)[0]


def tile(step: int, before: TileStep | None = None, steps: int = 9) -> TileStep:
    carried = before.kept if before else {}
    return TileStep(unit=Unit("step", 0, step=step), steps=steps, carried=carried)


@pytest.mark.parametrize("kind", MODELS)
def test_a_key_step_is_the_model_and_its_features_are_enough_for_its_own_input(kind: str) -> None:
    model = MODELS[kind]()
    given = inputs(model)
    full = forward(model, **given)
    handle = apply(model, Rehash(every=2))
    first, second = tile(0), None
    with handle.run(first, "cond"):
        assert torch.equal(forward(model, **given), full)
    second = tile(1, first)
    with handle.run(second, "cond"):
        again = forward(model, **given)
    # A transformer's tokens come back as tokens + (result - tokens): rounded, not equal.
    torch.testing.assert_close(again, full, rtol=0, atol=1e-5 if kind in TRANSFORMERS else 0)
    assert (first.engaged, second.engaged) == ({"rehash.key": 1}, {"rehash.reused": 1})


@pytest.mark.parametrize("kind", MODELS)
def test_a_step_between_runs_the_ends_of_the_model_and_nothing_else(kind: str) -> None:
    model = MODELS[kind]()
    handle = apply(model, Rehash(key_steps=((0,),)))
    first, second = tile(0), None
    with handle.run(first, "cond"):
        before = forward(model, **inputs(model))
    ran: list[str] = []
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    second = tile(1, first)
    with handle.run(second, "cond"):
        after = forward(model, **inputs(model, seed=1))
    assert not torch.allclose(before, after, atol=1e-3), "it sees the step's own latents"
    parts = {".".join(name.split(".")[:2]) for name in ran}
    if kind in TRANSFORMERS:
        first = "blocks.0" if kind == "wan" else "transformer_blocks.0"
        assert {part for part in parts if "blocks" in part} == {first}
    else:
        assert not {part for part in parts if part.startswith(("down", "mid", "up_blocks.0"))}
        ends = [name for name in ran if name.startswith("up_blocks.1")]
        assert ends and all(name.split(".")[3] == "1" for name in ends), "the last layer"


@pytest.mark.parametrize("kind", MODELS)
def test_key_steps_alone_are_the_model(kind: str) -> None:
    model, before = MODELS[kind](), None
    handle = apply(model, Rehash(key_steps=((0, 1, 2),)))
    for step in range(3):
        given, before = inputs(model, seed=step), tile(step, before, steps=3)
        handle.remove()
        alone = forward(model, **given)
        handle = apply(model, handle.config)
        with handle.run(before, "cond"):
            assert torch.equal(forward(model, **given), alone)
        assert before.engaged == {"rehash.key": 1}


class Adds(torch.nn.Module):
    """A block that adds something to the video's tokens, and leaves nothing of the text's."""

    def __init__(self, added: torch.Tensor, text: bool) -> None:
        super().__init__()
        self.added, self.text = added, text

    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, *_, **__):
        tokens = hidden_states + self.added
        return (tokens, torch.zeros_like(encoder_hidden_states)) if self.text else tokens


def blocks_of(model: Any) -> list[torch.nn.ModuleList]:
    names = ("blocks", "transformer_blocks", "single_transformer_blocks")
    return [getattr(model, name) for name in names if hasattr(model, name)]


def what_others_add(model: torch.nn.Module, given: dict[str, Any]) -> torch.Tensor:
    """All blocks but the first, to the tokens of the video."""
    tokens: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(
            lambda _, __, out: tokens.append(out[0] if isinstance(out, tuple) else out)
        )
        for blocks in blocks_of(model)
        for block in blocks
    ]
    forward(model, **given)
    for hook in hooks:
        hook.remove()
    return tokens[-1] - tokens[0]


def first_block_and(model: Any, added: torch.Tensor) -> torch.nn.Module:
    """A copy of which nothing else is left."""
    model = copy.deepcopy(model)
    first, *others = blocks_of(model)
    del first[1:]
    first.append(Adds(added, text=type(model).__name__.startswith(("CogVideoX", "Hunyuan"))))
    for blocks in others:
        del blocks[:]
    return model


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_transformers_steps_are_those_of_a_plain_loop(kind: str) -> None:
    """A reused step runs the first block alone, and adds what the others added at its key step."""
    model = random_(TRANSFORMERS[kind](), std=0.1)
    plain = copy.deepcopy(model)
    handle, before = apply(model, Rehash(key_steps=((0, 3),))), None
    for step in range(6):
        given, before = inputs(model, seed=step), tile(step, before)
        with handle.run(before, "cond"):
            ours = forward(model, **given)
        if step in (0, 3):
            added, expected = what_others_add(plain, given), forward(plain, **given)
            assert torch.equal(ours, expected)
        else:
            expected = forward(first_block_and(plain, added), **given)
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
            assert not torch.allclose(ours, forward(plain, **given), atol=1e-3)
        assert before.kept.keys() == {"rehash.cond.feature"}
        assert torch.equal(before.kept["rehash.cond.feature"], added), "nothing of the text"


def test_a_feature_belongs_to_its_branch_and_a_lost_one_is_an_error() -> None:
    model = wan()
    handle = apply(model, Rehash(every=4))
    first = tile(0)
    with handle.run(first, "cond"):
        forward(model, **inputs(model))
    second = tile(1, first)
    said = "step 1 came without 'rehash.uncond.feature', which its key step left"
    with pytest.raises(LostState, match=said), handle.run(second, "uncond"):
        raise AssertionError("the model would run in full")
    assert not second.engaged
    with handle.run(second, "cond"):
        forward(model, **inputs(model, seed=1))
    assert second.engaged == {"rehash.reused": 1}, "and the handle is as it was"


def test_nothing_is_kept_for_a_step_that_does_not_come() -> None:
    model = wan()
    handle = apply(model, Rehash(every=2))
    last = tile(8)
    with handle.run(last, "cond"):
        forward(model, **inputs(model))
    assert last.kept == {} and last.engaged == {"rehash.key": 1}


def test_an_error_leaves_nothing_behind() -> None:
    model = wan()
    handle = apply(model, Rehash(every=2))
    with pytest.raises(RuntimeError), handle.run(tile(0), "cond"):
        forward(model, **inputs(model))
        raise RuntimeError
    with pytest.raises(AssertionError, match="not called"), handle.run(tile(0), "cond"):
        pass


@pytest.mark.parametrize("kind", MODELS)
def test_it_leaves_the_model_as_it_was(kind: str) -> None:
    model = MODELS[kind]()
    before = structure(model)
    apply(model, Rehash(every=2)).remove()
    assert structure(model) == before
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (torch.nn.Linear(2, 2), "rehash does not know Linear; it runs in UNets for video"),
        (wan(2), "2 blocks are too few"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(model: torch.nn.Module, said: str) -> None:
    with pytest.raises(CannotRunHere, match=said):
        apply(model, Rehash(every=2))


def test_the_papers_greedy_choice() -> None:
    """Each step is compared with the key step before it, not with its neighbour."""
    s = np.array([
        [1.0, 0.99, 0.96, 0.90, 0.80, 0.7],
        [0.99, 1.0, 0.99, 0.96, 0.90, 0.8],
        [0.96, 0.99, 1.0, 0.99, 0.96, 0.9],
        [0.90, 0.96, 0.99, 1.0, 0.99, 0.96],
        [0.80, 0.90, 0.96, 0.99, 1.0, 0.99],
        [0.70, 0.80, 0.90, 0.96, 0.99, 1.0],
    ])  # fmt: skip
    assert key_steps(s, 0.95) == (0, 3, 5)
    assert key_steps(s, 0.985) == (0, 2, 4, 5)
    assert key_steps(s, 1.0) == (0, 1, 2, 3, 4, 5)
    assert key_steps(s, 0.0) == (0, 5)


def test_similarity_is_the_cosine() -> None:
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert similarity([a, b, 2 * b]).round(6).tolist() == [
        [1, 0.6, 0.6], [0.6, 1, 1], [0.6, 1, 1],
    ]  # fmt: skip


class OnDevice(torch.Tensor):
    """As a tensor of a GPU: there are no arrays of it before it is copied."""

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)

    def numpy(self) -> None:
        raise TypeError("can't convert a device's tensor to numpy")


def test_features_may_lie_on_a_device() -> None:
    features = list(torch.randn(3, 5, dtype=torch.float64))
    on_device = [each.as_subclass(OnDevice) for each in features]
    np.testing.assert_array_equal(similarity(on_device), similarity(features))


def test_key_steps_of_a_stage() -> None:
    assert Rehash(every=3).keys(0, 8) == {0, 3, 6, 7}
    assert Rehash(every=3).keys(0, 25) == {0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24}, "a tenth first"
    assert Rehash(every=3, first=1).keys(0, 25) == {0, 3, 6, 9, 12, 15, 18, 21, 24}
    assert Rehash(every=2, first=3).keys(0, 8) == {0, 1, 2, 4, 6, 7}
    assert Rehash(every=2, first=9).keys(0, 4) == {0, 1, 2, 3}
    assert Rehash(key_steps=((2,), (1, 3))).keys(1, 6) == {0, 1, 3, 5}
