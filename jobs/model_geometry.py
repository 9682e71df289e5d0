"""What a model's config files say of its geometry and defaults. Pure: no torch, no files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.errors import CannotRunHere
from jobs.geometry import ModelGeometry

#: Wan's pipeline refuses a width or height that is not a multiple of this, in pixels.
WAN_SIZE_MULTIPLE_PX = 16

#: Frames that a causal convolution of width 3 reads before its own.
_CAUSAL_REACH = 2

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDefaults:
    """What a job gets where it says nothing. The values that stand here are Wan 2.1's."""

    size: tuple[int, int] = (832, 480)  # width and height, px
    fps: int = 16
    steps: int = 50
    guidance: tuple[float, ...] = (5.0,)  # one per expert
    negative: str = ""
    text_tokens: int = 512
    flow_shift: float | None = None  # None: as the scheduler's config says
    window_latent_frames: int = 21
    overlap_latent_frames: int = 5
    pyramid_steps: tuple[int, ...] = ()  # shares of the stages that the weights were trained for
    stage_positions: bool = False  # whether a coarse stage's frames stand as far apart as they are


def wan_geometry(transformer: Config, vae: Config, defaults: ModelDefaults) -> ModelGeometry:
    """The geometry of a Wan model. Raises CannotRunHere for a kind that is not built."""
    check_wan_configs(transformer, vae)
    patch = transformer["patch_size"]
    scale = spatial_scale(vae)
    return ModelGeometry(
        family="wan",
        latent_channels=vae["z_dim"],
        spatial_scale=scale,
        temporal_scale=temporal_scale(vae),
        size_multiple=math.lcm(WAN_SIZE_MULTIPLE_PX, scale * patch[1], scale * patch[2]),
        window_latent_frames=defaults.window_latent_frames,
        overlap_latent_frames=defaults.overlap_latent_frames,
        decode_context_latent_frames=wan_decode_context(vae),
        experts=1,
        text_tokens=defaults.text_tokens,
        text_dim=transformer["text_dim"],
    )


def spatial_scale(vae: Config) -> int:
    """Pixels per latent pixel."""
    return int(vae.get("scale_factor_spatial") or 8)


def temporal_scale(vae: Config) -> int:
    """r: 1 + r * (n - 1) pixel frames for n latent frames."""
    return int(vae.get("scale_factor_temporal") or 4)


def check_wan_configs(transformer: Config, vae: Config) -> None:
    """Raise CannotRunHere where the two configs do not fit each other or are not built."""
    require(transformer, "transformer/config.json", ("patch_size", "in_channels", "text_dim"))
    require(transformer, "transformer/config.json", ("num_attention_heads", "attention_head_dim"))
    require(transformer, "transformer/config.json", ("num_layers", "ffn_dim"))
    require(vae, "vae/config.json", ("z_dim", "dim_mult", "temperal_downsample"))
    channels = transformer["in_channels"]
    out_channels = transformer.get("out_channels") or channels
    if transformer.get("image_dim") or transformer.get("added_kv_proj_dim"):
        raise CannotRunHere("transformer: conditioning on an image is not built yet")
    if not channels == out_channels == vae["z_dim"]:
        raise CannotRunHere(
            f"transformer and vae do not fit: the transformer takes {channels} latent channels "
            f"and gives {out_channels}, the vae has {vae['z_dim']}. Models that take more than "
            "noise and text (image to video, inpainting) are not built yet"
        )
    if len(transformer["patch_size"]) != 3 or transformer["patch_size"][0] != 1:
        found = transformer["patch_size"]
        raise CannotRunHere(f"transformer: patch_size {found} is not built; it must be [1, h, w]")
    _check_scales(vae)


def require(config: Config, file: str, names: Sequence[str]) -> None:
    """Every name must hold a positive whole number, or a list as Wan has it."""
    missing = [name for name in names if config.get(name) is None]
    if missing:
        raise CannotRunHere(f"{file} lacks {', '.join(missing)}")
    for name in names:
        value = config[name]
        listed = name in ("patch_size", "dim_mult", "temperal_downsample")
        parts = value if listed and isinstance(value, list) else [value]
        kind = bool if name == "temperal_downsample" else int
        if listed != isinstance(value, list) or not all(type(part) is kind for part in parts):
            raise CannotRunHere(f"{file}: {name} cannot be {value!r}")
        if not parts or (kind is int and min(parts) < 1):
            raise CannotRunHere(f"{file}: {name} cannot be {value!r}")


def _check_scales(vae: Config) -> None:
    """The scales that a Wan vae's config names must be those that its layers make."""
    for name in ("latents_mean", "latents_std"):
        if name in vae and len(vae[name]) != vae["z_dim"]:
            raise CannotRunHere(f"vae: {name} must have {vae['z_dim']} values")
    levels = len(vae["dim_mult"]) - 1
    if len(vae["temperal_downsample"]) != levels:
        found = len(vae["temperal_downsample"])
        raise CannotRunHere(f"vae: temperal_downsample must have {levels} values, not {found}")
    made = {
        "scale_factor_spatial": 2**levels * (vae.get("patch_size") or 1),
        "scale_factor_temporal": 2 ** sum(vae["temperal_downsample"]),
    }
    said = {
        "scale_factor_spatial": spatial_scale(vae),
        "scale_factor_temporal": temporal_scale(vae),
    }
    for name, value in made.items():
        if said[name] != value:
            raise CannotRunHere(f"vae: {name} is {said[name]}, but its layers make {value}")


def wan_decode_context(vae: Config) -> int:
    """Latent frames before a piece that its pixels depend on.

    Key insight: walk back from the piece's first pixel frame. Each causal convolution reads two
    frames further back; at a temporal upsampling, frame f comes from frame ceil(f / 2) below.
    """
    resnets: int = _CAUSAL_REACH * 2 * (int(vae.get("num_res_blocks", 2)) + 1)
    doublings: list[bool] = [*reversed(vae["temperal_downsample"]), False]
    start = 1 << 20  # far from the film's start
    frame: int = 2 ** sum(doublings) * (start - 1) + 1
    frame -= _CAUSAL_REACH  # conv_out
    for doubles in reversed(doublings):
        if doubles:
            frame = -(-frame // 2) - _CAUSAL_REACH  # time_conv
        frame -= resnets
    frame -= 2 * 2 * _CAUSAL_REACH  # the mid block's two resnets
    return start - (frame - _CAUSAL_REACH)  # conv_in
