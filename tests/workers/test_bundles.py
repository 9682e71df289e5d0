"""Tensors cross process borders with every bit, and share memory with nobody."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from jobs.arrays import decode_bundle, encode_bundle
from workers.bundles import to_bundle, to_tensor, to_tensors

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip(dtype: torch.dtype) -> None:
    tensor = (torch.randn(2, 3, 5).transpose(0, 1) * 50).to(dtype)
    bundle = decode_bundle(encode_bundle(to_bundle({"x": tensor}, {"by": "w0"})))
    assert bundle.meta == {"by": "w0"}
    assert to_tensor(bundle, "x").dtype == dtype
    assert torch.equal(to_tensor(bundle, "x"), tensor)


def test_no_memory_is_shared() -> None:
    tensor = torch.zeros(4)
    bundle = to_bundle({"x": tensor})
    tensor += 1
    assert not bundle.arrays["x"].any()
    bundle.arrays["x"].flags.writeable = False  # as arrays in an object store are
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy = to_tensor(bundle, "x")
    copy += 1
    assert not bundle.arrays["x"].any()


def test_a_prefix_selects_and_goes() -> None:
    bundle = to_bundle({"history.a": torch.ones(1), "latents": torch.zeros(1)})
    assert list(to_tensors(bundle, "history.")) == ["a"]
    assert np.array_equal(to_tensors(bundle)["latents"].numpy(), [0.0])
