"""Fast attention in every transformer that it knows: windows, shares and text, on tiny ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    WanTransformer3DModel,
)

from accel import attention_core
from accel.fast_attention import FastAttention, apply
from accel.handle import TileStep
from accel.video_transformers import VIDEO_TRANSFORMERS, video_transformer
from accel.windowed import dense_windowed
from jobs.attention_plan import AttentionPlan
from jobs.errors import CannotRunHere
from jobs.units import Unit
from tests.accel.fast_attention_helpers import tiny_wan

GRID = (3, 4, 4)
TEXT_TOKENS = 5
ROUNDING = 2e-5
F, FB, W, WB, S = (
    "full", "full+share_branches", "window", "window+share_branches", "share_steps",
)  # fmt: skip


@dataclass
class Tiny:
    """A model, and its arguments for a step and so many videos."""

    model: torch.nn.Module
    arguments: Callable[[int, int], dict]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sharpen(model: torch.nn.Module) -> torch.nn.Module:
    """So that it matters who sees whom."""
    with torch.no_grad():
        for layer in video_transformer(model).layers(model):
            layer.to_q.weight.mul_(4)
            layer.to_v.weight.mul_(4)
    return model.double().eval()


def wan() -> Tiny:
    def arguments(step: int, videos: int) -> dict:
        return {
            "hidden_states": random(videos, 2, 3, 8, 8, seed=step),
            "timestep": torch.full((videos,), 900 - 100 * step),
            "encoder_hidden_states": random(videos, TEXT_TOKENS, 8),
        }

    return Tiny(tiny_wan(), arguments)


def ltx(layers: int = 3) -> Tiny:
    torch.manual_seed(0)
    model = LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12,
        cross_attention_dim=24, num_layers=layers, caption_channels=8,
    )  # fmt: skip

    def arguments(step: int, videos: int) -> dict:
        return {
            "hidden_states": random(videos, 48, 4, seed=step),
            "encoder_hidden_states": random(videos, TEXT_TOKENS, 8),
            "timestep": torch.full((videos,), 900.0 - 100 * step),
            "encoder_attention_mask": torch.ones(videos, TEXT_TOKENS),
            "num_frames": 3,
            "height": 4,
            "width": 4,
        }

    return Tiny(sharpen(model), arguments)


def cogvideox(layers: int = 3) -> Tiny:
    torch.manual_seed(0)
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        time_embed_dim=8, text_embed_dim=8, num_layers=layers, sample_width=8, sample_height=8,
        sample_frames=9, patch_size=2, max_text_seq_length=TEXT_TOKENS,
    )  # fmt: skip

    def arguments(step: int, videos: int) -> dict:
        return {
            "hidden_states": random(videos, 3, 4, 8, 8, seed=step),
            "encoder_hidden_states": random(videos, TEXT_TOKENS, 8),
            "timestep": torch.full((videos,), 900 - 100 * step),
        }

    return Tiny(sharpen(model), arguments)


def hunyuan(layers: int = 3) -> Tiny:
    torch.manual_seed(0)
    model = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2,
        num_single_layers=layers - 2, num_refiner_layers=1, patch_size=2, patch_size_t=1,
        text_embed_dim=8, pooled_projection_dim=8, rope_axes_dim=(4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    seen = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])  # the second prompt fills its place

    def arguments(step: int, videos: int) -> dict:
        return {
            "hidden_states": random(videos, 4, 3, 8, 8, seed=step),
            "timestep": torch.full((videos,), 900 - 100 * step),
            "encoder_hidden_states": random(videos, TEXT_TOKENS, 8),
            "encoder_attention_mask": seen[:videos],
            "pooled_projections": random(videos, 8),
        }

    return Tiny(sharpen(model), arguments)


TINY = {
    "WanTransformer3DModel": wan,
    "LTXVideoTransformer3DModel": ltx,
    "CogVideoXTransformer3DModel": cogvideox,
    "HunyuanVideoTransformer3DModel": hunyuan,
}


@pytest.fixture(params=sorted(VIDEO_TRANSFORMERS))
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return TINY[request.param]()


def plan(*strategies: str, window=(3, 1, 3), layers: int = 3) -> AttentionPlan:
    return AttentionPlan(tuple((strategy,) * layers for strategy in strategies), window)


@torch.no_grad()
def outputs(tiny: Tiny, plan: AttentionPlan, branch="cond", videos=1) -> Iterator[torch.Tensor]:
    """The model's output at every step, by the plan."""
    carried: dict[str, torch.Tensor] = {}
    for step in range(plan.steps):
        handle = apply(tiny.model, FastAttention(stages=(plan,)))
        tile = TileStep(unit=Unit("step", 0, step=step), steps=plan.steps, carried=carried)
        with handle.run(tile, branch):
            yield tiny.model(**tiny.arguments(step, videos), return_dict=False)[0]
        handle.remove()
        carried = tile.kept


def apart(ours, theirs) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def plainly(tiny: Tiny, steps: int, videos: int = 1) -> list[torch.Tensor]:
    with torch.no_grad():
        return [
            tiny.model(**tiny.arguments(step, videos), return_dict=False)[0]
            for step in range(steps)
        ]


def test_every_known_transformer_is_tried_here() -> None:
    assert set(TINY) == set(VIDEO_TRANSFORMERS)
    assert type(tiny_wan()) is WanTransformer3DModel


def test_full_everywhere_is_the_model(tiny: Tiny) -> None:
    for ours, theirs in zip(outputs(tiny, plan(F, F)), plainly(tiny, 2), strict=True):
        assert torch.equal(ours, theirs)


def test_a_window_over_everything_is_the_model(tiny: Tiny) -> None:
    wide = plan(F, W, W, window=tuple(2 * n - 1 for n in GRID))
    assert apart(outputs(tiny, wide), plainly(tiny, 3)) < ROUNDING


def test_a_window_changes_it_and_is_the_slow_one(tiny: Tiny, monkeypatch) -> None:
    fast = list(outputs(tiny, plan(F, W, W)))
    assert apart(fast, plainly(tiny, 3)) > 100 * ROUNDING
    calls = []

    def slow(q, k, v, geometry, scale=None, seen_S=None):
        calls.append(geometry)
        return dense_windowed(q, k, v, geometry, scale, seen_S)

    monkeypatch.setattr(attention_core, "windowed", slow)
    assert apart(fast, outputs(tiny, plan(F, W, W))) < ROUNDING
    assert len(calls) == 9 and {g.grid for g in calls} == {GRID}


def test_text_is_where_it_is_said_to_be(tiny: Tiny, monkeypatch) -> None:
    """In the first layer the keys of the text know nothing of the video, and all others do."""
    given, keys = tiny.arguments, []

    def watching(q, k, v, geometry, scale=None, seen_S=None):
        text = torch.arange(geometry.tokens)[geometry.text]
        text = text if seen_S is None else text[seen_S[text]]
        keys.append((k[:, :, text], k[:, :, geometry.video]))
        return dense_windowed(q, k, v, geometry, scale, seen_S)

    monkeypatch.setattr(attention_core, "windowed", watching)
    list(outputs(tiny, plan(F, W)))
    other = random(*given(0, 1)["hidden_states"].shape, seed=77)
    tiny.arguments = lambda step, videos: given(step, videos) | {"hidden_states": other}
    list(outputs(tiny, plan(F, W)))
    (text, video), (same_text, other_video) = keys[0], keys[len(keys) // 2]
    assert torch.equal(text, same_text)
    assert (
        text.shape[2]
        == {"none": 0, "first": TEXT_TOKENS, "last": 3}[video_transformer(tiny.model).text]
    )
    assert (video != other_video).any(-1).all()


def test_a_shared_step_repeats_its_attention(tiny: Tiny) -> None:
    """With the same input as the step before, it changes nothing; with another one it does."""
    shared = list(outputs(tiny, plan(F, S)))
    assert torch.equal(shared[0], plainly(tiny, 1)[0])
    assert apart(shared[1:], plainly(tiny, 2)[1:]) > 100 * ROUNDING
    first = tiny.arguments
    tiny.arguments = lambda step, videos: first(0, videos)
    assert apart(outputs(tiny, plan(F, S)), plainly(tiny, 2)) == 0


def test_branches_that_are_alike_may_be_shared(tiny: Tiny) -> None:
    """A batch of twice the same video: what is shared is what would have been computed."""
    first = tiny.arguments

    def twice(step: int, videos: int) -> dict:
        given = first(step, 1)
        return {
            k: torch.cat([x, x]) if isinstance(x, torch.Tensor) else x for k, x in given.items()
        }

    tiny.arguments = twice
    alone = list(outputs(tiny, plan(F, W, F, W), "both"))
    shared = list(outputs(tiny, plan(FB, WB, FB, W), "both"))
    assert apart(shared, alone) < ROUNDING
    for whole in shared:
        assert float((whole[0] - whole[1]).abs().max()) < ROUNDING


def test_two_prompts_of_different_lengths_in_one_batch() -> None:
    """The padding of one prompt hides nothing of the other."""
    tiny = hunyuan()
    wide = plan(F, W, window=tuple(2 * n - 1 for n in GRID))
    assert apart(outputs(tiny, wide, "both", 2), plainly(tiny, 2, 2)) < ROUNDING


def test_padding_is_never_left_unwritten(monkeypatch) -> None:
    """A full layer after a windowed one multiplies what padding holds by nothing: it must be a
    number."""
    monkeypatch.setattr(attention_core.torch, "empty_like", filled_with_nan)
    tiny = hunyuan()
    mixed = AttentionPlan(((F, F, F), (W, F, F)), (3, 1, 3))
    assert all(x.isfinite().all() for x in outputs(tiny, mixed))


def filled_with_nan(x: torch.Tensor, **more) -> torch.Tensor:
    return torch.full_like(x, torch.nan, **more)


def test_a_grid_that_is_not_told_is_refused() -> None:
    tiny = ltx()
    given = tiny.arguments(0, 1) | {"video_coords": torch.zeros(1, 3, 48).double()}
    tiny.arguments = lambda step, videos: {k: v for k, v in given.items() if k != "height"}
    with pytest.raises(CannotRunHere, match="is to be told num_frames, height and width"):
        list(outputs(tiny, plan(F)))
