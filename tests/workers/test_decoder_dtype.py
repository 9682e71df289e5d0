"""Decoding in half precision, of every family: what diffusers gives, whoever decodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    CogVideoXPipeline,
    LTXPipeline,
    StableVideoDiffusionPipeline,
)
from diffusers.video_processor import VideoProcessor

from jobs.arrays import Bundle
from jobs.errors import UnitError
from jobs.families import FAMILIES
from jobs.units import Window
from tests.marks import few
from tests.workers.tiny import encode, piece_task, tiny_worker
from tests.workers.tiny_families import TinyFamily, tiny_family
from workers.bundles import to_bundle
from workers.families import open_family

KINDS = (
    "wan",
    "wan-ti2v",
    "animatediff",
    "svd",
    "cogvideox-2b",
    "ltx",
    "ltx-condition",
    "hunyuan-video",
)
HALVES = ("bfloat16", "float16")


@pytest.fixture(scope="module", params=KINDS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyFamily:
    return tiny_family(request.param, tmp_path_factory.mktemp("tiny"))


def latents_of(tiny: TinyFamily) -> torch.Tensor:
    shot, channels = tiny.shot, open_family(tiny.name, str(tiny.folder), "float32", "cpu")
    size = shot.latent_frames, shot.latent_height, shot.latent_width
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, channels.latent_channels, *size, generator=generator)


def decoded(tiny: TinyFamily, dtype: str, start: int = 0, stop: int | None = None) -> np.ndarray:
    """By a family that has decoded nothing before."""
    family = open_family(tiny.name, str(tiny.folder), "float32", "cpu", (), dtype)
    return family.decode(
        piece_task(tiny.shot, start, stop or tiny.shot.latent_frames),
        latents_of(tiny)[:, :, :stop],
    )


def _wan(vae, latents: torch.Tensor) -> torch.Tensor:
    latents = latents.to(vae.dtype)
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents.dtype)
    std = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(latents.dtype)
    return vae.decode(latents / std + mean, return_dict=False)[0]


def _animatediff(vae, latents: torch.Tensor) -> torch.Tensor:
    here = SimpleNamespace(vae=vae)
    return AnimateDiffPipeline.decode_latents(here, latents.to(vae.dtype), decode_chunk_size=1)


def _svd(vae, latents: torch.Tensor) -> torch.Tensor:
    here, frames = SimpleNamespace(vae=vae), latents.to(vae.dtype).transpose(1, 2).contiguous()
    whole = frames.shape[1]
    return StableVideoDiffusionPipeline.decode_latents(here, frames, whole, whole)


def _cogvideox(vae, latents: torch.Tensor) -> torch.Tensor:
    here = SimpleNamespace(vae=vae, vae_scaling_factor_image=vae.config.scaling_factor)
    frames = latents.to(vae.dtype).transpose(1, 2).contiguous()
    return CogVideoXPipeline.decode_latents(here, frames)


def _ltx(vae, latents: torch.Tensor) -> torch.Tensor:
    """Latents stay in float32 until they are decoded. A decoder may be told the time, 0."""
    scale = vae.config.scaling_factor
    latents = LTXPipeline._denormalize_latents(latents, vae.latents_mean, vae.latents_std, scale)
    latents = latents.to(vae.dtype)
    time = torch.zeros(1, dtype=vae.dtype) if vae.config.timestep_conditioning else None
    return vae.decode(latents, time, return_dict=False)[0]


def _hunyuan_video(vae, latents: torch.Tensor) -> torch.Tensor:
    latents = latents.to(vae.dtype) / vae.config.scaling_factor
    return vae.decode(latents, return_dict=False)[0]


#: What a family's pipeline does with a whole shot's latents: its own functions, and where it has
#: none the lines of its ``__call__``.
DIFFUSERS: dict[str, Callable[..., torch.Tensor]] = {
    "wan": _wan,
    "wan-ti2v": _wan,
    "animatediff": _animatediff,
    "svd": _svd,
    "cogvideox": _cogvideox,
    "ltx": _ltx,
    "ltx-condition": _ltx,
    "hunyuan-video": _hunyuan_video,
}


@torch.no_grad()
@pytest.mark.parametrize("dtype", few(HALVES, "bfloat16"))
def test_a_shot_is_decoded_as_diffusers_does(tiny: TinyFamily, dtype: str) -> None:
    family = open_family(tiny.name, str(tiny.folder), "float32", "cpu", (), dtype)
    assert family.vae.dtype == getattr(torch, dtype)
    pixels = DIFFUSERS[tiny.name](family.vae, latents_of(tiny))
    theirs = VideoProcessor().postprocess_video(pixels, output_type="pil")[0]
    ours = decoded(tiny, dtype)
    assert np.array_equal(ours, np.stack([np.asarray(frame) for frame in theirs]))
    full = decoded(tiny, "float32").astype(int)
    apart = np.abs(ours - full)
    assert apart.max() > 0 and apart.mean() < (1 if dtype == "bfloat16" else 0.2), "of 255"


@pytest.mark.parametrize("dtype", few(HALVES, "bfloat16"))
@pytest.mark.parametrize("tiny", ["wan", "cogvideox-2b"], indirect=True)
def test_a_piece_has_the_same_bits_whoever_decoded_the_one_before(
    tiny: TinyFamily, dtype: str
) -> None:
    """Of the families that go on where they stood."""
    family = open_family(tiny.name, str(tiny.folder), "float32", "cpu", (), dtype)
    latents, shot = latents_of(tiny), tiny.shot
    first = family.decode(piece_task(shot, 0, 3), latents[:, :, :3])
    rest = family.decode(piece_task(shot, 3, shot.latent_frames), latents)
    assert np.array_equal(rest, decoded(tiny, dtype, 3))
    assert np.array_equal(np.concatenate([first, rest]), decoded(tiny, dtype))


def test_what_overflows_is_no_picture(tiny: TinyFamily) -> None:
    """A float16 decoder that becomes NaN would otherwise write black frames."""
    worker = tiny_worker(tiny.folder, family=tiny.name, decoder_dtype="float16")
    for parameter in worker._family.vae.parameters():
        parameter.data *= 1e3
    shot = tiny.shot
    window, whole = Window(0, 0, shot.latent_frames), (0, shot.latent_frames)
    task = dataclasses.replace(piece_task(shot, *whole), windows=(window,), owned=(whole,))
    says = r"the decoded pixels became NaN.* in float16; .*use decoder_dtype bfloat16 or float32"
    with pytest.raises(UnitError, match=says) as caught:
        worker.run(task, [to_bundle({"latents": latents_of(tiny)})])
    assert caught.value.kind == "not_finite"


def test_only_decoding_is_in_half_precision(tiny: TinyFamily) -> None:
    """An image, too, is encoded in float32."""

    def encoded(dtype: str) -> Bundle:
        worker = tiny_worker(tiny.folder, family=tiny.name, decoder_dtype=dtype)
        bundle = encode(worker, tiny.shot)
        assert "vae" not in vars(worker._family), "what decodes is not loaded yet"
        return bundle

    full, half = encoded("float32"), encoded("bfloat16")
    assert {name: array.tobytes() for name, array in full.arrays.items()} == {
        name: array.tobytes() for name, array in half.arrays.items()
    }


def test_every_family_is_here() -> None:
    assert FAMILIES.keys() == DIFFUSERS.keys() == {kind.removesuffix("-2b") for kind in KINDS}
