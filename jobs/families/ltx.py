"""LTX-Video, text to video: the first releases, and those from 0.9.5 on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jobs.errors import CannotRunHere
from jobs.families.family import (
    Config,
    Diffusion,
    ModelDefaults,
    Shapes,
    no_flow_shift,
    require,
)
from jobs.geometry import ModelGeometry

#: LTX-Video's pipeline refuses a width or height that is not a multiple of this, in pixels.
_SIZE_MULTIPLE_PX = 32

#: What diffusers' autoencoder has where its config does not say: the first release's layout.
_VAE: dict[str, Any] = {
    "decoder_block_out_channels": (128, 256, 512, 512),
    "decoder_layers_per_block": (4, 3, 3, 3, 4),
    "decoder_spatio_temporal_scaling": (True, True, True, False),
    "decoder_inject_noise": (False,),
    "upsample_factor": (1, 1, 1, 1),
    "patch_size": 4,
    "patch_size_t": 1,
    "decoder_causal": False,
}

#: A frame far from a film's ends.
_FAR = 1 << 20


class LTX:
    """`LTXPipeline`: a transformer over single latent places, an autoencoder that decodes without
    being causal, T5 with a mask over its padding.

    Decoding is conditioned on time 0, and adds no noise, as the pipeline does by default."""

    name = "ltx"
    pipeline = "LTXPipeline"
    marks: Mapping[str, bool] = {}
    denoiser = "transformer"
    classes: Mapping[str, str] = {
        "transformer": "LTXVideoTransformer3DModel",
        "vae": "AutoencoderKLLTXVideo",
    }
    components: tuple[str, ...] = ("transformer", "vae", "text_encoder")
    tokenizer_files: tuple[tuple[str, ...], ...] = (("tokenizer.json",), ("spiece.model",))
    diffusion: Diffusion = "flow_by_size"
    accelerations: tuple[str, ...] = ("slicing", "adaptive", "rehash", "fast_attention")
    batches_branches = True
    joint_text = False
    decodes_in_float32 = False
    defaults = ModelDefaults(
        size=(704, 480),
        fps=25,
        steps=50,
        guidance=(3.0,),
        text_tokens=128,
        window_latent_frames=21,
        overlap_latent_frames=5,
    )

    def refuse(self, index: Config) -> None:
        pass  # image to video has a pipeline of another name

    def geometry(self, configs: Mapping[str, Config], defaults: ModelDefaults) -> ModelGeometry:
        transformer, vae, text = (
            configs["transformer"],
            filled(configs["vae"]),
            configs["text_encoder"],
        )
        names = ("in_channels", "num_attention_heads", "attention_head_dim", "caption_channels")
        require(transformer, "transformer/config.json", names)
        require(vae, "vae/config.json", ("latent_channels",))
        require(text, "text_encoder/config.json", ("d_model",))
        _check_built(transformer, vae)
        _check_fit(transformer, vae, text)
        if defaults.flow_shift is not None:
            raise CannotRunHere("longtake.json: flow_shift: the schedule of this family has none")
        if defaults.stage_positions or len(defaults.pyramid_steps) > 1:
            raise CannotRunHere(
                "longtake.json: pyramid_steps and stage_positions: a pyramid is not built for "
                "this family"
            )
        space, time = _scales(vae)
        before, after = decode_reach(vae)
        return ModelGeometry(
            family=self.name,
            latent_channels=transformer["in_channels"],
            spatial_scale=space,
            temporal_scale=time,
            size_multiple=math.lcm(_SIZE_MULTIPLE_PX, space),
            window_latent_frames=defaults.window_latent_frames,
            overlap_latent_frames=defaults.overlap_latent_frames,
            decode_context_latent_frames=before,
            experts=1,
            text_tokens=defaults.text_tokens,
            text_dim=transformer["caption_channels"],
            decode_ahead_latent_frames=after,
            time_in_seconds=True,
            refused=(no_flow_shift(self.name),),
        )

    def tensors(self, configs: Mapping[str, Config]) -> dict[str, Shapes]:
        return {}

    def longest_window(self, configs: Mapping[str, Config], stride: int) -> int:
        """Positions are computed for whatever length a window has, counted from its start."""
        return 1 << 20


class LTXCondition(LTX):
    """`LTXConditionPipeline`, which LTX-Video is published for from 0.9.5 on, given text alone:
    another schedule, and positions that count the first latent frame as one pixel frame."""

    name = "ltx-condition"
    pipeline = "LTXConditionPipeline"
    diffusion: Diffusion = "flow_quadratic"
    defaults = replace(LTX.defaults, size=(704, 512), text_tokens=256)


def filled(vae: Config) -> dict[str, Any]:
    """An autoencoder's config, with what diffusers has where it does not say."""
    return _VAE | {name: value for name, value in vae.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Level:
    """A block of the decoder: channels that enter and leave, whether it doubles the resolution in
    time, height and width, and its residual blocks after that."""

    entering: int
    width: int
    doubles: bool
    resnets: int


def decoder_levels(vae: Config) -> list[Level]:
    """The decoder's blocks in the order of decoding."""
    widths = [*reversed(vae["decoder_block_out_channels"])]
    factors = [*reversed(vae["upsample_factor"])]
    doubles = [*reversed(vae["decoder_spatio_temporal_scaling"])]
    resnets = [*reversed(vae["decoder_layers_per_block"])][1:]  # the first are the middle block's
    levels, entering = [], widths[0]
    for width, factor, doubling, count in zip(widths, factors, doubles, resnets, strict=True):
        levels.append(Level(entering // factor, width // factor, doubling, count))
        entering = width // factor
    return levels


def _scales(vae: Config) -> tuple[int, int]:
    """Pixels per latent place in space and in time, as the decoder's layers make them."""
    doubled = 2 ** sum(level.doubles for level in decoder_levels(vae))
    return vae["patch_size"] * doubled, doubled


def decode_reach(vae: Config) -> tuple[int, int]:
    """Latent frames before and after a piece that its pixels depend on.

    Key insight: walk back from the piece's first and last pixel frame. Each convolution of width 3
    reads one frame to either side (two before, if causal); at a doubling, frame f comes from frame
    ceil(f / 2) below, since the first frame is not doubled.
    """
    place, r = _FAR, _scales(filled(vae))[1]
    before, after = seen_frames(vae, r * (place - 1) + 1, r * place)[0]
    return place - before, after - place


def seen_frames(vae: Config, first_px: int, last_px: int) -> list[tuple[int, int]]:
    """The first and the last frame that pixel frames ``first_px`` to ``last_px`` depend on: of the
    latents, of what enters each block of the decoder in turn, and of what enters its last
    convolution. Counted from the film's start, and not cut off at its ends."""
    vae = filled(vae)
    back, forth = (2, 0) if vae["decoder_causal"] else (1, 1)
    firsts, lasts = (
        _frames_below(vae, frame, reach) for frame, reach in ((first_px, -back), (last_px, forth))
    )
    return list(zip(firsts, lasts, strict=True))


def _frames_below(vae: Config, pixel_frame: int, reach: int) -> list[int]:
    """The farthest frames that a pixel frame depends on, ``reach`` a convolution."""
    frames = [pixel_frame + reach]  # conv_out
    for level in reversed(decoder_levels(vae)):
        frame = frames[0] + 2 * level.resnets * reach
        if level.doubles:
            frame = -(-frame // 2) + reach
        if level.entering != level.width:
            frame += 2 * reach
        frames.insert(0, frame)
    middle = vae["decoder_layers_per_block"][-1]
    return [frames[0] + (2 * middle + 1) * reach, *frames]


def decoded_frames(vae: Config, before: int, latent_frames: int, after: int) -> list[int]:
    """How many latent frames are decoded where ``latent_frames`` are wanted, with so many of their
    shot before and after, and how many frames then enter each block of the decoder, and its last
    convolution."""
    vae = filled(vae)
    r = _scales(vae)[1]
    first_px = 1 + r * (before - 1) if before else 0
    seen = seen_frames(vae, first_px, r * (before + latent_frames - 1))
    totals = [before + latent_frames + after] * 2
    for level in decoder_levels(vae):
        totals.append(2 * totals[-1] - 1 if level.doubles else totals[-1])
    return [
        min(last, there - 1) - max(first, 0) + 1
        for (first, last), there in zip(seen, totals, strict=True)
    ]


def _check_built(transformer: Config, vae: Config) -> None:
    """Raise CannotRunHere for a kind of LTX-Video that is not built."""
    for part, config, names in (
        ("transformer", transformer, ("patch_size", "patch_size_t")),
        ("vae", vae, ("patch_size_t",)),
    ):
        for name in names:
            if (config.get(name) or 1) != 1:
                raise CannotRunHere(f"{part}: {name} {config[name]} is not built; it must be 1")
    if any(vae["decoder_inject_noise"]):
        raise CannotRunHere(
            "vae: decoder_inject_noise is not built: the decoder would draw noise of its own, "
            "other for every piece; it must be all false"
        )


def _check_fit(transformer: Config, vae: Config, text: Config) -> None:
    channels = transformer["in_channels"]
    out_channels = transformer.get("out_channels") or channels
    if not channels == out_channels == vae["latent_channels"]:
        raise CannotRunHere(
            f"transformer and vae do not fit: the transformer takes {channels} latent channels "
            f"and gives {out_channels}, the vae has {vae['latent_channels']}. Models that take "
            "more than noise and text (image to video, inpainting) are not built yet"
        )
    if text["d_model"] != transformer["caption_channels"]:
        raise CannotRunHere(
            f"text_encoder and transformer do not fit: d_model is {text['d_model']}, "
            f"caption_channels is {transformer['caption_channels']}"
        )
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    if (transformer.get("cross_attention_dim") or 2048) != width:
        raise CannotRunHere(
            f"transformer: cross_attention_dim is {transformer.get('cross_attention_dim')}, but "
            f"num_attention_heads * attention_head_dim is {width}"
        )
    _check_decoder(vae)


def _check_decoder(vae: Config) -> None:
    """The decoder's lists fit each other, and its scales are those that the config says."""
    levels = len(vae["decoder_block_out_channels"])
    for name, count in (
        ("decoder_spatio_temporal_scaling", levels),
        ("upsample_factor", levels),
        ("decoder_layers_per_block", levels + 1),
    ):
        if len(vae[name]) != count:
            raise CannotRunHere(f"vae: {name} must have {count} values, not {len(vae[name])}")
    made = dict(zip(("spatial", "temporal"), _scales(vae), strict=True))
    doubled = 2 ** sum(vae.get("spatio_temporal_scaling") or (True, True, True, False))
    encoder = {"spatial": vae["patch_size"] * doubled, "temporal": doubled}
    for name, value in made.items():
        said = vae.get(f"{name}_compression_ratio") or encoder[name]
        if said != value:
            raise CannotRunHere(
                f"vae: {name}_compression_ratio is {said}, but the decoder's layers make {value}"
            )
