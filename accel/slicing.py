"""Feature Slicer and Operator Grouping of Streamlined Inference (arXiv 2411.01171): the same result
in less memory.

Operators that treat frames alike (spatial ones) or positions alike (temporal ones) are grouped, and
a slice goes through a whole group before the next begins: live are the group's input, its output
and one slice's intermediates, instead of every operator's. It is exact. GroupNorm's statistics are
those of the whole (``accel.slices``), where the code that the authors released takes them slice by
slice and so changes the result; and the mid block runs whole, of which theirs leaves most out.

``slices`` is for the widest groups. Where a model's features are smaller, groups are cut into fewer
slices in proportion, so that all slices need about as much memory and small operators stay few.

Attached first of all techniques: it takes the place of the blocks' ``forward``, where others add
to it. The models are in ``slicing_unets``, ``slicing_spatio_temporal``, ``slicing_tokens``,
``slicing_joint`` and ``slicing_hunyuan``; the decoders that go by rows (``slicing_rows``) in
``slicing_causal_decoders``, ``slicing_ltx_decoder`` and ``slicing_wan_decoder``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from accel.handle import Branch, TileStep
from accel.slices import Slices
from accel.slicing_causal_decoders import attach_cogvideox_decoder, attach_hunyuan_video_decoder
from accel.slicing_hunyuan import attach_hunyuan_video
from accel.slicing_joint import attach_cogvideox
from accel.slicing_ltx_decoder import attach_ltx_decoder
from accel.slicing_spatio_temporal import attach_decoder, attach_svd_unet, attach_temporal_decoder
from accel.slicing_tokens import attach_ltx, attach_wan
from accel.slicing_unets import attach_motion_unet
from accel.slicing_wan_decoder import attach_wan_decoder
from jobs.accelerations import Slicing
from jobs.errors import CannotRunHere

NAME = "slicing"


class SlicingHandle:
    """Slicing attached to one model. It keeps nothing from one pass to the next."""

    def __init__(self, model: torch.nn.Module, config: Slicing) -> None:
        assert config.slices is not None, "planning has found it"
        self._slices = config.slices
        self._names = {id(module): name for name, module in model.named_modules()}
        self._replaced: list[torch.nn.Module] = []
        self._tile: TileStep | None = None

    @contextmanager
    def run(self, tile: TileStep, branch: Branch) -> Iterator[None]:
        """Counts the groups that were cut as ``slicing`` in ``tile.engaged``."""
        self._tile = tile
        tile.engaged[NAME] += 0  # told even if nothing is cut
        try:
            yield
        finally:
            self._tile = None

    def remove(self) -> None:
        for module in reversed(self._replaced):
            del module.forward
        self._replaced.clear()

    def slices(self, share: float = 1.0) -> Slices:
        """For groups whose features have so large a share of the widest ones' size."""
        return Slices(math.ceil(self._slices * share), self._note)

    def replace(self, module: torch.nn.Module, forward: Callable[..., Any]) -> None:
        if "forward" in vars(module):
            raise CannotRunHere(
                f"slicing: something else is attached to {self._name(module)}; slicing comes first"
            )
        module.forward = forward
        self._replaced.append(module)

    def know(self, module: Any, *kinds: type) -> None:
        """Raise for a block that is none of these, by its very class: a subclass may differ."""
        if type(module) not in kinds:
            known = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise CannotRunHere(
                f"slicing does not know {self._name(module)}, a {type(module).__name__}; "
                f"in its place it knows: {known}"
            )

    def refuse(self, module: Any, what: str) -> None:
        raise CannotRunHere(f"slicing: {self._name(module)} {what}")

    def _name(self, module: Any) -> str:
        return self._names.get(id(module)) or "the model"

    def _note(self) -> None:
        if self._tile is not None:
            self._tile.engaged[NAME] += 1


#: How slicing attaches to each model, by the name of its class.
MODELS: dict[str, Callable[[Any, SlicingHandle], None]] = {
    "AutoencoderKL": attach_decoder,
    "AutoencoderKLCogVideoX": attach_cogvideox_decoder,
    "AutoencoderKLHunyuanVideo": attach_hunyuan_video_decoder,
    "AutoencoderKLLTXVideo": attach_ltx_decoder,
    "AutoencoderKLTemporalDecoder": attach_temporal_decoder,
    "AutoencoderKLWan": attach_wan_decoder,
    "CogVideoXTransformer3DModel": attach_cogvideox,
    "HunyuanVideoTransformer3DModel": attach_hunyuan_video,
    "LTXVideoTransformer3DModel": attach_ltx,
    "UNetMotionModel": attach_motion_unet,
    "UNetSpatioTemporalConditionModel": attach_svd_unet,
    "WanTransformer3DModel": attach_wan,
}


def apply(model: torch.nn.Module, config: Slicing) -> SlicingHandle:
    """Attach slicing. Raises CannotRunHere, with nothing attached, for a model that it does not
    know or that has a block which it does not know."""
    attach = MODELS.get(type(model).__name__)
    if attach is None:
        raise CannotRunHere(
            f"slicing does not know {type(model).__name__}; it knows: {', '.join(sorted(MODELS))}"
        )
    if model.training:
        raise CannotRunHere("slicing is for rendering, where nothing is random: call model.eval()")
    handle = SlicingHandle(model, config)
    try:
        attach(model, handle)
    except BaseException:
        handle.remove()
        raise
    return handle
