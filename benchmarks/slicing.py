"""What slicing saves in memory, at the sizes of the Streamlined Inference paper, and its time.

    python -m benchmarks.slicing
    python -m benchmarks.slicing --decoders

Peaks are counted tensor by tensor (``accel.memory``) on fake tensors of the real shapes, in float16
with guidance, so that no weights and no card are needed; workspaces inside operators and the
allocator's rounding are not in them. Stock is diffusers as it comes: all weights loaded, attention
by SDPA, all frames decoded at once. Sliced has the same weights loaded, and the decoder sliced too.
``as_a_worker_holds_it`` is what a render holds, its decoder in either precision: encoders are freed
before the first step, and a decoder goes picture by picture or in slices. Times are small models'
on one thread of this CPU, which say little of a card. ``--decoders``: of the decoders of
HunyuanVideo, CogVideoX, LTX-Video and Wan instead, in both precisions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
    WanTransformer3DModel,
)
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from accel.memory import TensorAccounting, held_bytes
from accel.slicing import apply
from benchmarks.common import write_result
from benchmarks.small_models import (
    Forward,
    published_animatediff,
    published_svd,
    published_svd_decoder,
    small_animatediff,
    small_svd,
    small_svd_decoder,
    small_wan_decoder,
)
from jobs.accelerations import Slicing
from jobs.families.family import DTYPE_BYTES
from jobs.families.slicing_memory import DECODERS as SLICED_DECODERS
from jobs.families.slicing_memory import sliced_bytes

SIZES = {"576x1024": (72, 128), "512x512": (64, 64)}  # px, and the latents' size
DECODER_WIDTHS = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "layers_per_block": 2,
}


#: Of the models here, Wan's alone counts text.
WAN_TEXT_TOKENS = 512


@dataclass(frozen=True)
class Phase:
    """A model that runs, by itself, while the others are loaded."""

    name: str
    model: Any
    forward: Callable[[], Any]
    latent_size: tuple[int, int, int]
    branches: int

    def predicted(self, slices: int, dtype: str) -> int:
        """What the memory model makes of its activations, in bytes."""
        config = {**self.model.config, "_class_name": type(self.model).__name__}
        size, branches = self.latent_size, self.branches
        return sliced_bytes(
            config, size, dtype, slices, text_tokens=WAN_TEXT_TOKENS, branches=branches
        )


@dataclass(frozen=True)
class Pipeline:
    weights: dict[str, int]  # bytes
    phases: tuple[Phase, ...]


def animatediff(height: int, width: int, frames: int = 16) -> Pipeline:
    """Stable Diffusion 1.5 with the motion modules v1-5-2."""
    unet = UNetMotionModel(cross_attention_dim=768, num_attention_heads=8, motion_max_seq_length=32)
    vae = AutoencoderKL(up_block_types=("UpDecoderBlock2D",) * 4, **DECODER_WIDTHS)
    text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
        )
    )
    x, text = torch.randn(2, 4, frames, height, width), torch.randn(2 * frames, 77, 768)
    z, t = torch.randn(frames, 4, height, width), torch.tensor([5, 5])
    return _pipeline(
        {"unet": unet, "vae": vae, "text_encoder": text_encoder},
        (frames, height, width),
        unet=lambda: unet(x, t, encoder_hidden_states=text),
        vae=lambda: vae.decode(z),
    )


def svd(height: int, width: int, frames: int = 14) -> Pipeline:
    """Stable Video Diffusion."""
    unet = UNetSpatioTemporalConditionModel(num_frames=frames)
    vae = AutoencoderKLTemporalDecoder(**DECODER_WIDTHS)
    image_encoder = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=16,
            patch_size=14,
            projection_dim=1024,
        )
    )
    x, image = torch.randn(2, frames, 8, height, width), torch.randn(2, 1, 1024)
    z, t, ids = torch.randn(frames, 4, height, width), torch.tensor([5, 5]), torch.randn(2, 3)
    return _pipeline(
        {"unet": unet, "vae": vae, "image_encoder": image_encoder},
        (frames, height, width),
        unet=lambda: unet(x, t, image, ids),
        vae=lambda: vae.decode(z, num_frames=frames),
    )


def wan(height: int, width: int, frames: int = 21) -> Pipeline:
    """Wan 2.1 1.3B's transformer, one guidance branch; its decoder goes frame by frame anyway."""
    model = WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30)
    x, text = torch.randn(1, 16, frames, height, width), torch.randn(1, WAN_TEXT_TOKENS, 4096)
    t = torch.tensor([5])
    forward = {"transformer": lambda: model(x, t, text)}
    return _pipeline({"transformer": model}, (frames, height, width), branches=1, **forward)


def hunyuan_video_decoder() -> Pipeline:
    """A tile in time of 1280x720."""
    vae, z = AutoencoderKLHunyuanVideo(), torch.empty(1, 16, 5, 90, 160)
    return _pipeline({"vae": vae}, z.shape[2:], branches=1, vae=lambda: vae.decode(z))


def cogvideox_decoder() -> Pipeline:
    """Two batches of 720x480."""
    kinds = {
        f"{way}_block_types": (f"CogVideoX{way.title()}Block3D",) * 4 for way in ("down", "up")
    }
    vae, z = AutoencoderKLCogVideoX(**kinds), torch.empty(1, 16, 5, 60, 90)
    return _pipeline({"vae": vae}, z.shape[2:], branches=1, vae=lambda: vae.decode(z))


def wan_decoder() -> Pipeline:
    """Three latent frames, one after the other, of 1280x720: more take no more."""
    vae, z = AutoencoderKLWan(), torch.empty(1, 16, 3, 90, 160)
    return _pipeline({"vae": vae}, z.shape[2:], branches=1, vae=lambda: vae.decode(z))


def ltx_decoder() -> Pipeline:
    """A shot of 6.4 s at 704x480."""
    vae, z = AutoencoderKLLTXVideo(), torch.empty(1, 128, 21, 15, 22)
    return _pipeline({"vae": vae}, z.shape[2:], branches=1, vae=lambda: vae.decode(z))


DECODERS = {
    "hunyuan video 720x1280x17": hunyuan_video_decoder,
    "cogvideox 480x720x17": cogvideox_decoder,
    "ltx 480x704x161": ltx_decoder,
    "wan 720x1280x9": wan_decoder,
}


def _pipeline(
    models: dict[str, Any],
    latent_size: tuple[int, int, int],
    *,
    branches: int = 2,
    **forwards: Callable[[], Any],
) -> Pipeline:
    phases = tuple(
        Phase(name, models[name].eval(), run, latent_size, branches)
        for name, run in forwards.items()
    )
    return Pipeline({name: held_bytes(model) for name, model in models.items()}, phases)


def activations(phase: Phase) -> int:
    with TensorAccounting() as memory:
        phase.forward()
    return memory.peak_bytes


def sliced_activations(phase: Phase, slices: int) -> int:
    handle = apply(phase.model, Slicing(slices=slices))
    try:
        return activations(phase)
    finally:
        handle.remove()


@torch.no_grad()
def peaks(
    make: Callable[[], Pipeline], slices: Sequence[int], dtype: str = "float16"
) -> dict[str, Any]:
    """Bytes; ``peak`` has all weights in it, and ``ratio`` is that of the peaks."""
    torch.set_default_dtype(getattr(torch, dtype))
    with FakeTensorMode(allow_non_fake_inputs=True):
        pipeline = make()
        rows = {"stock": {phase.name: activations(phase) for phase in pipeline.phases}}
        for count in slices:
            rows[str(count)] = {p.name: sliced_activations(p, count) for p in pipeline.phases}
    torch.set_default_dtype(torch.float32)
    predicted = {
        str(count): {phase.name: phase.predicted(count, dtype) for phase in pipeline.phases}
        for count in slices
    }
    weights = sum(pipeline.weights.values())
    stock = weights + max(rows["stock"].values())
    return {
        "weights_bytes": pipeline.weights,
        "by_slices": {
            name: {
                "activations_bytes": row,
                "peak_bytes": weights + max(row.values()),
                "ratio": round((weights + max(row.values())) / stock, 3),
            }
            for name, row in rows.items()
        },
        "predicted_activations_bytes": predicted,
    }


@torch.no_grad()
def as_a_worker_holds_it(
    make: Callable[[], Pipeline], slices: int, decoder_dtype: str
) -> dict[str, int]:
    """Bytes in each of a render's phases: its denoiser in float16, beside the encoders (and, of an
    image, the autoencoder in float32), then beside the decoder."""
    steps, weights = _made(make, "float16", lambda unet, _: sliced_activations(unet, slices))
    decoding, decoder = _made(make, decoder_dtype, lambda _, vae: _decoding(vae, slices))
    encoders = {name: size for name, size in weights.items() if name not in ("unet", "vae")}
    if "image_encoder" in encoders:
        encoders["vae"] = weights["vae"] * DTYPE_BYTES["float32"] // DTYPE_BYTES["float16"]
    beside = weights["unet"] + decoder["vae"]
    phases = {
        "encoding, without what it makes": weights["unet"] + sum(encoders.values()),
        "denoising": beside + steps,
        "decoding": beside + decoding,
    }
    return phases | {"peak": max(phases.values())}


def _made(
    make: Callable[[], Pipeline], dtype: str, count: Callable[[Phase, Phase], int]
) -> tuple[int, dict[str, int]]:
    """What is counted of a pipeline in a dtype, and its weights, in bytes."""
    torch.set_default_dtype(getattr(torch, dtype))
    with FakeTensorMode(allow_non_fake_inputs=True):
        pipeline = make()
        found = count(*pipeline.phases)
    torch.set_default_dtype(torch.float32)
    return found, pipeline.weights


def _decoding(phase: Phase, slices: int) -> int:
    """As a worker decodes: in slices where its decoder is one that they cut."""
    if type(phase.model).__name__ in SLICED_DECODERS:
        return sliced_activations(phase, slices)
    return _picture_by_picture(phase)


def _picture_by_picture(phase: Phase) -> int:
    frames, height, width = phase.latent_size
    z = torch.randn(frames, phase.model.config.latent_channels, height, width)
    with TensorAccounting() as memory:
        torch.stack([phase.model.decode(each[None]).sample for each in z])
    return memory.peak_bytes


@torch.no_grad()
def operations(make: Callable[[], Pipeline], slices: Sequence[int]) -> dict[str, float]:
    """Of products and convolutions, a sliced pass's over a stock one's: rows that two slices see,
    and the widest features, are made twice."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        (phase,) = make().phases
        counted = {}
        for count in (None, *slices):
            handle = apply(phase.model, Slicing(slices=count)) if count else None
            with FlopCounterMode(display=False) as counter:
                phase.forward()
            counted[str(count)] = counter.get_total_flops()
            if handle is not None:
                handle.remove()
    return {str(count): round(counted[str(count)] / counted["None"], 3) for count in slices}


#: A UNet of each kind, a decoder of whole clips, and one that goes frame by frame.
TIMED: dict[str, Callable[[], tuple[Any, Forward]]] = {
    "animatediff, unet": partial(small_animatediff, frames=16),
    "svd, unet": small_svd,
    "svd, decoder": small_svd_decoder,
    "wan, decoder": small_wan_decoder,
}


#: Those that cost time, at the widths that they are published with.
TIMED_AS_PUBLISHED: dict[str, Callable[[], tuple[Any, Forward]]] = {
    "animatediff, unet": published_animatediff,
    "svd, unet": published_svd,
    "svd, decoder": published_svd_decoder,
}


@torch.no_grad()
def time_ratios(
    make: Callable[[], tuple[Any, Forward]], slices: Sequence[int], repeats: int
) -> dict[str, Any]:
    """Processor seconds of a model's pass in float32, on one thread, stock and sliced taking
    turns."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, forward = make()
    model.eval()
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats):
        for count in (None, *slices):
            handle = apply(model, Slicing(slices=count)) if count else None
            start = time.process_time()
            forward()
            seconds.setdefault(str(count or "stock"), []).append(time.process_time() - start)
            if handle is not None:
                handle.remove()
    middle = {name: median(times) for name, times in seconds.items()}
    ratios = {name: round(middle[name] / middle["stock"], 3) for name in middle}
    return {"median_s": middle, "ratio": ratios, "repeats": repeats}


def times(
    slices: Sequence[int], repeats: int, timed: Mapping[str, Callable[[], Any]] = TIMED
) -> dict[str, Any]:
    return {name: time_ratios(make, slices, repeats) for name, make in timed.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slices", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--decoders", action="store_true", help="of those cut by rows alone")
    parser.add_argument("--time", action="store_true", help="the times alone")
    parser.add_argument("--published", action="store_true", help="of published widths, with --time")
    options = parser.parse_args()
    if options.time:
        timed = TIMED_AS_PUBLISHED if options.published else TIMED
        widths = "published widths" if options.published else "small models"
        found = times(options.slices, options.repeats, timed)
        named = "slicing_time_published" if options.published else "slicing_time"
        write_result(named, {"weights": f"random, {widths}"} | found)
        return
    if options.decoders:
        found = {
            name: {dtype: peaks(make, options.slices, dtype) for dtype in ("float32", "bfloat16")}
            | {"operations_ratio": operations(make, options.slices)}
            for name, make in DECODERS.items()
        }
        write_result("slicing_decoders", {"weights": "none: fake tensors"} | found)
        return
    figures: dict[str, Any] = {"weights": "none: fake tensors, and random ones for the time"}
    for name, make in {"animatediff": animatediff, "svd": svd}.items():
        for size, (height, width) in SIZES.items():
            sized = partial(make, height, width)
            found = peaks(sized, options.slices)
            stock = found["by_slices"]["stock"]["peak_bytes"]
            figures[f"{name} {size}"] = found | {
                "as_a_worker_holds_it": {
                    f"{count} slices, decoding in {dtype}": held | {"ratio": held["peak"] / stock}
                    for count in options.slices
                    for dtype in ("float32", "float16")
                    for held in [as_a_worker_holds_it(sized, count, dtype)]
                }
            }
    figures["wan 1.3B 480x832"] = peaks(lambda: wan(60, 104), options.slices)
    figures["time"] = times(options.slices, options.repeats)
    write_result("slicing", figures)


if __name__ == "__main__":
    main()
