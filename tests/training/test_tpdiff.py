"""Stage-wise training as a person runs it: on a tiny Wan folder and a few written videos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file

from jobs.model_folder import inspect_model
from tests.training.test_tpdiff_videos import write_video
from tests.workers.tiny import write_tiny_wan
from training.tpdiff import trainer as trainer_module
from training.tpdiff.__main__ import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_wan(tmp_path_factory.mktemp("model") / "wan")
    (folder / "longtake.json").write_text(
        json.dumps({"format": 1, "size": [32, 32], "fps": 12, "window_latent_frames": 5,
                    "overlap_latent_frames": 1, "text_tokens": 12, "flow_shift": 3.0})
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number in range(3):
        write_video(folder / f"{number}.mp4", caption=f"sea {number}")
    return folder


def run(model: Path, data: Path, out: Path, *more: str) -> Path:
    main(["--model", str(model), "--data", str(data), "--out", str(out), "--stages", "2",
          "--batch", "2", "--rate", "1e-3", *more])  # fmt: skip
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def test_all_weights_are_trained_and_the_result_says_its_pyramid(
    model: Path, data: Path, tmp_path: Path
) -> None:
    out = run(model, data, tmp_path / "out", "--steps", "3", "--sample-every", "3",
              "--sample-steps", "4", "--step-shares", "2-1")  # fmt: skip
    before, after = weights(model), weights(out / "model")
    assert before.keys() == after.keys()
    assert not torch.equal(before["proj_out.weight"], after["proj_out.weight"])
    info = inspect_model(out / "model")
    assert (info.defaults.pyramid_steps, info.defaults.stage_positions) == ((2, 1), True)
    assert info.defaults.size == (32, 32), "what the sidecar said before, it says still"
    assert (out / "samples" / "step_000003.png").stat().st_size > 1000
    assert inspect_model(model).defaults.pyramid_steps == ()


def test_a_stopped_training_goes_on_to_the_same_weights(
    model: Path, data: Path, tmp_path: Path
) -> None:
    whole = run(model, data, tmp_path / "whole", "--steps", "4", "--accumulate", "2")
    halves = run(model, data, tmp_path / "halves", "--steps", "2", "--accumulate", "2")
    middle = weights(halves / "model")
    run(model, data, halves, "--steps", "4", "--accumulate", "2")
    for name, tensor in weights(whole / "model").items():
        assert torch.equal(tensor, weights(halves / "model")[name]), name
    assert not torch.equal(middle["proj_out.weight"], weights(whole / "model")["proj_out.weight"])


def test_an_adapter(model: Path, data: Path, tmp_path: Path) -> None:
    out = run(model, data, tmp_path / "out", "--steps", "4", "--lora-rank", "2",
              "--merge", "--rate", "0.05", "--warmup-steps", "1")  # fmt: skip
    adapter = load_file(out / "lora" / "pytorch_lora_weights.safetensors")
    assert adapter and all("lora" in name for name in adapter)
    assert json.loads((out / "lora" / "longtake.json").read_text())["pyramid_steps"] == [1, 1]
    merged = WanTransformer3DModel.from_pretrained(out / "model", subfolder="transformer")
    pipeline = WanPipeline.from_pretrained(model)
    pipeline.load_lora_weights(out / "lora")
    torch.manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(1, 4, 3, 8, 8), "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 4, 16), "return_dict": False,
    }  # fmt: skip
    with torch.no_grad():
        plain = WanTransformer3DModel.from_pretrained(model, subfolder="transformer")(**inputs)[0]
        theirs, ours = pipeline.transformer(**inputs)[0], merged(**inputs)[0]
    assert torch.allclose(theirs, ours, atol=1e-5)
    assert not torch.allclose(plain, ours, atol=1e-2)


@pytest.mark.parametrize(
    "more", [["--no-alignment"], ["--no-stage-positions"], ["--checkpointing"]]
)
def test_options(model: Path, data: Path, tmp_path: Path, more: list[str]) -> None:
    out = run(model, data, tmp_path / "out", "--steps", "1", *more)
    assert inspect_model(out / "model").defaults.stage_positions == (
        "--no-stage-positions" not in more
    )


def test_bad_data_is_refused_or_skipped(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in data.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_video(tmp_path / "short.mp4", frames=3)
    with pytest.raises(SystemExit) as refused:
        run(model, tmp_path, tmp_path / "out", "--steps", "1")
    said = str(refused.value)
    assert "short.mp4: lasts 0.25 s, and a clip 0.75 s" in said and "--bad-data skip" in said
    assert not (tmp_path / "out" / "model").exists()
    run(model, tmp_path, tmp_path / "out", "--steps", "1", "--bad-data", "skip")
    assert "skipped:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", "30x32"], "must be multiples of 16"),
        (["--pixel-frames", "8"], "the nearest: 7 or 9"),
        (["--step-shares", "1-1-1"], "has 3 shares for 2 stages"),
    ],
)
def test_mistakes(model: Path, data: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as refused:
        run(model, data, tmp_path / "out", "--steps", "1", *more)
    assert message in str(refused.value)


def test_other_settings_in_the_same_folder_are_refused(
    model: Path, data: Path, tmp_path: Path
) -> None:
    run(model, data, tmp_path / "out", "--steps", "1")
    with pytest.raises(SystemExit, match=r"was begun with batch 2 \(now 1\)"):
        run(model, data, tmp_path / "out", "--steps", "2", "--batch", "1")


def test_micro_batches_depend_on_their_number_alone(data: Path) -> None:
    from training.tpdiff.videos import scan

    videos, _ = scan(data, 0.5)
    settings = trainer_module.Settings(pixel_frames=5, fps=12, size=(32, 32), batch=2)
    ours = trainer_module.Pieces(videos, settings, first=7, rank=0, ranks=2).draw(7)
    again = trainer_module.Pieces(videos, settings, first=0, rank=0, ranks=2).draw(7)
    other = trainer_module.Pieces(videos, settings, first=0, rank=1, ranks=2).draw(7)
    assert np.array_equal(ours.frames_BFHWC, again.frames_BFHWC)
    assert (ours.captions, ours.stage, ours.noise_seed) == (
        again.captions, again.stage, again.noise_seed
    )  # fmt: skip
    assert ours.noise_seed != other.noise_seed
