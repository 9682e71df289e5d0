"""How a training ends before its time, and what is kept then."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from accel.pyramid import FlowPath
from jobs.model_folder import inspect_model
from tests.training.test_tpdiff import run, weights
from tests.training.test_tpdiff_videos import write_torn, write_video
from training.tpdiff.batches import MOST_DRAWS, MicroBatch, MicroBatches
from training.tpdiff.settings import Settings
from training.tpdiff.trainer import Trainer
from training.tpdiff.videos import Damaged, scan

pytestmark = pytest.mark.slow


def copied(data: Path, to: Path) -> Path:
    to.mkdir(exist_ok=True)
    for path in data.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def spoil(path: Path) -> Path:
    """Cut a video off after it was looked at."""
    path.write_bytes(path.read_bytes()[:200])
    return path


def kept_step(out: Path) -> int:
    return int(json.loads((out / "tpdiff.json").read_text())["step"])


def test_bad_data_is_refused_or_skipped(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(data, tmp_path / "data")
    write_video(folder / "short.mp4", frames=3)
    write_video(folder / "wordy.mp4", caption="sea " * 40)
    with pytest.raises(SystemExit) as refused:
        run(model, folder, tmp_path / "out", "--steps", "1")
    said = str(refused.value)
    assert "2 videos cannot be trained on:" in said
    assert "short.mp4: lasts 0.25 s, and a clip 0.75 s" in said and "--bad-data skip" in said
    assert "wordy.mp4: its caption has 160 tokens, and this model reads 12; shorten it" in said
    assert not (tmp_path / "out" / "model").exists()
    run(model, folder, tmp_path / "out", "--steps", "1", "--bad-data", "skip")
    assert capsys.readouterr().err.count("skipped:") == 2


def test_a_damaged_video_ends_a_training_that_goes_on_without_it(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the same weights as one that went without it from the start."""
    folder = copied(data, tmp_path / "data")
    write_torn(folder / "torn.mp4")
    # With this seed it is first met in the second of a step's two batches.
    asked = ("--steps", "4", "--accumulate", "2", "--seed", "8")
    with pytest.raises(SystemExit, match=r"torn\.mp4 cannot be read .* --bad-data skip"):
        run(model, folder, tmp_path / "out", *asked)
    step = kept_step(tmp_path / "out")
    assert 1 <= step < 4 and not (tmp_path / "out" / "model").exists()
    capsys.readouterr()
    run(model, folder, tmp_path / "out", *asked, "--bad-data", "skip")
    told = capsys.readouterr().err
    assert f"going on from step {step}" in told
    assert told.count("skipped where it is damaged") == 1 and "--bad-data" not in told
    whole = run(model, folder, tmp_path / "whole", *asked, "--bad-data", "skip")
    for name, tensor in weights(whole / "model").items():
        assert torch.equal(tensor, weights(tmp_path / "out" / "model")[name]), name


def test_what_is_drawn_instead_of_a_damaged_video(model: Path, data: Path, tmp_path: Path) -> None:
    """The same whoever draws; all other draws are as they were."""
    videos, _ = scan(copied(data, tmp_path / "data"), 0.5)
    settings = Settings(pixel_frames=5, fps=12, size=(32, 32), batch=2, dropped_captions=0.0)
    met: list[Path] = []
    batches = MicroBatches(
        videos, settings, inspect_model(model).geometry, FlowPath(),
        met=lambda damaged: met.append(damaged.path),
    )  # fmt: skip
    before = [batches.draw(number) for number in range(6)]
    assert met == []
    spoil(videos[1].path)
    after, again = ([batches.draw(number) for number in range(6)] for _ in range(2))
    assert {*met} == {videos[1].path} and all(1 not in drawn.captions for drawn in after)
    for old, new, same in zip(before, after, again, strict=True):
        assert np.array_equal(new.frames_BFHWC, same.frames_BFHWC)
        assert (new.noise_seed == old.noise_seed) == (1 not in old.captions)
    for video in videos:
        spoil(video.path)
    with pytest.raises(Damaged, match=f"in {MOST_DRAWS} draws in a row a video was damaged"):
        batches.draw(0)
    strict = MicroBatches(videos, settings, inspect_model(model).geometry, FlowPath())
    with pytest.raises(Damaged):
        strict.draw(0)


def test_weights_that_blow_up_become_no_model(model: Path, data: Path, tmp_path: Path) -> None:
    """Told by the loss of the next step, or by themselves where there is none; what was saved
    before stays."""
    out = run(model, data, tmp_path / "out", "--steps", "1")
    with pytest.raises(SystemExit) as ended:
        run(model, data, tmp_path / "more", "--steps", "9", "--rate", "1e30")
    said = str(ended.value)
    assert "the loss is not a number in step 2: no model is written" in said
    assert "a lower --rate (it is 1e+30)" in said
    assert not (tmp_path / "more" / "model").exists()
    state = out / "state" / "1" / "model.safetensors"
    before = state.read_bytes()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(Trainer, "_micro_step", blow_up)
        run(model, data, out, "--steps", "2")
    assert "some weights are no numbers after step 2: no model" in str(ended.value)
    assert kept_step(out) == 1 and state.read_bytes() == before


def blow_up(trainer: Trainer, drawn: object) -> float:
    with torch.no_grad():
        trainer._weights[0].fill_(torch.nan)
    return 1.0


def test_a_device_without_memory_left_is_told_what_takes_less(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run(model, data, tmp_path / "out", "--steps", "1")

    def no_room(*_: object) -> float:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(Trainer, "_micro_step", no_room)
    with pytest.raises(SystemExit, match=r"no memory left for this.* takes less: --checkpo"):
        run(model, data, out, "--steps", "2")
    assert kept_step(out) == 1


def test_samples_that_are_no_pictures_are_told_and_end_no_training(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that are still numbers."""
    out = run(model, data, tmp_path / "out", "--steps", "1", "--sample-every", "1",
              "--sample-steps", "2", "--rate", "1e30", "--warmup-steps", "1")  # fmt: skip
    said = "".join(capsys.readouterr())
    assert "no sample of" in said and "pixels became NaN or infinite" in said
    assert (out / "model").is_dir() and not (out / "samples").exists()


def test_a_prompt_of_a_sample_that_is_too_long(model: Path, data: Path, tmp_path: Path) -> None:
    asked = ("--steps", "1", "--sample-every", "1", "--sample-prompt", "sea " * 40)
    with pytest.raises(SystemExit, match=r"--sample-prompt .sea sea.* has \d+ tokens"):
        run(model, data, tmp_path / "out", *asked)


def test_ctrl_c_keeps_the_step(
    model: Path, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A real signal, in the middle of a step, which is finished; and what goes on from there ends
    as what was never stopped."""
    asked, micro_step, seen = ("--steps", "3", "--accumulate", "2"), Trainer._micro_step, []
    before = signal.getsignal(signal.SIGINT)

    def stopping(self: Trainer, drawn: MicroBatch) -> float:
        seen.append(drawn)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)
        return micro_step(self, drawn)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_micro_step", stopping)
        with pytest.raises(SystemExit) as ended:
            run(model, data, tmp_path / "out", *asked)
    assert ended.value.code == 130 and kept_step(tmp_path / "out") == 2 and len(seen) == 4
    told = capsys.readouterr().err
    assert "stopping after this step" in told and "stopped; the same command goes on" in told
    assert signal.getsignal(signal.SIGINT) is before
    run(model, data, tmp_path / "out", *asked)
    whole = run(model, data, tmp_path / "whole", *asked)
    for name, tensor in weights(whole / "model").items():
        assert torch.equal(tensor, weights(tmp_path / "out" / "model")[name]), name
