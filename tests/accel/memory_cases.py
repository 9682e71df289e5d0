"""Models on fake tensors whose peaks are counted: every kind that slicing knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    CogVideoXTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
    WanTransformer3DModel,
)
from torch._subclasses import FakeTensorMode

from accel.memory import TensorAccounting, held_bytes
from accel.slicing import apply
from jobs.accelerations import Slicing

#: What sliced peaks may differ by from what is planned.
TOLERANCE = 0.15

FRAMES = 6  # latent

Size = tuple[int, int, int]  # latent frames, height, width


@dataclass(frozen=True)
class Case:
    make: Callable[[], torch.nn.Module]
    forward: Callable[[torch.nn.Module, Size], Any]  # as the family calls it
    branches: int = 2
    text_tokens: int = 0  # where they count
    patch: int = 1
    marks: Mapping[str, bool] = field(default_factory=dict)  # of the family, beside its config

    def size(self, height: int, width: int) -> Size:
        """Of so many tokens, or places."""
        return FRAMES, self.patch * height, self.patch * width


def motion(
    widths: tuple[int, ...], layers: int, text: tuple[int, int] = (3, 16), heads: int = 2
) -> Case:
    attending = len(widths) - 1
    return Case(
        lambda: UNetMotionModel(
            block_out_channels=widths,
            layers_per_block=layers,
            down_block_types=("CrossAttnDownBlockMotion",) * attending + ("DownBlockMotion",),
            up_block_types=("UpBlockMotion",) + ("CrossAttnUpBlockMotion",) * attending,
            cross_attention_dim=text[1],
            num_attention_heads=heads,
            motion_num_attention_heads=heads,
        ),
        lambda model, size: model(
            torch.empty(2, 4, *size), torch.tensor([5, 5]), torch.empty(2 * size[0], *text)
        ),
    )


def svd(widths: tuple[int, ...], layers: int, image: int = 16, heads: int = 2) -> Case:
    attending = len(widths) - 1
    kinds = "BlockSpatioTemporal"
    return Case(
        lambda: UNetSpatioTemporalConditionModel(
            block_out_channels=widths,
            layers_per_block=layers,
            down_block_types=("CrossAttnDown" + kinds,) * attending + ("Down" + kinds,),
            up_block_types=("Up" + kinds,) + ("CrossAttnUp" + kinds,) * attending,
            cross_attention_dim=image,
            num_attention_heads=(heads,) * len(widths),
        ),
        lambda model, size: model(
            torch.empty(2, size[0], 8, *size[1:]),
            torch.tensor([5, 5]),
            torch.empty(2, 1, image),
            torch.empty(2, 3),
        ),
    )


def wan(
    heads: int,
    ffn: int,
    text_tokens: int = 512,
    head_dim: int = 64,
    layers: int = 2,
    expand_timesteps: bool = False,
) -> Case:
    def time(size: Size) -> torch.Tensor:
        tokens = size[0] * (size[1] // 2) * (size[2] // 2)
        return torch.tensor(5.0).expand(1, tokens) if expand_timesteps else torch.tensor([5])

    def make() -> torch.nn.Module:
        model = WanTransformer3DModel(
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            ffn_dim=ffn,
            num_layers=layers,
            text_dim=16,
        )
        for module in (model, *model.blocks):  # in float32 whatever the rest is, once loaded
            module.scale_shift_table.data = module.scale_shift_table.data.float()
        return model

    return Case(
        make,
        lambda model, size: model(
            torch.empty(1, 16, *size), time(size), torch.empty(1, text_tokens, 16)
        ),
        branches=1,
        text_tokens=text_tokens,
        patch=2,
        marks={"expand_timesteps": expand_timesteps},
    )


def ltx(text_tokens: int = 32, heads: int = 4, branches: int = 1, layers: int = 2) -> Case:
    return Case(
        lambda: LTXVideoTransformer3DModel(
            num_attention_heads=heads,
            cross_attention_dim=64 * heads,
            num_layers=layers,
            caption_channels=16,
        ),
        lambda model, size: model(
            torch.empty(branches, size[0] * size[1] * size[2], 128),
            torch.empty(branches, text_tokens, 16),
            torch.tensor([5] * branches),
            torch.empty(branches, text_tokens),
            num_frames=size[0],
            height=size[1],
            width=size[2],
        ),
        branches=branches,
        text_tokens=text_tokens,
    )


def cogvideox(heads: int = 4, text_tokens: int = 40, rotary: bool = True, layers: int = 2) -> Case:
    def forward(model: torch.nn.Module, size: Size) -> Any:
        tokens = size[0] * (size[1] // 2) * (size[2] // 2)
        places = (torch.empty(tokens, 64, dtype=torch.float32),) * 2
        return model(
            torch.empty(2, size[0], 16, *size[1:]),
            torch.empty(2, text_tokens, 16),
            torch.tensor([5, 5]),
            image_rotary_emb=places if rotary else None,
        )

    return Case(
        lambda: CogVideoXTransformer3DModel(
            num_attention_heads=heads,
            num_layers=layers,
            text_embed_dim=16,
            max_text_seq_length=text_tokens,
            use_rotary_positional_embeddings=rotary,
        ),
        forward,
        patch=2,
    )


def hunyuan_video(text_tokens: int = 256, heads: int = 3) -> Case:
    return Case(
        lambda: HunyuanVideoTransformer3DModel(
            num_attention_heads=heads,
            num_layers=2,
            num_single_layers=2,
            num_refiner_layers=1,
            text_embed_dim=16,
            pooled_projection_dim=8,
        ),
        lambda model, size: model(
            torch.empty(1, 16, *size),
            torch.tensor([5]),
            torch.empty(1, text_tokens, 16),
            torch.ones(1, text_tokens, dtype=torch.long),
            torch.empty(1, 8),
            torch.empty(1),
        ),
        branches=1,
        text_tokens=text_tokens,
        patch=2,
    )


WIDTHS = {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2}
TEMPORAL_DECODER = Case(
    lambda: AutoencoderKLTemporalDecoder(**WIDTHS),
    lambda model, size: model.decode(torch.empty(size[0], 4, *size[1:]), size[0]),
)
DECODER = Case(
    lambda: AutoencoderKL(up_block_types=("UpDecoderBlock2D",) * 2, **WIDTHS),
    lambda model, size: model.decode(torch.empty(size[0], 4, *size[1:])),
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
        lambda model, size: model.decode(torch.empty(1, 16, *size)),
        branches=1,
    )


def cogvideox_decoder(widths: tuple[int, ...] = (32, 64, 64)) -> Case:
    kinds = {
        f"{where}_block_types": (f"CogVideoX{where.title()}Block3D",) * len(widths)
        for where in ("down", "up")
    }
    return Case(
        lambda: AutoencoderKLCogVideoX(block_out_channels=widths, layers_per_block=1, **kinds),
        lambda model, size: model.decode(torch.empty(1, 16, *size)),
        branches=1,
    )


def ltx_decoder(widths: tuple[int, ...] = (128, 256, 256), **config: Any) -> Case:
    doubles, counts = (True,) * len(widths), (1,) * (len(widths) + 1)
    said = {
        "block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "down_block_types": ("LTXVideoDownBlock3D",) * len(widths),
        "layers_per_block": counts,
        "decoder_layers_per_block": counts,
        "spatio_temporal_scaling": doubles,
        "decoder_spatio_temporal_scaling": doubles,
        "decoder_inject_noise": (False,) * len(counts),
        "downsample_type": ("conv",) * len(widths),
        "upsample_residual": (False,) * len(widths),
        "upsample_factor": (1,) * len(widths),
    }
    later = config.get("timestep_conditioning")
    return Case(
        lambda: AutoencoderKLLTXVideo(**said | config),
        lambda model, size: model.decode(
            torch.empty(1, 128, *size), torch.zeros(1) if later else None
        ),
        branches=1,
    )


def wan_decoder(**config: Any) -> Case:
    return Case(
        lambda: AutoencoderKLWan(**config),
        lambda model, size: model.decode(torch.empty(1, 16, *size)),
        branches=1,
    )


LATER_LTX = {
    "upsample_residual": (True,) * 3, "upsample_factor": (2,) * 3, "timestep_conditioning": True
}  # fmt: skip

DENOISERS = {
    "motion": motion((64, 128), 2),
    "motion, wide below": motion((32, 256), 2),
    "motion, three levels": motion((64, 64, 128), 2),
    "svd": svd((64, 128), 1),
    "svd, wide below": svd((32, 256), 2),
    "wan": wan(4, 1536),
    "wan with long text": wan(4, 1536, 2048),
    "wan, small feed-forward": wan(6, 512),
    "wan-ti2v": wan(4, 1536, expand_timesteps=True),
    "wan-ti2v, small feed-forward": wan(6, 512, expand_timesteps=True),
    "cogvideox": cogvideox(),
    "hunyuan video": hunyuan_video(),
    "hunyuan video with long text": hunyuan_video(768),
    "hunyuan video with text of 2048": hunyuan_video(2048),
    "hunyuan video with text of 4096": hunyuan_video(4096),
    "ltx": ltx(),
    "ltx with long text": ltx(4096),
}
DECODERS = {
    "temporal decoder": TEMPORAL_DECODER,
    "decoder": DECODER,
    "hunyuan video decoder": hunyuan_video_decoder(),
    "hunyuan video decoder, alike": hunyuan_video_decoder((32, 32, 32), 2),
    "hunyuan video decoder, wide below": hunyuan_video_decoder((32, 64, 256)),
    "cogvideox decoder": cogvideox_decoder(),
    "cogvideox decoder, alike": cogvideox_decoder((32, 32, 32)),
    "cogvideox decoder, wide below": cogvideox_decoder((32, 64, 256)),
    "ltx decoder": ltx_decoder(),
    "ltx decoder, alike": ltx_decoder((32, 32, 32), patch_size=1),
    "ltx decoder, wide below": ltx_decoder((128, 256, 1024)),
    "ltx decoder, later": ltx_decoder((256, 512, 1024), **LATER_LTX),
    "wan decoder": wan_decoder(base_dim=32),
    "wan decoder, alike": wan_decoder(base_dim=32, dim_mult=[1, 1, 1, 1]),
    "wan decoder, wide below": wan_decoder(base_dim=32, dim_mult=[1, 2, 8, 8]),
    "wan decoder, residual": wan_decoder(base_dim=32, is_residual=True),
}

STABLE_DIFFUSION = (320, 640, 1280, 1280)

#: Published models, with fewer layers where all are alike, at sizes that they are used at.
PUBLISHED: dict[str, tuple[Case, Size]] = {
    "wan 1.3B, 480p": (wan(12, 8960, head_dim=128), (21, 60, 104)),
    "wan 2.2 5B, 704x1280": (
        wan(24, 14336, head_dim=128, expand_timesteps=True),
        (31, 44, 80),
    ),
    "wan 14B, 720p": (wan(40, 13824, head_dim=128), (21, 90, 160)),
    "svd, 576x1024": (svd(STABLE_DIFFUSION, 2, image=1024, heads=5), (14, 72, 128)),
    "animatediff, 576x1024": (motion(STABLE_DIFFUSION, 2, (77, 768), heads=8), (16, 72, 128)),
    "animatediff, 512x512": (motion(STABLE_DIFFUSION, 2, (77, 768), heads=8), (16, 64, 64)),
    "cogvideox 2b, 480x720": (cogvideox(30, 226, rotary=False), (13, 60, 90)),
    "cogvideox 5b, 480x720": (cogvideox(48, 226), (13, 60, 90)),
    "ltx, 480x704": (ltx(128, heads=32, branches=2), (21, 15, 22)),
    "hunyuan video, 720p": (hunyuan_video(heads=24), (33, 90, 160)),
}

#: Of these, what ``make test`` has time for.
PUBLISHED_FEW = ("wan 1.3B, 480p",)

#: With text of a sixth of a tile's 1536 tokens, of about as many, and of many more; and a dtype.
BESIDE_TEXT = [
    pytest.param(make(text_tokens=tokens), dtype, marks=() if tokens == 4096 else pytest.mark.long)
    for make in (partial(wan, 8, 1400), ltx, hunyuan_video)
    for tokens in (256, 1024, 4096)
    for dtype in ("float16", "float32")
]


@torch.no_grad()
def measure(
    case: Case, latent_size: Size, dtype: str, slices: int | None
) -> tuple[int, int, dict[str, Any]]:
    """Bytes of weights and of activations, on fake tensors; the config. None: not sliced."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = case.make().eval()
            if slices is not None:
                apply(model, Slicing(slices=slices))
            with TensorAccounting() as memory:
                case.forward(model, latent_size)
            config = dict(model.config) | {"_class_name": type(model).__name__} | case.marks
            return held_bytes(model), memory.peak_bytes, config
    finally:
        torch.set_default_dtype(before)
