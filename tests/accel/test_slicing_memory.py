"""The memory model of slicing against what the accounting measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLTemporalDecoder,
    CogVideoXTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
    WanTransformer3DModel,
)
from torch._subclasses import FakeTensorMode

from accel.memory import TensorAccounting, held_bytes
from accel.slicing import MODELS, apply
from jobs.accelerations import Slicing
from jobs.errors import CannotRunHere
from jobs.families import FAMILIES
from jobs.families.slicing_memory import _GROUPS, fewest_slices, sliced_bytes

TOLERANCE = 0.15
FRAMES = 6


@dataclass(frozen=True)
class Case:
    make: Callable[[], torch.nn.Module]
    forward: Callable[[torch.nn.Module, int, int], Any]
    branches: int = 2
    text_tokens: int = 0  # where they count


def motion(widths: tuple[int, ...], layers: int) -> Case:
    attending = len(widths) - 1
    return Case(
        lambda: UNetMotionModel(
            block_out_channels=widths,
            layers_per_block=layers,
            down_block_types=("CrossAttnDownBlockMotion",) * attending + ("DownBlockMotion",),
            up_block_types=("UpBlockMotion",) + ("CrossAttnUpBlockMotion",) * attending,
            cross_attention_dim=16,
            num_attention_heads=2,
            motion_num_attention_heads=2,
        ),
        lambda model, height, width: model(
            torch.empty(2, 4, FRAMES, height, width),
            torch.tensor([5, 5]),
            torch.empty(2 * FRAMES, 3, 16),
        ),
    )


def svd(widths: tuple[int, ...], layers: int) -> Case:
    attending = len(widths) - 1
    kinds = "BlockSpatioTemporal"
    return Case(
        lambda: UNetSpatioTemporalConditionModel(
            block_out_channels=widths,
            layers_per_block=layers,
            down_block_types=("CrossAttnDown" + kinds,) * attending + ("Down" + kinds,),
            up_block_types=("Up" + kinds,) + ("CrossAttnUp" + kinds,) * attending,
            cross_attention_dim=16,
            num_attention_heads=(2,) * len(widths),
        ),
        lambda model, height, width: model(
            torch.empty(2, FRAMES, 8, height, width),
            torch.tensor([5, 5]),
            torch.empty(2, 1, 16),
            torch.empty(2, 3),
        ),
    )


def wan(heads: int, ffn: int, text_tokens: int = 512, layers: int = 2) -> Case:
    return Case(
        lambda: WanTransformer3DModel(
            num_attention_heads=heads,
            attention_head_dim=64,
            ffn_dim=ffn,
            num_layers=layers,
            text_dim=16,
        ),
        lambda model, height, width: model(
            torch.empty(1, 16, FRAMES, 2 * height, 2 * width),
            torch.tensor([5]),
            torch.empty(1, text_tokens, 16),
        ),
        branches=1,
        text_tokens=text_tokens,
    )


def ltx(text_tokens: int = 32, layers: int = 2) -> Case:
    return Case(
        lambda: LTXVideoTransformer3DModel(
            num_attention_heads=4, cross_attention_dim=256, num_layers=layers, caption_channels=16
        ),
        lambda model, height, width: model(
            torch.empty(1, FRAMES * height * width, 128),
            torch.empty(1, text_tokens, 16),
            torch.tensor([5]),
            torch.empty(1, text_tokens),
            num_frames=FRAMES,
            height=height,
            width=width,
        ),
        branches=1,
        text_tokens=text_tokens,
    )


def cogvideox(layers: int = 2) -> Case:
    return Case(
        lambda: CogVideoXTransformer3DModel(
            num_attention_heads=4,
            num_layers=layers,
            text_embed_dim=16,
            max_text_seq_length=40,
            use_rotary_positional_embeddings=True,
        ),
        lambda model, height, width: model(
            torch.empty(2, FRAMES, 16, 2 * height, 2 * width),
            torch.empty(2, 40, 16),
            torch.tensor([5, 5]),
            image_rotary_emb=(torch.empty(FRAMES * height * width, 64),) * 2,
        ),
    )


def hunyuan_video(text_tokens: int = 256) -> Case:
    return Case(
        lambda: HunyuanVideoTransformer3DModel(
            num_attention_heads=3,
            num_layers=2,
            num_single_layers=2,
            num_refiner_layers=1,
            text_embed_dim=16,
            pooled_projection_dim=8,
        ),
        lambda model, height, width: model(
            torch.empty(1, 16, FRAMES, 2 * height, 2 * width),
            torch.tensor([5]),
            torch.empty(1, text_tokens, 16),
            torch.ones(1, text_tokens, dtype=torch.long),
            torch.empty(1, 8),
            torch.empty(1),
        ),
        branches=1,
        text_tokens=text_tokens,
    )


WIDTHS = {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2}
TEMPORAL_DECODER = Case(
    lambda: AutoencoderKLTemporalDecoder(**WIDTHS),
    lambda model, height, width: model.decode(torch.empty(FRAMES, 4, height, width), FRAMES),
)
DECODER = Case(
    lambda: AutoencoderKL(up_block_types=("UpDecoderBlock2D",) * 2, **WIDTHS),
    lambda model, height, width: model.decode(torch.empty(FRAMES, 4, height, width)),
)


def hunyuan_video_decoder(widths: tuple[int, ...] = (32, 64, 64), layers: int = 1) -> Case:
    kinds = {
        f"{where}_block_types": (f"HunyuanVideo{where.title()}Block3D",) * len(widths)
        for where in ("down", "up")
    }
    return Case(
        lambda: AutoencoderKLHunyuanVideo(
            block_out_channels=widths, layers_per_block=layers, spatial_compression_ratio=4, **kinds
        ),
        lambda model, height, width: model.decode(torch.empty(1, 16, FRAMES, height, width)),
        branches=1,
    )


def cogvideox_decoder(widths: tuple[int, ...] = (32, 64, 64)) -> Case:
    kinds = {
        f"{where}_block_types": (f"CogVideoX{where.title()}Block3D",) * len(widths)
        for where in ("down", "up")
    }
    return Case(
        lambda: AutoencoderKLCogVideoX(block_out_channels=widths, layers_per_block=1, **kinds),
        lambda model, height, width: model.decode(torch.empty(1, 16, FRAMES, height, width)),
        branches=1,
    )


CASES = {
    "motion": motion((64, 128), 2),
    "motion, wide below": motion((32, 256), 2),
    "motion, three levels": motion((64, 64, 128), 2),
    "svd": svd((64, 128), 1),
    "svd, wide below": svd((32, 256), 2),
    "wan": wan(4, 1536),
    "wan with long text": wan(4, 1536, 2048),
    "wan, small feed-forward": wan(6, 512),
    "cogvideox": cogvideox(),
    "hunyuan video": hunyuan_video(),
    "hunyuan video with long text": hunyuan_video(768),
    "hunyuan video with text of 2048": hunyuan_video(2048),
    "hunyuan video with text of 4096": hunyuan_video(4096),
    "ltx": ltx(),
    "ltx with long text": ltx(4096),
    "temporal decoder": TEMPORAL_DECODER,
    "decoder": DECODER,
    "hunyuan video decoder": hunyuan_video_decoder(),
    "hunyuan video decoder, alike": hunyuan_video_decoder((32, 32, 32), 2),
    "hunyuan video decoder, wide below": hunyuan_video_decoder((32, 64, 256)),
    "cogvideox decoder": cogvideox_decoder(),
    "cogvideox decoder, alike": cogvideox_decoder((32, 32, 32)),
    "cogvideox decoder, wide below": cogvideox_decoder((32, 64, 256)),
}


@torch.no_grad()
def measure(
    case: Case, height: int, width: int, slices: int | None
) -> tuple[int, int, dict[str, Any]]:
    """Bytes of weights and of activations, on fake tensors of the default dtype; the config. None:
    not sliced."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = case.make().eval()
        if slices is not None:
            apply(model, Slicing(slices=slices))
        with TensorAccounting() as memory:
            case.forward(model, height, width)
        config = dict(model.config) | {"_class_name": type(model).__name__}
        return held_bytes(model), memory.peak_bytes, config


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
            yield pytest.param(name, *run, marks=() if quick else pytest.mark.slow)


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name, height, width, slices, dtype", spread())
def test_the_model_predicts_what_is_measured(
    name: str, height: int, width: int, slices: int, dtype: str, default_dtype: Any
) -> None:
    default_dtype(getattr(torch, dtype))
    case = CASES[name]
    weights, activations, config = measure(case, height, width, slices)
    size = latent_size(config, height, width)
    given = {"branches": case.branches, "text_tokens": case.text_tokens}
    predicted = sliced_bytes(config, size, dtype, slices, **given)
    assert predicted == pytest.approx(activations, rel=TOLERANCE)
    whole = sliced_bytes(config, size, dtype, slices, **given, weights_bytes=weights)
    assert whole == predicted + weights


def latent_size(config: dict[str, Any], height: int, width: int) -> tuple[int, int, int]:
    patched = config.get("patch_size") in (2, (1, 2, 2))
    return (FRAMES, height * 2, width * 2) if patched else (FRAMES, height, width)


#: A tile of 1536 tokens, with text of about as many, and of many more.
BESIDE_TEXT = [
    pytest.param(family, make, tokens, dtype, marks=() if tokens == 4096 else pytest.mark.slow)
    for family, make in (
        ("wan", partial(wan, 8, 1400)),
        ("ltx", ltx),
        ("hunyuan-video", hunyuan_video),
    )
    for tokens in (256, 1024, 4096)
    for dtype in ("float16", "float32")
]


@pytest.mark.parametrize("family, make, tokens, dtype", BESIDE_TEXT)
def test_long_text_beside_a_small_tile(
    family: str, make: Any, tokens: int, dtype: str, default_dtype: Any
) -> None:
    """In slices the estimate is near; without them it is one number of copies for all shapes, and
    errs on the side of more."""
    default_dtype(getattr(torch, dtype))
    case = make(text_tokens=tokens)
    _, activations, config = measure(case, 16, 16, 4)
    size = latent_size(config, 16, 16)
    predicted = sliced_bytes(config, size, dtype, 4, branches=1, text_tokens=tokens)
    assert predicted == pytest.approx(activations, rel=TOLERANCE)
    _, activations, config = measure(case, 16, 16, None)
    whole = FAMILIES[family].denoise_bytes({"transformer": config}, size, dtype, tokens)
    branches = 2 if FAMILIES[family].batches_branches else 1
    assert 0.9 < whole / branches / activations < 2


def test_text_that_runs_beside_the_video_is_held_in_four_copies() -> None:
    config = {
        "_class_name": "HunyuanVideoTransformer3DModel", "patch_size": 2, "patch_size_t": 1,
        "num_attention_heads": 3, "attention_head_dim": 128,
    }  # fmt: skip
    few, many = (
        sliced_bytes(config, (FRAMES, 64, 64), "float16", 6, text_tokens=tokens, branches=1)
        for tokens in (256, 1024)
    )
    assert many - few == 4 * 768 * 3 * 128 * 2


def test_every_model_that_slicing_knows_has_a_memory_model() -> None:
    assert sorted(_GROUPS) == sorted(MODELS)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(CannotRunHere, match="does not know DiT; it knows: AutoencoderKL, "):
        sliced_bytes({"_class_name": "DiT"}, (1, 8, 8), "float32", 2, text_tokens=0)


def test_a_budget_gives_slices_that_keep_it() -> None:
    case, budget_bytes = CASES["wan"], 36_000_000
    weights, _, config = measure(case, 32, 32, 2)
    about = {"branches": case.branches, "text_tokens": 512, "weights_bytes": weights}
    predict = partial(sliced_bytes, config, (FRAMES, 64, 64), "float32", **about)
    slices = fewest_slices(predict, weights + budget_bytes)
    assert slices > 2
    _, activations, _ = measure(case, 32, 32, slices)
    assert activations < budget_bytes * (1 + TOLERANCE)
    _, too_few, _ = measure(case, 32, 32, slices - 1)
    assert too_few > budget_bytes * (1 - TOLERANCE)


def test_the_fewest_slices_that_fit() -> None:
    assert fewest_slices(lambda slices: 100 + 1000 // slices, 250) == 7
    assert fewest_slices(lambda slices: 100, 100) == 2
    assert fewest_slices(lambda slices: 101, 100) is None
