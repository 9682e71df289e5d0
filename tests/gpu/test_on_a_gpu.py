"""What only a GPU can show, on tiny models: the same promises, and that it gives what a CPU gives.

make gpu                                    where there is one
LONGTAKE_TEST_DEVICE=cpu python -m pytest tests/gpu     a rehearsal
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from accel.memory import peak_of
from accel.windowed import Geometry, sees, windowed
from jobs.accelerations import Accelerations, Adaptive, FastAttention, Rehash, Slicing
from jobs.arrays import Bundle
from jobs.attention_plan import AttentionPlan
from jobs.errors import UnitError
from jobs.units import MUCH_MEMORY, EncodeTask, Stayed, Unit, Window
from tests.workers.test_conformance import assert_same_bits, load_pipeline, run_pipeline
from tests.workers.tiny import piece_task, render_windows, tiny_shot, tiny_worker
from tests.workers.tiny_families import KINDS, TinyFamily, tiny_family
from workers import machine
from workers.bundles import to_tensor
from workers.carrying import ACCEL
from workers.families.loading import release
from workers.shelf import Shelf
from workers.worker import Worker

DEVICE = os.environ.get("LONGTAKE_TEST_DEVICE") or ("cuda:0" if torch.cuda.is_available() else "")

pytestmark = pytest.mark.skipif(not DEVICE, reason="needs a GPU")

#: Two windows of every family but Stable Video Diffusion's, which has one.
WINDOWS = [Window(0, 0, 3), Window(1, 2, 5)]


def windows_of(tiny: TinyFamily) -> list[Window]:
    return [Window(0, 0, tiny.shot.latent_frames)] if tiny.name == "svd" else WINDOWS


def worker_of(tiny: TinyFamily, device: str = DEVICE, **accelerations: object) -> Worker:
    images = (tiny.shot.image,) if tiny.shot.image else ()
    return tiny_worker(
        tiny.folder, family=tiny.name, device=device, images=images,
        accelerations=Accelerations(**accelerations),
    )  # fmt: skip


def latents(done: dict[tuple[int, int], Bundle], tiny: TinyFamily) -> torch.Tensor:
    return to_tensor(done[0, tiny.shot.steps], "latents").float()


@pytest.mark.parametrize("kind", KINDS)
def test_order_changes_no_bit_and_the_cpu_agrees(kind: str, tmp_path: Path) -> None:
    tiny = tiny_family(kind, tmp_path)
    worker, windows = worker_of(tiny), windows_of(tiny)
    there = render_windows(worker, tiny.shot, windows)
    assert_same_bits(there, render_windows(worker, tiny.shot, windows, backwards=True))
    assert_same_bits(there, render_windows(worker_of(tiny), tiny.shot, windows))
    here = render_windows(worker_of(tiny, "cpu"), tiny.shot, windows)
    ours, theirs = latents(there, tiny), latents(here, tiny)
    assert (ours - theirs).norm() < 0.05 * theirs.norm(), "TF32 in convolutions, and rounding"
    frames = worker._family.decode(piece_task(tiny.shot, 0, windows[0].stop), ours)
    assert frames.std() > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_window_is_the_pipeline(tmp_path: Path, dtype: str) -> None:
    tiny = tiny_family("wan", tmp_path)
    shot = tiny_shot(scheduler="unipc", latent_frames=5, pixel_frames=9)
    worker = tiny_worker(tiny.folder, dtype=dtype, device=DEVICE)
    done = render_windows(worker, shot, [Window(0, 0, 5)])
    theirs = run_pipeline(load_pipeline(tiny.folder, getattr(torch, dtype)).to(DEVICE), shot)
    assert torch.equal(to_tensor(done[0, shot.steps], "latents"), theirs.cpu())


ACCELERATIONS = {
    "slicing": {"slicing": Slicing(slices=3)},
    "rehash": {"rehash": Rehash(every=2)},
    "adaptive": {"adaptive": Adaptive(form="scalar", threshold=100)},
    "fast_attention": {
        "fast_attention": FastAttention(
            stages=(AttentionPlan((("full",) * 2, ("window",) * 2) * 2, (1, 3, 3)),)
        )
    },
}


@pytest.mark.parametrize("name", ACCELERATIONS)
def test_an_acceleration_gives_what_it_gives_on_a_cpu(name: str, tmp_path: Path) -> None:
    tiny = tiny_family("animatediff" if name == "rehash" else "wan", tmp_path)
    if name == "adaptive":  # it looks back at three steps
        tiny = dataclasses.replace(tiny, shot=dataclasses.replace(tiny.shot, stage_steps=(8,)))
    there, here = (
        render_windows(worker_of(tiny, device, **ACCELERATIONS[name]), tiny.shot, WINDOWS)
        for device in (DEVICE, "cpu")
    )
    ours, theirs = latents(there, tiny), latents(here, tiny)
    assert (ours - theirs).norm() < 0.05 * theirs.norm()
    plain = latents(render_windows(worker_of(tiny), tiny.shot, WINDOWS), tiny)
    apart = (ours - plain).norm() / plain.norm()
    assert apart < 1e-3 if name == "slicing" else apart > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("head_dim", "batch"), [(12, 1), (48, 1), (64, 2), (128, 1)])
def test_window_attention_is_the_slow_one(dtype: torch.dtype, head_dim: int, batch: int) -> None:
    """Of more shapes than torch compiles by itself, with text that nobody sees, too."""
    for rows in range(3, 15):
        geometry = Geometry((3, rows, 7), (3, 5, 3), text_tokens=5)
        generator = torch.Generator().manual_seed(rows)
        shape = (3, batch, 2, geometry.tokens, head_dim)
        q, k, v = torch.randn(shape, generator=generator).to(DEVICE, dtype).unbind()
        seen_S = torch.ones(geometry.tokens, dtype=torch.bool, device=DEVICE)
        seen_S[geometry.tokens - 2 :] = rows % 2 == 0
        mask = sees(geometry, DEVICE) & seen_S
        slow = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
        fast = windowed(q, k, v, geometry, None, seen_S).float()
        assert (fast - slow).abs().max() < (5e-3 if dtype == torch.float32 else 3e-2)


def test_what_other_tiles_keep_waits_in_the_hosts_memory() -> None:
    shelf, device = Shelf(DEVICE), torch.device(DEVICE)
    mine, other = (Stayed(Unit("step", 0, index=index, step=3), 1) for index in (0, 1))
    numbers = torch.randn(2, MUCH_MEMORY // 4, device=device)
    assert shelf.takes({"x": numbers[0]})
    for what, kept in zip((mine, other), numbers, strict=True):
        shelf.put(what, {"x": kept})
    assert shelf.make_room(mine) == MUCH_MEMORY
    for what, kept in zip((mine, other), numbers, strict=True):
        found = shelf.get(what)
        assert found is not None and found["x"].device.type == device.type
        assert torch.equal(found["x"], kept)
    handed = shelf.hand_over(mine)
    assert handed is not None and torch.equal(to_tensor(handed, f"{ACCEL}x", device), numbers[0])


def test_the_peak_is_what_was_allocated() -> None:
    device = torch.device(DEVICE)
    with peak_of(device) as peak:
        for _ in range(3):
            torch.empty(2**24, device=device)
    assert 2**26 <= peak.peak_bytes < 2**26 + 2**22


@pytest.mark.skipif(DEVICE == "cpu", reason="there is no other processor")
@pytest.mark.parametrize("kind", KINDS)
def test_encoders_without_room_are_on_the_processor(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tiny_family(kind, tmp_path)
    worker, plain = worker_of(tiny), worker_of(tiny, "cpu")
    worker.setup = dataclasses.replace(worker.setup, encoding_bytes=10**9)
    monkeypatch.setattr(machine, "free_bytes", {DEVICE: 0, "cpu": 2**40}.__getitem__)
    task = EncodeTask(unit=Unit("encode", 0), attempt=1, shot=tiny.shot)
    (report, found), (told, expected) = (each.run(task, []) for each in (worker, plain))
    assert (report.on_processor, told.on_processor) == (True, False)
    for name, array in expected.arrays.items():
        assert np.allclose(found.arrays[name], array, atol=1e-5), name
    render_windows(worker, tiny.shot, windows_of(tiny))


@pytest.mark.skipif(DEVICE == "cpu", reason="a CPU's memory is everybody's")
def test_memory_that_runs_out_is_told_as_such(tmp_path: Path) -> None:
    tiny = tiny_family("wan", tmp_path)
    worker = worker_of(tiny)
    large = dataclasses.replace(
        tiny.shot, latent_frames=24, latent_height=128, latent_width=128, pixel_frames=93
    )
    release(DEVICE)  # what other tests left in the allocator's cache is under no limit
    whole = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction(3e7 / whole, DEVICE)
    try:
        with pytest.raises(UnitError) as caught:
            render_windows(worker, large, [Window(0, 0, 24)])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
    assert caught.value.kind == "out_of_memory"
