"""Step Rehash: deep features of a key step serve the steps after it (Streamlined Inference,
arXiv 2411.01171, section 3.3).

A UNet's key step keeps what enters the last layer of its last up-block, before that is joined with
its skip connection; that skip is what ``conv_in`` makes of the latents. So the steps after it run
``conv_in``, that one layer and ``conv_out``, and nothing else. A transformer's key step keeps what
all blocks but the first add to the video's tokens; the steps after it run the first block alone.
Where blocks change text tokens, too, those are not kept: only the blocks that are left out would
read them. (A first-block cache keeps the same, but asks the first block at every step whether it
may; here the steps are named beforehand.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from accel.handle import Branch, LostState, TileStep
from accel.video_transformers import VIDEO_TRANSFORMERS
from accel.wrapping import LastLayers, Wrapped
from jobs.accelerations import REHASHED_BLOCKS, Rehash
from jobs.errors import CannotRunHere


def apply(model: torch.nn.Module, config: Rehash) -> RehashHandle:
    """Attach to a UNet for video or a video transformer that is known. Raises CannotRunHere."""
    handle = RehashHandle(config)
    if hasattr(model, "up_blocks"):
        handle.wrapped = _wrap_unet(model, handle)
    elif type(model).__name__ in VIDEO_TRANSFORMERS:
        handle.wrapped = _wrap_transformer(model, handle)
    else:
        raise CannotRunHere(
            f"rehash does not know {type(model).__name__}; it runs in UNets for video, which have "
            f"up_blocks, and in {', '.join(sorted(VIDEO_TRANSFORMERS))}"
        )
    return handle


@dataclass
class RehashHandle:
    """Step Rehash on one model. Counts ``rehash.key`` and ``rehash.reused`` passes."""

    config: Rehash
    wrapped: list[Wrapped] = field(default_factory=list)
    _reused: torch.Tensor | None = None  # the feature that stands in, in a step that is no key
    _found: torch.Tensor | None = None  # the feature that a key step makes

    @contextmanager
    def run(self, tile: TileStep, branch: Branch) -> Iterator[None]:
        name = f"rehash.{branch}.feature"
        key = tile.unit.step in self.config.keys(tile.unit.stage, tile.steps)
        self._reused = None if key else _carried(tile, name)
        tile.engaged["rehash.key" if self._reused is None else "rehash.reused"] += 1
        try:
            yield
            feature = self._found if self._reused is None else self._reused
            assert feature is not None, "the model was not called"
            if tile.unit.step + 1 < tile.steps:
                tile.kept[name] = feature
        finally:
            self._reused = self._found = None

    def remove(self) -> None:
        for wrapped in reversed(self.wrapped):
            wrapped.remove()
        self.wrapped = []

    # -- what the wrapped modules ask

    def skip(self, stand_in: Callable[..., Any]) -> Callable[..., Any]:
        """Around a module that a step which is no key leaves out."""

        def around(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs) if self._reused is None else stand_in(*args, **kwargs)

        return around

    def keep(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the module whose output is the feature."""
        as_tuple = not kwargs.get("return_dict", True)
        if self._reused is not None:
            return (self._reused,) if as_tuple else self._reused
        out = forward(*args, **kwargs)
        self._found = out[0] if as_tuple else out
        return out

    def shorten(
        self,
        forward: Callable[..., Any],
        hidden_states: torch.Tensor,
        res_hidden_states_tuple: tuple[torch.Tensor, ...],
        **kwargs: Any,
    ) -> Any:
        """Around an up-block that can run its last layer alone, whose skip comes first."""
        if self._reused is not None:
            hidden_states, res_hidden_states_tuple = self._reused, res_hidden_states_tuple[:1]
        return forward(hidden_states, res_hidden_states_tuple, **kwargs)

    def enter(self, stand_in: Callable[..., Any]) -> Callable[..., Any]:
        """Around the first of the blocks that are left out."""

        def around(
            forward: Callable[..., Any], hidden_states: torch.Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            if self._reused is not None:
                return stand_in(hidden_states + self._reused, *args, **kwargs)
            self._entered = hidden_states
            return forward(hidden_states, *args, **kwargs)

        return around

    def leave(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the last of them, inside ``skip``."""
        out = forward(*args, **kwargs)
        self._found = (out[0] if isinstance(out, tuple) else out) - self._entered
        del self._entered
        return out


def _carried(tile: TileStep, name: str) -> torch.Tensor:
    """What the tile's key step left."""
    if name not in tile.carried:
        raise LostState(
            f"{tile.unit} came without '{name}', which its key step left: the step before ran by "
            "other key steps"
        )
    return tile.carried[name]


# -- UNets


def _wrap_unet(unet: Any, handle: RehashHandle) -> list[Wrapped]:
    last = unet.up_blocks[-1]
    layers = _layers(last)
    if len(layers) < 2 or last.upsamplers is not None:
        raise CannotRunHere(
            f"rehash: the last up-block of {type(unet).__name__} has {len(layers)} layers and "
            f"{'an' if last.upsamplers else 'no'} upsampler; it needs two layers or more, and none"
        )
    left_out = [*unet.up_blocks[:-1], *([unet.mid_block] if unet.mid_block is not None else [])]
    sliced = isinstance(vars(last).get("forward"), LastLayers)
    if sliced and len(layers[-2]) == 1:
        raise CannotRunHere(
            f"rehash: the last up-block of {type(unet).__name__} has resnets alone, which slicing "
            "does not call as layers; it goes with slicing where attention follows"
        )
    if not sliced:
        left_out += [module for layer in layers[:-2] for module in layer] + layers[-2][:-1]
    wrapped = [Wrapped(module, handle.skip(_first)) for module in left_out]
    for block in unet.down_blocks:
        skips = len(block.resnets) + len(block.downsamplers or ())
        wrapped.append(Wrapped(block, handle.skip(_with_skips(skips))))
    wrapped += [Wrapped(last, handle.shorten)] if sliced else []
    return [*wrapped, Wrapped(layers[-2][-1], handle.keep)]


def _layers(block: Any) -> list[list[torch.nn.Module]]:
    """The modules of each layer of an up-block, in the order in which they run."""
    kinds = [getattr(block, name, None) for name in ("resnets", "attentions", "motion_modules")]
    return [list(layer) for layer in zip(*(kind for kind in kinds if kind), strict=True)]


def _first(*args: Any, **kwargs: Any) -> Any:
    """Whatever goes in comes out: it stands in for what nobody will read."""
    tensor = args[0] if args else kwargs.get("hidden_states", kwargs.get("input_tensor"))
    return tensor if kwargs.get("return_dict", True) else (tensor,)


def _with_skips(count: int) -> Callable[..., Any]:
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        tensor = _first(*args, **kwargs)
        return tensor, (tensor,) * count

    return stand_in


# -- transformers


def _wrap_transformer(model: Any, handle: RehashHandle) -> list[Wrapped]:
    kind = VIDEO_TRANSFORMERS[type(model).__name__]
    blocks = kind.blocks(model)
    if len(blocks) < REHASHED_BLOCKS:
        raise CannotRunHere(
            f"rehash: {len(blocks)} blocks are too few; it needs {REHASHED_BLOCKS} or more"
        )
    entering, *between, leaving = blocks[1:]
    unchanged = _tokens if kind.outputs == 1 else _tokens_and_text
    return [
        Wrapped(entering, handle.enter(unchanged)),
        Wrapped(leaving, handle.leave),
        *(Wrapped(block, handle.skip(unchanged)) for block in (*between, leaving)),
    ]


def _tokens(hidden_states: torch.Tensor, *_: Any, **others: Any) -> torch.Tensor:
    """A block that changes nothing."""
    return hidden_states


def _tokens_and_text(
    hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, *_: Any, **others: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, of the kind that returns its text as well."""
    return hidden_states, encoder_hidden_states


# -- how alike steps are

#: Values of each step's features.
SIMILAR_AT_ONCE = 2**20


def similarity(features: Sequence[torch.Tensor]) -> NDArray[np.float64]:
    """Cosine similarity [S, S] of the features of S steps, which lie on one device. Only a part of
    them is in float64 at a time: those of a large model take tens of gigabytes."""
    parts = zip(*(each.flatten().split(SIMILAR_AT_ONCE) for each in features), strict=True)
    products = torch.zeros((), dtype=torch.float64)
    for part in parts:
        rows = torch.stack(part).double()
        products = products + (rows @ rows.T).cpu()
    norms = products.diagonal().sqrt()
    found: NDArray[np.float64] = (products / norms / norms[:, None]).numpy()
    return found
