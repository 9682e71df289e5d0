"""The counting of live tensor bytes."""

from __future__ import annotations

import torch
from torch._subclasses import FakeTensorMode

from accel.memory import TensorAccounting, held_bytes, peak_of

FLOAT = 4


def test_the_peak_is_of_what_lives_at_once() -> None:
    with TensorAccounting() as memory:
        a = torch.zeros(100)
        b = a + 1
        del a
        c = b + 1  # b and c; a is gone
        del b
        assert memory.live_bytes == 100 * FLOAT
    assert memory.peak_bytes == 200 * FLOAT
    assert c.sum() == 200


def test_views_and_work_in_place_add_nothing() -> None:
    with TensorAccounting() as memory:
        a = torch.zeros(100)
        part = a.view(10, 10)[2:4].t()
        a.add_(1)
        del a  # the view keeps all of it
        assert memory.live_bytes == memory.peak_bytes == 100 * FLOAT
        del part
        assert memory.live_bytes == 0


def test_what_was_there_before_is_not_counted() -> None:
    weight, x = torch.ones(50, 50), torch.ones(1, 50)
    with TensorAccounting() as memory:
        flat = weight.view(-1)  # a new tensor of an old storage
        y = torch.nn.functional.linear(x, weight)
        del weight, x
    assert memory.live_bytes == memory.peak_bytes == 50 * FLOAT
    assert len(flat) == 2500 and y.shape == (1, 50)


def test_the_middle_of_a_model_counts_and_its_end_frees() -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(10, 1000), torch.nn.ReLU(), torch.nn.Linear(1000, 10)
    )
    with torch.no_grad(), TensorAccounting() as memory:
        y = model(torch.zeros(4, 10))
    # input, inner before and after ReLU
    assert memory.peak_bytes == (40 + 4000 + 4000) * FLOAT
    assert memory.live_bytes == y.numel() * FLOAT


def test_fake_tensors_are_followed_alike() -> None:
    def run() -> TensorAccounting:
        half = {"dtype": torch.float16}
        convolution, norm = torch.nn.Conv2d(3, 8, 3, **half), torch.nn.GroupNorm(2, 8, **half)
        model = torch.nn.Sequential(convolution, norm)
        x = torch.empty(2, 3, 20, 20, **half)
        with torch.no_grad(), TensorAccounting() as memory:
            y = model(x)
        assert memory.live_bytes == held_bytes(y)
        return memory

    real = run()
    with FakeTensorMode():
        fake = run()
    assert real.peak_bytes == fake.peak_bytes
    assert real.peak_bytes > 2 * 2 * 8 * 18 * 18 * 2


def test_attention_does_not_count_its_matrix() -> None:
    """As on a GPU: flash attention never holds it."""
    with FakeTensorMode():
        q = torch.empty(1, 2, 4096, 32, dtype=torch.float16)
        with TensorAccounting() as memory:
            torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert memory.peak_bytes < 2 * held_bytes(q)


def test_peak_of_cpu_counts_and_held_bytes_counts_each_storage_once() -> None:
    with peak_of(torch.device("cpu")) as peak:
        torch.zeros(100)
    assert peak.peak_bytes == 100 * FLOAT
    x = torch.zeros(10, 10)
    assert held_bytes(x, x[2:], torch.nn.Linear(3, 2)) == (100 + 8) * FLOAT
