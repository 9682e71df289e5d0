"""What a Wan model's config files say of its geometry. Pure: no torch, no files."""

from __future__ import annotations

import math

from jobs.errors import CannotRunHere
from jobs.families.family import Config, ModelDefaults, require
from jobs.geometry import ModelGeometry

#: Wan's pipeline refuses a width or height that is not a multiple of this, in pixels.
WAN_SIZE_MULTIPLE_PX = 16

#: Frames that a causal convolution of width 3 reads before its own.
_CAUSAL_REACH = 2

#: Settings of Wan's configs that are lists.
_LISTS = ("patch_size", "dim_mult", "temperal_downsample")


def wan_geometry(
    family: str, transformer: Config, vae: Config, defaults: ModelDefaults
) -> ModelGeometry:
    """The geometry of a Wan model. Raises CannotRunHere for a kind that is not built."""
    check_wan_configs(transformer, vae)
    patch = transformer["patch_size"]
    scale = spatial_scale(vae)
    return ModelGeometry(
        family=family,
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
    require(
        transformer, "transformer/config.json", ("patch_size", "in_channels", "text_dim"), _LISTS
    )
    require(transformer, "transformer/config.json", ("num_attention_heads", "attention_head_dim"))
    require(transformer, "transformer/config.json", ("num_layers", "ffn_dim"))
    require(vae, "vae/config.json", ("z_dim", "dim_mult", "temperal_downsample"), _LISTS)
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
