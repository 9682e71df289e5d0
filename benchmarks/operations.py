"""How many operations a model really computes: of matrix products, convolutions and attention.

Norms, activations and what is done element by element are not counted; of attention whose kernel
leaves out what a mask hides, the whole is.

``Operations`` sees operator by operator. It is exact, knows fake tensors, and takes time by the
operator: a small model's pass takes half as long again. ``counted`` stands where times are measured
in the same run: on modules, and before torch's attention, at a few microseconds each. Tests hold it
to ``Operations``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

aten = torch.ops.aten


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


#: Torch's, and that of the attention which its CPU runs: without it, attention there is free.
FORMULAS = {**flop_registry, aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}

#: Of no library, and asked of fake tensors: whether it is made of others cannot be asked.
WHOLE = (torch.ops.prim.device.default,)


class Operations(TorchDispatchMode):
    """Floating-point operations of all that runs inside the block, of fake tensors too, as
    ``count``: a multiplication and an addition are two. It can be entered again, and goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        formula = FORMULAS.get(func._overloadpacket)
        if formula is None and func not in WHOLE and func._can_decompose():  # linear, say
            with self:
                result = func.decompose(*args, **given)
            if result is not NotImplemented:
                return result
        result = func(*args, **given)
        if formula is not None:
            self.count += formula(*args, **given, out_val=result)
        return result


@contextmanager
def counted(model: torch.nn.Module) -> Iterator[Counter[str]]:
    """Multiplications as ``operations`` and calls as ``passes`` of a model's forward. What stands
    in for a layer calls none of its parts."""
    counts = Counter[str]()

    def one_pass(*_: Any) -> None:
        counts["passes"] += 1

    handles = [model.register_forward_pre_hook(one_pass)]
    handles += [
        module.register_forward_hook(partial(_multiplied, counts, module.weight[0].numel()))
        for module in model.modules()
        if isinstance(module, MULTIPLYING)
    ]
    try:
        with _attention_counted(model, counts):
            yield counts
    finally:
        for handle in handles:
            handle.remove()


MULTIPLYING = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def _multiplied(
    counts: Counter[str], products: int, module: Any, args: Any, result: torch.Tensor
) -> None:
    """After a module of whose result each element sums so many products."""
    counts["operations"] += result.numel() * products


@contextmanager
def _attention_counted(model: torch.nn.Module, counts: Counter[str]) -> Iterator[None]:
    """Of torch's attention inside the model's forward. What another technique puts in its place
    counts as what it computes: modes of torch functions come before the count."""
    plain, inside = F.scaled_dot_product_attention, []

    def attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if has_torch_function((query, key, value)):
            given = (query, key, value)
            return handle_torch_function(attention, given, *given, *args, **kwargs)
        if inside:
            channels = query.shape[-1] + value.shape[-1]
            counts["operations"] += query.shape[:-1].numel() * key.shape[-2] * channels
        return plain(query, key, value, *args, **kwargs)

    enter = model.register_forward_pre_hook(lambda *_: inside.append(True))
    leave = model.register_forward_hook(lambda *_: inside.clear(), always_call=True)
    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain
        enter.remove()
        leave.remove()
