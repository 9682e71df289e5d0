"""What stands in for torch's attention inside a layer, whatever the layer does before and after it.

Shapes: B batch, H heads, S tokens, D channels; queries, keys and values are [B, H, S, D].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from accel.windowed import Geometry, windowed
from jobs.errors import CannotRunHere

_LEAVE_OUT = "remove fast_attention from the job's accelerations"


class Core(TorchFunctionMode):
    """Stands in for ``scaled_dot_product_attention`` while a layer's own code runs. ``residual``
    is [B, H, video tokens, D]; ``geometry`` is that of a layer with so many tokens."""

    residual: torch.Tensor

    def __init__(self, geometry: Callable[[int], Geometry]) -> None:
        super().__init__()
        self._geometry, self.calls = geometry, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        return self.attention(**dict(zip(names, args, strict=False)), **(kwargs or {}))

    def attention(self, **given: Any) -> torch.Tensor:
        """[B, H, S, D], from the arguments of ``scaled_dot_product_attention``."""
        raise NotImplementedError

    def window(self, query: Any, key: Any, value: Any, **more: Any) -> Any:
        """Window attention and its geometry; what it cannot compute is refused."""
        if any(more.get(name) for name in ("is_causal", "dropout_p")):
            raise CannotRunHere(
                f"fast attention: causality and dropout are not built; {_LEAVE_OUT}"
            )
        if key.shape != query.shape or value.shape != query.shape:
            raise CannotRunHere(
                f"fast attention: queries {list(query.shape)}, keys {list(key.shape)} and values "
                f"{list(value.shape)} are to be alike; {_LEAVE_OUT}"
            )
        geometry, scale = self._geometry(query.shape[2]), more.get("scale")
        mask = more.get("attn_mask")
        if mask is None:
            return windowed(query, key, value, geometry, scale), geometry
        seen = _seen_keys(mask, query, geometry)
        rows = zip(query.split(1), key.split(1), value.split(1), seen, strict=True)
        return torch.cat([windowed(q, k, v, geometry, scale, s) for q, k, v, s in rows]), geometry


def _seen_keys(mask: torch.Tensor, query: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Bool [B, S] of a mask [B, 1, 1, S] that hides padding of the text and nothing else."""
    shape = (len(query), 1, 1, query.shape[2])
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise CannotRunHere(
            f"fast attention: a mask is to be bool {list(shape)}, this one is {mask.dtype} "
            f"{list(mask.shape)}; {_LEAVE_OUT}"
        )
    seen = mask[:, 0, 0]
    if not seen[:, geometry.video].all():
        raise CannotRunHere(f"fast attention: the mask hides tokens of the video; {_LEAVE_OUT}")
    return seen


class Windowed(Core):
    """Window attention and the residual of an earlier step."""

    def __init__(self, geometry: Callable[[int], Geometry], residual: torch.Tensor) -> None:
        super().__init__(geometry)
        self.residual = residual

    def attention(self, **given: Any) -> torch.Tensor:
        out, geometry = self.window(**given)
        # In place, so that no stride depends on where the residual comes from.
        out[:, :, geometry.video].add_(_for_batch(self.residual, len(out)))
        return out


class Residual(Core):
    """Attention between all tokens, as it is; finds its residual on the way."""

    def attention(self, **given: Any) -> torch.Tensor:
        full = F.scaled_dot_product_attention(**given)
        out, geometry = self.window(**given)
        self.residual = full[:, :, geometry.video] - out[:, :, geometry.video]
        return full


def _for_batch(residual: Any, batch: int) -> torch.Tensor:
    """A residual for the conditional half of a batch that has one for both, or for both of one
    that they share."""
    if len(residual) == 2 * batch:
        return residual[batch:]
    return torch.cat([residual, residual]) if batch == 2 * len(residual) else residual


def second_half(call: partial[Any]) -> partial[Any]:
    """A call for the conditional half alone of a batch of both branches, unconditional first:
    every tensor that has the batch's length is cut."""
    given = (*call.args, *call.keywords.values())
    batch = len(next(x for x in given if isinstance(x, torch.Tensor)))

    def cut(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(cut(part) for part in x)
        whole = isinstance(x, torch.Tensor) and x.ndim and len(x) == batch
        return x[batch // 2 :] if whole else x

    return partial(call.func, *map(cut, call.args), **{k: cut(x) for k, x in call.keywords.items()})
