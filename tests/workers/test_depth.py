"""Memory that runs out costs a retry in more slices, not the film."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import resource
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel

from jobs.accelerations import Accelerations, Adaptive, Rehash, Slicing
from jobs.arrays import Bundle
from jobs.errors import UnitError
from jobs.units import DecodeTask, TaskReport, Window
from orchestrator.here import frames_of
from tests.marks import few
from tests.workers.tiny import encode, piece_task, step_task
from tests.workers.tiny_families import TinyFamily, tiny_family
from workers.bundles import to_bundle
from workers.depth import DEEPEST, Depth
from workers.setup import WorkerSetup
from workers.worker import Worker

#: A piece of this many latent pixels a side takes 200 MB whole, 80 in 8 slices.
SIDE = 96
_M_MMAP_THRESHOLD, _USUAL_AT_MOST = -3, 2**25


@pytest.fixture(scope="module")
def svd(tmp_path_factory: pytest.TempPathFactory) -> TinyFamily:
    """Its decoder takes all frames of a clip at once."""
    return tiny_family("svd", tmp_path_factory.mktemp("svd"))


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> TinyFamily:
    return tiny_family("wan", tmp_path_factory.mktemp("wan"))


def worker_of(tiny: TinyFamily, *, deepens: bool = False, **asked: object) -> Worker:
    asked_for = Accelerations(**asked)
    setup = WorkerSetup(worker="w", model=str(tiny.folder), family=tiny.name)
    return Worker(dataclasses.replace(setup, accelerations=asked_for, deepens=deepens))


def a_piece(tiny: TinyFamily, side: int = SIDE) -> tuple[DecodeTask, list[Bundle]]:
    shot = dataclasses.replace(tiny.shot, latent_height=side, latent_width=side)
    frames, window = shot.latent_frames, Window(0, 0, shot.latent_frames)
    task = dataclasses.replace(piece_task(shot, 0, frames), windows=(window,), owned=((0, frames),))
    drawn = torch.randn(1, 4, frames, side, side, generator=torch.manual_seed(1))
    return task, [to_bundle({"latents": drawn})]


def takes_bytes() -> int:
    """Of memory it may write to: address space that other threads' heaps reserve is no memory,
    and is lent to this one when the limit refuses it more."""
    return psutil.Process().memory_info().data


def fill_the_heap() -> list[torch.Tensor]:
    """Tensors in all holes that are large enough for one: what does not come from there counts.
    What the tests before have left in cycles goes first: collected in the midst of a test, it
    would make room there."""
    gc.collect()
    assert ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**16), "pages of its own, where no hole is"
    fillers, in_a_row = list[torch.Tensor](), 0
    while in_a_row < 4:  # once may be by chance: Python takes pages for its own objects, too
        had_bytes = takes_bytes()
        fillers.append(torch.empty(2**20, dtype=torch.uint8))
        in_a_row = in_a_row + 1 if takes_bytes() - had_bytes >= 2**20 else 0
    return fillers


@contextmanager
def little_memory(more_mb: int) -> Iterator[None]:
    """This process may take so much more than it has, by the kernel's own limit."""
    fillers = fill_the_heap()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (takes_bytes() + more_mb * 10**6, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _USUAL_AT_MOST)  # later tests are as fast
        fillers.clear()


def runs_out(patch: pytest.MonkeyPatch, times: int = 1, at: str = "worker.before_model") -> None:
    """At the next units of this process, tried again or not."""
    patch.setattr("jobs.faults._passages", Counter())
    patch.setenv("LONGTAKE_FAULT", ",".join(f"{at}:nomem:{n + 1}" for n in range(times)))


def test_a_piece_that_does_not_fit_is_decoded_in_slices(svd: TinyFamily) -> None:
    task, latents = a_piece(svd)
    whole, thin = (worker_of(svd, **each).run(task, latents) for each in ({}, SLICED))
    worker = worker_of(svd, deepens=True)
    with little_memory(130):
        report, piece = worker.run(task, latents)
    assert report.deeper == 8
    assert report.engaged == thin[0].engaged != {}
    assert report.numerics == thin[0].numerics != whole[0].numerics
    assert np.array_equal(frames_of(piece), frames_of(thin[1]))
    far = np.abs(frames_of(piece).astype(int) - frames_of(whole[1])).max()
    assert far <= 1, "the same but for rounding"


def test_a_piece_may_have_to_be_cut_more_than_once(
    svd: TinyFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, latents = a_piece(svd, side=16)
    thinner = worker_of(svd, slicing=Slicing(slices=4))
    known, expected = thinner.run(task, latents)
    worker = worker_of(svd, slicing=Slicing(slices=2), deepens=True)
    worker.run(task, latents)
    runs_out(monkeypatch)
    report, piece = worker.run(task, latents)
    assert (report.deeper, report.engaged) == (4, known.engaged)
    assert np.array_equal(frames_of(piece), frames_of(expected))


def test_a_class_that_is_pinned_stays_whole(svd: TinyFamily) -> None:
    task, latents = a_piece(svd)
    worker = worker_of(svd)
    with little_memory(130), pytest.raises(UnitError, match=r"slicing: \{slices: 8\}") as caught:
        worker.run(task, latents)
    assert caught.value.kind == "out_of_memory"
    assert worker.run(task, latents)[0].engaged == {}, "nothing stays behind"


SLICED = {"slicing": Slicing(slices=8)}
REHASHED = {"rehash": Rehash(every=2, first=1)}
SKIPPING = {"adaptive": Adaptive(form="spectral", threshold=0.5, first=1, forecast=True)}


@contextmanager
def short_of_memory(worker: Worker, times: int = 1) -> Iterator[None]:
    """Midway through the model, at its next passes."""
    left = iter(range(times))

    def hook(*_: object) -> None:
        if next(left, None) is not None:
            raise MemoryError

    last = [each for each in worker._family.denoiser.modules() if not list(each.children())][-1]
    handle = last.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("times", few([1, 2], 1))
@pytest.mark.parametrize(
    ("kind", "asked"),
    [("wan", {}), ("wan", SKIPPING), ("animatediff", {}), ("animatediff", REHASHED)],
)
def test_a_step_that_does_not_fit_goes_on_in_slices(
    kind: str, asked: dict, times: int, tmp_path: Path
) -> None:
    """From what the step before left, whatever accelerations had kept with the tile; those after it
    are in as many."""
    tiny, slices = tiny_family(kind, tmp_path), 4 * 2**times
    worker = worker_of(tiny, **asked, deepens=True)
    known = worker_of(tiny, **asked, slicing=Slicing(slices=slices))
    text, windows = encode(worker, tiny.shot), [Window(0, 0, tiny.shot.latent_frames)]
    first, deeper = worker.run(step_task(tiny.shot, windows, 0, 0), [text])[1], []
    ours, theirs = first, first
    with short_of_memory(worker, times):
        for number in (1, 2, 3):
            task = step_task(tiny.shot, windows, 0, number)
            (report, ours), (told, theirs) = (
                each.run(task, [text, before]) for each, before in ((worker, ours), (known, theirs))
            )
            deeper.append(report.deeper)
            if any(deeper):
                assert (report.numerics, report.engaged) == (told.numerics, told.engaged)
            for name, array in theirs.arrays.items():
                assert np.array_equal(ours.arrays[name], array), (number, name)
    assert [each for each in deeper if each is not None] == [slices], "told once"


Compute = Callable[[Worker], tuple[TaskReport, Bundle]]


@pytest.fixture(params=["step", "piece"])
def unit(request: pytest.FixtureRequest, wan: TinyFamily) -> Compute:
    if request.param == "step":
        return lambda worker: first_step(worker, wan)
    task, latents = a_piece(wan, side=16)
    return lambda worker: worker.run(task, latents)


def assert_as_before(before: tuple[TaskReport, Bundle], after: tuple[TaskReport, Bundle]) -> None:
    for report in (before[0], after[0]):
        assert report.deeper is None
    assert (before[0].numerics, before[0].engaged) == (after[0].numerics, after[0].engaged)
    for name, array in before[1].arrays.items():
        assert np.array_equal(array, after[1].arrays[name]), name


def test_what_runs_out_at_every_depth_is_an_error_and_leaves_all_as_it_was(
    wan: TinyFamily, unit: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_of(wan, deepens=True)
    before = unit(worker)
    runs_out(monkeypatch, times=5)  # whole, and in 8, 16, 32 and 64 slices
    said = r"ran out of memory even in 64 slices .* a smaller size.* \(injected"
    with pytest.raises(UnitError, match=said) as caught:
        unit(worker)
    assert caught.value.kind == "out_of_memory"
    assert "slicing" not in str(caught.value), "was tried"
    assert_as_before(before, unit(worker))


def test_slices_that_let_a_unit_finish_stay_whatever_comes_after(
    wan: TinyFamily, unit: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_of(wan, deepens=True)
    runs_out(monkeypatch)
    assert unit(worker)[0].deeper == 8
    before = unit(worker)
    runs_out(monkeypatch, times=4)
    with pytest.raises(UnitError, match="even in 64 slices"):
        unit(worker)
    assert_as_before(before, unit(worker))


def test_what_slices_do_not_cut_is_not_tried_in_more(
    wan: TinyFamily, unit: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a step that only finishes the one before, or the file of a piece."""
    worker = worker_of(wan, deepens=True)
    before = unit(worker)
    runs_out(monkeypatch, at="worker.before_unit")
    with pytest.raises(UnitError, match="a smaller size") as caught:
        unit(worker)
    assert caught.value.kind == "out_of_memory"
    assert "slic" not in str(caught.value)
    assert_as_before(before, unit(worker))


@pytest.mark.parametrize("kind", ["cluster", "not_finite", "worker"])
def test_a_retry_that_fails_otherwise_says_so_and_leaves_all_as_it_was(
    wan: TinyFamily, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_of(wan, deepens=True)
    before, ran = first_step(worker, wan), iter([MemoryError(), UnitError(kind, "so it is")])

    def fail(*_: object) -> None:
        raise next(ran)

    with monkeypatch.context() as patch:
        patch.setattr(worker._family, "predict", fail)
        with pytest.raises(
            UnitError, match=r"ran out of memory .* in 8 slices: so it is"
        ) as caught:
            first_step(worker, wan)
    assert caught.value.kind == kind
    assert_as_before(before, first_step(worker, wan))


def without_fine_attention(svd: TinyFamily, parent: Path) -> TinyFamily:
    folder = Path(shutil.copytree(svd.folder, parent / "coarse"))
    config = dict(UNetSpatioTemporalConditionModel.load_config(folder / "unet"))
    for name in ("down_block_types", "up_block_types"):
        config[name] = config[name][::-1]
    UNetSpatioTemporalConditionModel.from_config(config).save_pretrained(folder / "unet")
    return dataclasses.replace(svd, folder=folder)


def test_slices_that_cannot_attach_leave_all_as_it_was(
    svd: TinyFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rehash on a UNet whose finest block has no attention does not go with slices."""
    tiny = without_fine_attention(svd, tmp_path)
    worker = worker_of(tiny, **REHASHED, deepens=True)
    before = first_step(worker, tiny)
    for tried in (True, False):
        runs_out(monkeypatch)
        with pytest.raises(UnitError, match="a smaller size") as caught:
            first_step(worker, tiny)
        assert caught.value.kind == "out_of_memory"
        assert ("in 8 slices" in str(caught.value)) == tried
        assert "slices: 8" not in str(caught.value), "planning would refuse them"
    assert_as_before(before, first_step(worker, tiny))


def first_step(worker: Worker, tiny: TinyFamily) -> tuple[TaskReport, Bundle]:
    text, window = worker._family.encode(tiny.shot), Window(0, 0, tiny.shot.latent_frames)
    return worker.run(step_task(tiny.shot, [window], 0, 0), [to_bundle(text)])


def test_another_shots_context_is_of_no_use_to_a_decoder_in_more_slices(
    wan: TinyFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next piece warms up anew, and so is all of the class that it says."""
    worker, lanes = worker_of(wan, deepens=True), []
    task, latents = a_piece(wan, side=16)
    task = dataclasses.replace(task, shot=dataclasses.replace(task.shot, latent_frames=9))
    for shot in (0, 1):
        first = dataclasses.replace(task, unit=dataclasses.replace(task.unit, shot=shot))
        report, _ = worker.run(first, latents)
        lanes.append((report.deeper, list(worker._family._lanes._lanes)))
        runs_out(monkeypatch)
    assert lanes == [(None, [0]), (8, [1])]


@pytest.mark.parametrize(
    ("asked", "autoencoder", "kind", "slices"),
    [
        (None, "AutoencoderKLWan", "step", [8, 16, 32, 64]),
        (None, "AutoencoderKLWan", "decode", [8, 16, 32, 64]),
        (None, "AutoencoderKL", "decode", []),  # a frame at a time as it is
        (None, "AutoencoderKLWan", "encode", []),
        (Slicing(slices=5), "AutoencoderKLWan", "step", [10, 20, 40, 64]),
        (Slicing(slices=DEEPEST + 1), "AutoencoderKLWan", "step", []),
    ],
)
def test_each_time_there_are_twice_as_many(
    asked: Slicing | None, autoencoder: str, kind: str, slices: list[int]
) -> None:
    depth, taken = Depth(asked, autoencoder), []
    others = [each for each in ("encode", "step", "decode") if each != kind]
    before = [depth.slices(each) for each in others]
    while (deeper := depth.deeper(kind)) is not None:
        depth.take(kind, deeper)
        taken.append(depth.slices(kind))
    assert taken == slices
    assert [depth.slices(each) for each in others] == before, "each kind goes its own way"
