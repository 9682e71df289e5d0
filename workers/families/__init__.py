"""Model families by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jobs.errors import BadJob
from workers.families.animatediff import AnimateDiffFamily
from workers.families.cogvideox import CogVideoXFamily
from workers.families.family import BranchContext, ModelFamily
from workers.families.hunyuan_video import HunyuanVideoFamily
from workers.families.loras import Adapter
from workers.families.ltx import LTXConditionFamily, LTXFamily
from workers.families.svd import SVDFamily
from workers.families.wan import WanFamily, WanTI2VFamily

__all__ = ["FAMILIES", "BranchContext", "ModelFamily", "open_family"]

FAMILIES: dict[str, Callable[..., ModelFamily]] = {
    "wan": WanFamily,
    "wan-ti2v": WanTI2VFamily,
    "animatediff": AnimateDiffFamily,
    "svd": SVDFamily,
    "cogvideox": CogVideoXFamily,
    "ltx": LTXFamily,
    "ltx-condition": LTXConditionFamily,
    "hunyuan-video": HunyuanVideoFamily,
}


def open_family(
    name: str,
    folder: str,
    dtype: str,
    device: str,
    loras: Sequence[Adapter] = (),
    decoder_dtype: str = "float32",
) -> ModelFamily:
    """A family on a model folder; reads config files only. ``loras``: files and scales."""
    if name not in FAMILIES:
        raise BadJob(f"unknown model family '{name}'; valid: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name](folder, dtype, device, loras, decoder_dtype)
