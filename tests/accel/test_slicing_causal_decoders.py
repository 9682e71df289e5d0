"""Decoders by rows: what causal ones keep between batches, and what their real shapes need."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
)
from torch import Tensor
from torch._subclasses import FakeTensorMode

from accel.memory import TensorAccounting
from accel.slicing import apply
from jobs.accelerations import Slicing
from jobs.errors import CannotRunHere
from jobs.families.slicing_memory import sliced_bytes
from tests.accel import tiny_models
from tests.marks import few


def convolutions(kept: dict[str, Any], name: str = "") -> dict[str, Tensor]:
    """What convolutions of time width 3 kept, by name: those of width 1 never read theirs."""
    found: dict[str, Tensor] = {}
    for key, each in kept.items():
        if isinstance(each, dict):
            found |= convolutions(each, f"{name}{key}.")
        elif key not in ("conv_y", "conv_b"):
            found[name + key] = each
    return found


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_the_context_between_batches_is_diffusers() -> None:
    """Batch by batch, the first of one frame, and then without slices from what they kept."""
    vae = tiny_models.cogvideox_decoder().model
    z = torch.randn(1, 4, 7, 3, 2, dtype=torch.float64)
    ours, theirs, handle = None, None, apply(vae, Slicing(slices=3))
    for start, stop in ((0, 1), (1, 3), (3, 5), (5, 7)):
        if start == 5:
            handle.remove()
        frames, ours = vae.decoder(z[:, :, start:stop], conv_cache=ours)
        handle.remove()
        expected, theirs = vae.decoder(z[:, :, start:stop], conv_cache=theirs)
        close(frames, expected)
        close(convolutions(ours), convolutions(theirs))
        handle = apply(vae, Slicing(slices=3))


@pytest.mark.parametrize("residual", [False, True])
@torch.no_grad()
def test_what_wans_convolutions_keep_is_diffusers(residual: bool) -> None:
    """Frame by frame, and then without slices from what they kept."""
    vae = tiny_models.wan_decoder(is_residual=residual).model
    z, both = torch.randn(1, 4, 5, 3, 2, dtype=torch.float64), ([None] * 40, [None] * 40)
    for frame in range(5):
        options = {"first_chunk": frame == 0}
        handle = apply(vae, Slicing(slices=3))
        if frame == 4:
            handle.remove()
        ours = vae.decoder(z[:, :, [frame]], feat_cache=both[0], feat_idx=[0], **options)
        handle.remove()
        close(ours, vae.decoder(z[:, :, [frame]], feat_cache=both[1], feat_idx=[0], **options))
        for mine, theirs in zip(*both, strict=True):
            assert (
                (mine == theirs)
                if theirs is None or theirs == "Rep"
                else close(mine, theirs) is None
            )


@torch.no_grad()
def test_a_batch_takes_the_context_of_the_one_before() -> None:
    """So that no convolution's is held twice but the one that runs."""
    vae = tiny_models.cogvideox_decoder().model
    z = torch.randn(1, 4, 2, 3, 2, dtype=torch.float64)
    apply(vae, Slicing(slices=3))
    _, before = vae.decoder(z)
    assert len(convolutions(before)) == 2 + 2 * (2 + 4 * 2)
    _, after = vae.decoder(z, conv_cache=before)
    assert not convolutions(before) and convolutions(after)


@pytest.mark.parametrize(
    "case",
    [
        tiny_models.hunyuan_video_decoder,
        tiny_models.cogvideox_decoder,
        partial(tiny_models.ltx_decoder, decoder_layers_per_block=(2,) * 4),
        tiny_models.wan_decoder,
    ],
)
def test_an_unknown_block_is_named(case: Any) -> None:
    model = case().model
    resnet = model.decoder.up_blocks[1].resnets[1]
    resnet.__class__ = type("Other", (type(resnet),), {})
    with pytest.raises(CannotRunHere, match=r"decoder\.up_blocks\.1\.resnets\.1, a Other"):
        apply(model, Slicing(slices=2))


def test_a_decoder_that_adds_noise_is_refused() -> None:
    noisy = tiny_models.ltx_decoder(decoder_inject_noise=(False, True, False, False)).model
    with pytest.raises(CannotRunHere, match=r"decoder\.up_blocks\.1\.resnets\.0 adds noise"):
        apply(noisy, Slicing(slices=2))


PUBLISHED: dict[str, tuple[Any, tuple[int, ...], tuple[float, float]]] = {
    "hunyuan video, 1280x720": (AutoencoderKLHunyuanVideo, (5, 90, 160), (72.6, 25.5)),
    "cogvideox, 720x480": (
        lambda: AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
        ),
        (5, 60, 90),
        (31.7, 11.1),
    ),
    "wan 2.1, 832x480": (AutoencoderKLWan, (3, 60, 104), (7.82, 5.68)),
    "ltx video, 704x480": (AutoencoderKLLTXVideo, (21, 15, 22), (7.46, 4.67)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", few(PUBLISHED, "wan 2.1, 832x480", "ltx video, 704x480"))
@torch.no_grad()
def test_what_a_tile_of_the_published_models_needs(name: str) -> None:
    """In GB of live tensors in float32, as diffusers decodes it and in 8 slices."""
    make, latent_size, (most, least) = PUBLISHED[name]
    with FakeTensorMode(allow_non_fake_inputs=True):
        vae = make().eval()
        channels = getattr(vae.config, "latent_channels", None) or vae.config.z_dim
        z = torch.empty(1, channels, *latent_size)
        for slices, most_gb in ((None, most), (8, least)):
            if slices is not None:
                apply(vae, Slicing(slices=slices))
            with TensorAccounting() as memory:
                vae.decode(z)
            assert 0.95 * most_gb < memory.peak_bytes / 1e9 < most_gb
        config = dict(vae.config) | {"_class_name": type(vae).__name__}
    predicted = sliced_bytes(config, latent_size, "float32", 8, text_tokens=0, branches=1)
    assert predicted == pytest.approx(memory.peak_bytes, rel=0.05)
