"""The memory model of unsliced decoders against what is counted while the families decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
)
from torch._subclasses import FakeTensorMode

from accel.memory import TensorAccounting
from accel.slicing import apply
from jobs.accelerations import Slicing
from jobs.families import FAMILIES
from jobs.families.decoding_memory import _MOMENTS, Piece, decoding_bytes
from jobs.families.ltx import decode_reach
from jobs.families.slicing_memory import sliced_decoding_bytes
from tests.marks import few
from tests.workers.tiny import piece_task, tiny_shot
from tests.workers.tiny_ltx import LATER_VAE
from workers.families import FAMILIES as WORKERS_FAMILIES
from workers.lanes import LaneKeeper

TOLERANCE = 0.1

Size = tuple[int, int, int]  # latent frames, height, width


@dataclass(frozen=True)
class Case:
    family: str
    make: Callable[[], torch.nn.Module]


def pictures(widths: tuple[int, ...], layers: int = 1) -> Case:
    kinds = {
        f"{where}_block_types": (f"{where.title()}{side}coderBlock2D",) * len(widths)
        for where, side in (("down", "En"), ("up", "De"))
    }
    config = {"block_out_channels": widths, "layers_per_block": layers}
    return Case("animatediff", lambda: AutoencoderKL(**config, **kinds))


def svd(widths: tuple[int, ...], layers: int = 1) -> Case:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * len(widths)}
    config = {"block_out_channels": widths, "layers_per_block": layers}
    return Case("svd", lambda: AutoencoderKLTemporalDecoder(**config, **kinds))


def wan(**config: Any) -> Case:
    return Case("wan", lambda: AutoencoderKLWan(**config))


def cogvideox(widths: tuple[int, ...], layers: int = 1) -> Case:
    kinds = {
        f"{where}_block_types": (f"CogVideoX{where.title()}Block3D",) * len(widths)
        for where in ("down", "up")
    }
    config = {"block_out_channels": widths, "layers_per_block": layers}
    return Case("cogvideox", lambda: AutoencoderKLCogVideoX(**config, **kinds))


def hunyuan_video(widths: tuple[int, ...], layers: int = 1) -> Case:
    config = {"block_out_channels": widths, "layers_per_block": layers}
    return Case("hunyuan-video", lambda: AutoencoderKLHunyuanVideo(**config))


def ltx(widths: tuple[int, ...], **config: Any) -> Case:
    said = config | {"block_out_channels": widths, "decoder_block_out_channels": widths}
    return Case("ltx", lambda: AutoencoderKLLTXVideo(**said))


SMALL: dict[str, Case] = {
    "animatediff": pictures((32, 64, 64)),
    "animatediff, wide below": pictures((32, 64, 256), 2),
    "svd": svd((32, 64, 64)),
    "svd, alike": svd((32, 32, 32)),
    "wan": wan(base_dim=16),
    "wan, alike": wan(base_dim=16, dim_mult=[1, 1, 1, 1]),
    "wan, wide below": wan(base_dim=16, dim_mult=[1, 8, 8, 8]),
    "wan, residual": wan(base_dim=16, dim_mult=[1, 1, 1, 1], is_residual=True),
    "cogvideox": cogvideox((32, 64, 64)),
    "cogvideox, alike": cogvideox((32, 32, 32)),
    "cogvideox, wide below": cogvideox((32, 64, 256)),
    "hunyuan-video": hunyuan_video((32, 64, 64, 64)),
    "hunyuan-video, alike": hunyuan_video((32, 32, 32, 32), 2),
    "hunyuan-video, wide below": hunyuan_video((32, 64, 256, 256)),
    "ltx": ltx((16, 32, 64, 64)),
    "ltx, causal": ltx((16, 32, 64, 64), decoder_causal=True),
    "ltx, alike": ltx((32, 32, 32, 32)),
    "ltx, later": ltx((32, 64), **LATER_VAE),
}

#: Frames, height and width of the latents of a shot: the quick one, a picture, long, large.
SIZES: tuple[Size, ...] = ((7, 24, 40), (1, 32, 32), (41, 16, 24), (5, 72, 128))

STABLE_DIFFUSION = (128, 256, 512, 512)
LTX_095: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 1024, 2048),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "layers_per_block": (4, 6, 6, 2, 2),
    "spatio_temporal_scaling": (True,) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "decoder_block_out_channels": (256, 512, 1024),
    "decoder_layers_per_block": (5,) * 4,
    "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_inject_noise": (False,) * 4,
    "upsample_residual": (True,) * 3,
    "upsample_factor": (2,) * 3,
    "timestep_conditioning": True,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
WAN_22: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
PUBLISHED: dict[str, tuple[Case, Size]] = {
    "wan, 480p": (wan(), (21, 60, 104)),
    "wan 2.2, 704x1280": (wan(**WAN_22), (3, 44, 80)),
    "svd, 576x1024": (svd(STABLE_DIFFUSION, 2), (14, 72, 128)),
    "animatediff, 576x1024": (pictures(STABLE_DIFFUSION, 2), (16, 72, 128)),
    "animatediff, 512x512": (pictures(STABLE_DIFFUSION, 2), (16, 64, 64)),
    "cogvideox, 480x720": (cogvideox((128, 256, 256, 512), 3), (13, 60, 90)),
    "cogvideox, 768x1360": (cogvideox((128, 256, 256, 512), 3), (13, 96, 170)),
    "ltx, 480x704": (ltx((128, 256, 512, 512)), (21, 15, 22)),
    "ltx 0.9.5, 480x704": (
        Case("ltx", lambda: AutoencoderKLLTXVideo(**LTX_095)),
        (21, 15, 22),
    ),
    "hunyuan video, 720p": (hunyuan_video(STABLE_DIFFUSION, 2), (33, 90, 160)),
    "hunyuan video, 720p, short": (hunyuan_video(STABLE_DIFFUSION, 2), (2, 90, 160)),
}


#: Latent frames of a shot before a piece, and after it.
AROUND = ((0, 0), (0, 40), (20, 20), (40, 0))


@pytest.fixture(autouse=True)
def no_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane knows its latents again by their bits, and fake tensors have none."""
    monkeypatch.setattr("workers.lanes._digest", lambda latent: b"")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def predicted_over_measured(
    case: Case, piece: Piece, dtype: str = "float32", slices: int | None = None
) -> float:
    """Of what a family decodes, up to where a fake tensor's pixels would be read."""
    kind = WORKERS_FAMILIES[case.family]
    family = kind.__new__(kind)  # type: ignore[misc]  # of no folder
    with FakeTensorMode(allow_non_fake_inputs=True):
        with default_dtype(getattr(torch, dtype)):
            family.vae = case.make().eval()
        if slices is not None:
            apply(family.vae, Slicing(slices=slices))
        family._lanes, family._text = LaneKeeper(), None
        config = dict(family.vae.config) | {"_class_name": type(family.vae).__name__}
        back, forth = _context(case.family, config)
        back, forth = min(back, piece.before), min(forth, piece.after)
        channels = config.get("latent_channels") or config["z_dim"]
        size = back + piece.frames + forth, piece.height, piece.width
        latents = torch.empty(1, channels, *size)
        start, stop = piece.before, piece.before + piece.frames
        shot = replace(tiny_shot(), latent_frames=piece.shot_frames)
        task = piece_task(shot, start, stop, start - back)
        with TensorAccounting() as memory, pytest.raises(RuntimeError, match="numpy"):
            family.decode(task, latents)
    if slices is not None:
        return sliced_decoding_bytes(config, piece, dtype, slices) / memory.peak_bytes
    return decoding_bytes(config, piece, dtype) / memory.peak_bytes


def _context(family: str, config: dict[str, Any]) -> tuple[int, int]:
    """Latent frames before and after a piece that are decoded with it."""
    if family == "ltx":
        return decode_reach(config)
    return (4, 1) if family == "hunyuan-video" else (0, 0)


def spread() -> Iterator[Any]:
    """One size of the plain cases is quick, for fake tensors take time by the operator."""
    for name in SMALL:
        for size in SIZES:
            for dtype in ("float32", "float16"):
                quick = size == SIZES[0] and "," not in name and dtype == "float16"
                told = "x".join(map(str, size))
                yield pytest.param(
                    name,
                    size,
                    dtype,
                    marks=() if quick else pytest.mark.long,
                    id=f"{name}-{told}-{dtype}",
                )


@pytest.mark.parametrize("name, size, dtype", spread())
def test_the_model_predicts_what_is_measured(name: str, size: Size, dtype: str) -> None:
    found = predicted_over_measured(SMALL[name], Piece(*size), dtype)
    assert found == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", few(["float32", "bfloat16"], "bfloat16"))
@pytest.mark.parametrize("name", few(PUBLISHED, "svd, 576x1024", "ltx 0.9.5, 480x704"))
def test_published_models_at_their_sizes(name: str, dtype: str) -> None:
    case, size = PUBLISHED[name]
    assert predicted_over_measured(case, Piece(*size), dtype) == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ltx", "ltx, causal", "ltx, later", "hunyuan-video"])
@pytest.mark.parametrize("frames", few([3, 21], 3))
@pytest.mark.parametrize("after", few([0, 21], 21))
def test_a_piece_is_decoded_with_what_it_depends_on(name: str, frames: int, after: int) -> None:
    piece = Piece(frames, 16, 24, before=61 - frames - after, after=after)
    assert predicted_over_measured(SMALL[name], piece) == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, frames, before, after",
    few(
        [
            *((f"ltx{kind}, 480x704", 21, *around) for kind in ("", " 0.9.5") for around in AROUND),
            ("wan, 480p", 3, 0, 20),
            ("wan, 480p", 3, 20, 0),
            ("wan 2.2, 704x1280", 3, 9, 9),
        ],
        ("ltx 0.9.5, 480x704", 21, 20, 20),
    ),
)
@pytest.mark.parametrize(
    "slices, dtype",
    few([(16, "bfloat16"), (2, "float32"), (16, "float32")], (16, "bfloat16")),
)
def test_a_piece_in_slices_with_what_it_depends_on(
    name: str, frames: int, before: int, after: int, slices: int, dtype: str
) -> None:
    case, (_, *size) = PUBLISHED[name]
    piece = Piece(frames, *size, before=before, after=after)
    found = predicted_over_measured(case, piece, dtype, slices)
    assert found == pytest.approx(1, abs=TOLERANCE)


def test_every_family_has_a_memory_model() -> None:
    kinds = {name: WORKERS_FAMILIES[name].vae_kind.__name__ for name in FAMILIES}  # type: ignore[attr-defined]
    assert set(kinds.values()) == set(_MOMENTS)
    assert kinds == {name: each.classes["vae"] for name, each in FAMILIES.items()}
