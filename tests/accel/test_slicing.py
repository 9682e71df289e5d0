"""Slicing: the same result slice by slice, attached from outside and gone without a trace."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from accel import compose
from accel.handle import TileStep
from accel.memory import TensorAccounting
from accel.slicing import apply
from jobs.accelerations import Accelerations, Slicing
from jobs.errors import CannotRunHere
from jobs.units import Unit
from tests.accel import tiny_models
from tests.marks import few

CASES = {
    "motion": tiny_models.motion_unet,
    "motion of odd sizes": partial(tiny_models.motion_unet, height=9, width=7, batch=1),
    "motion without a motion mid block": partial(
        tiny_models.motion_unet, use_motion_mid_block=False
    ),
    "svd": tiny_models.svd_unet,
    "svd of odd sizes": partial(tiny_models.svd_unet, height=9, width=7, batch=1, layers=1),
    "svd's decoder": tiny_models.temporal_decoder,
    "decoder of pictures": tiny_models.decoder,
    "hunyuan video's decoder": tiny_models.hunyuan_video_decoder,
    "hunyuan video's decoder of one frame": partial(tiny_models.hunyuan_video_decoder, 1),
    "hunyuan video's decoder in tiles": partial(tiny_models.hunyuan_video_decoder, 7),
    "cogvideox's decoder": tiny_models.cogvideox_decoder,
    "cogvideox's decoder of one frame": partial(tiny_models.cogvideox_decoder, 1),
    "cogvideox's decoder of an even number": partial(tiny_models.cogvideox_decoder, 4),
    "ltx's decoder": tiny_models.ltx_decoder,
    "ltx's decoder of one frame": partial(tiny_models.ltx_decoder, 1),
    "ltx's decoder, causal": partial(tiny_models.ltx_decoder, decoder_causal=True),
    "ltx's later decoder": partial(tiny_models.ltx_decoder, later=True),
    "wan's decoder": tiny_models.wan_decoder,
    "wan's decoder of one frame": partial(tiny_models.wan_decoder, 1),
    "wan 2.2's decoder": partial(
        tiny_models.wan_decoder,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        decoder_base_dim=16,
    ),
    "wan": tiny_models.wan,
    "wan of image to video": partial(tiny_models.wan, image=True),
    "wan of times per token": partial(tiny_models.wan, times_per_token=True),
    "wan of one time for all tokens": partial(tiny_models.wan, alike=True),
    "cogvideox": tiny_models.cogvideox,
    "cogvideox without rotary embedding": partial(tiny_models.cogvideox, rotary=False),
    "hunyuan video": tiny_models.hunyuan_video,
    "hunyuan video that runs twice": partial(tiny_models.hunyuan_video, guidance=False),
    "ltx": tiny_models.ltx,
    "ltx of times per token": partial(tiny_models.ltx, times_per_token=True),
}


def structure(model: torch.nn.Module) -> list[Any]:
    """The module graph, what every module holds, and all hooks."""
    return [
        (
            name,
            type(module),
            sorted(vars(module)),
            module.forward.__func__,
            len(module._forward_hooks),
        )
        for name, module in model.named_modules()
    ]


def peak(forward: Any) -> int:
    with TensorAccounting() as memory:
        forward()
    return memory.peak_bytes


@pytest.mark.parametrize("slices", few([2, 3, 64], 3))
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_sliced_equals_unsliced(name: str, slices: int) -> None:
    case = CASES[name]()
    before, expected = structure(case.model), case.forward()
    handle = apply(case.model, Slicing(slices=slices))
    got = case.forward()
    assert got.shape == expected.shape and got.abs().max() > 0.01
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
    handle.remove()
    assert structure(case.model) == before
    assert torch.equal(case.forward(), expected)


#: Beside few tokens, an image-to-video model's 512 of text weigh more, and what a model makes of a
#: time for every token is six times as wide as the token.
SLICEABLE = [
    name for name in CASES if name not in ("wan of image to video", "ltx of times per token")
]


@pytest.mark.parametrize("name", few(SLICEABLE, "motion", "svd's decoder", "wan", "wan's decoder"))
@torch.no_grad()
def test_more_slices_need_less_memory(name: str) -> None:
    case = CASES[name]()
    peaks = [peak(case.forward)]
    for slices in (2, 5, 32):
        handle = apply(case.model, Slicing(slices=slices))
        peaks.append(peak(case.forward))
        handle.remove()
    most = 0.75 if name.startswith("wan") and "decoder" in name else 0.6  # what Wan's keep is whole
    assert peaks == sorted(peaks, reverse=True) and peaks[-1] < most * peaks[0]


@torch.no_grad()
def test_it_says_that_it_engaged() -> None:
    case = tiny_models.motion_unet()
    asked = Accelerations(slicing=Slicing(slices=2))
    handle = compose.apply(case.model, compose.attached(asked))
    tile = TileStep(unit=Unit("step", 0))
    case.forward()
    with handle.run(tile, "both"):
        case.forward()
    assert tile.engaged["slicing"] > 10 and not tile.kept


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(CannotRunHere, match=r"does not know Linear; it knows: .*UNetMotionModel"):
        apply(torch.nn.Linear(2, 2), Slicing(slices=2))


def test_a_model_in_training_is_refused() -> None:
    with pytest.raises(CannotRunHere, match=r"call model.eval\(\)"):
        apply(tiny_models.motion_unet().model.train(), Slicing(slices=2))


def test_an_unknown_block_is_named_and_nothing_stays_attached() -> None:
    model = tiny_models.motion_unet().model

    class Other(type(model.up_blocks[1].attentions[0])):
        pass

    model.up_blocks[1].attentions[0].__class__ = Other
    before = structure(model)
    with pytest.raises(CannotRunHere, match=r"does not know up_blocks\.1\.attentions\.0, a Other"):
        apply(model, Slicing(slices=2))
    assert structure(model) == before


def test_what_is_already_attached_to_is_refused() -> None:
    model = tiny_models.motion_unet().model
    model.mid_block.forward = model.mid_block.forward
    with pytest.raises(CannotRunHere, match="something else is attached to mid_block"):
        apply(model, Slicing(slices=2))


@torch.no_grad()
def test_an_attention_that_may_look_at_other_frames_is_refused() -> None:
    model = tiny_models.motion_unet().model
    model.down_blocks[0].attentions[0].transformer_blocks[0].attn1.processor = print
    with pytest.raises(
        CannotRunHere, match=r"attn1 has the attention processor .*it knows: Attn.*without"
    ):
        apply(model, Slicing(slices=2))
