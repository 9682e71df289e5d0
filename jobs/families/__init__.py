"""Model families by name, as plain data."""

from __future__ import annotations

from jobs.errors import CannotRunHere
from jobs.families.animatediff import HOW_TO_SAVE, AnimateDiff
from jobs.families.cogvideox import CogVideoX
from jobs.families.family import Config, FamilyFacts
from jobs.families.hunyuan_video import HunyuanVideo
from jobs.families.ltx import LTX, LTXCondition
from jobs.families.svd import SVD
from jobs.families.wan import Wan, WanTI2V

_ALL = (
    Wan(), WanTI2V(), AnimateDiff(), CogVideoX(), LTX(), LTXCondition(), HunyuanVideo(), SVD(),
)  # fmt: skip

FAMILIES: dict[str, FamilyFacts] = {each.name: each for each in _ALL}


def family_of(index: Config) -> FamilyFacts:
    """The family of a `model_index.json`. Raises CannotRunHere for one that is not built."""
    found = str(index.get("_class_name"))
    for family in FAMILIES.values():
        marked = all(bool(index.get(mark)) == value for mark, value in family.marks.items())
        if family.pipeline == found and marked:
            family.refuse(index)
            return family
    built = ", ".join(dict.fromkeys(family.pipeline for family in FAMILIES.values()))
    hint = f"\n{HOW_TO_SAVE}" if found.startswith("StableDiffusionPipeline") else ""
    raise CannotRunHere(f"model_index.json: pipeline {found!r} is not built; built: {built}{hint}")
