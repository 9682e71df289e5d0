"""Stage-wise training as a person runs it: on a tiny Wan folder and a few written videos."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from PIL import Image
from safetensors.torch import load_file, save_file

from accel.pyramid import FlowPath
from jobs.errors import BadJob
from jobs.model_folder import inspect_model
from jobs.spec_pyramid import TRAINABLE
from jobs.units import ShotRender
from tests.marks import few
from tests.training.test_tpdiff_videos import write_video
from tests.workers.tiny_ltx import write_tiny_ltx
from training.stages import clip_frames
from training.tpdiff.__main__ import main
from training.tpdiff.batches import MicroBatch, MicroBatches
from training.tpdiff.settings import Settings
from training.tpdiff.texts import Texts
from training.tpdiff.trainees import TRAINEES, load_trainee
from training.tpdiff.videos import Damaged, scan
from training.tpdiff.wan import WanTrainee

ROOT = Path(__file__).parents[2]

#: Enough to meet both stages, and noises that alignment deals out otherwise.
SHORT = ("--steps", "4", "--batch", "4", "--warmup-steps", "1")

pytestmark = pytest.mark.slow


def run(model: Path, data: Path, out: Path, *more: str) -> Path:
    main(["--model", str(model), "--data", str(data), "--out", str(out), "--stages", "2",
          "--batch", "2", "--rate", "1e-3", *more])  # fmt: skip
    return out


@pytest.fixture(scope="module")
def plain(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What these steps give without any option."""
    return run(model, data, tmp_path_factory.mktemp("plain"), *SHORT)


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


ADAPTER = ("--lora-rank", "2", "--merge", "--rate", "0.02", "--warmup-steps", "1")


@pytest.mark.parametrize("more", [(), ADAPTER], ids=["all weights", "adapter"])
def test_a_stopped_training_goes_on_to_the_same_weights(
    model: Path, data: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    whole = run(model, data, tmp_path / "whole", "--steps", "4", "--accumulate", "2", *more)
    halves = run(model, data, tmp_path / "halves", "--steps", "2", "--accumulate", "2", *more)
    middle, learns = weights(halves / "model"), "blocks.0.attn1.to_q.weight"
    state = load_file(halves / "state" / "2" / "model.safetensors")
    assert not more or all("lora" in name for name in state), "its base is frozen"
    run(model, data, halves, "--steps", "4", "--accumulate", "2", *more)
    for name, tensor in weights(whole / "model").items():
        assert torch.equal(tensor, weights(halves / "model")[name]), name
    assert not torch.equal(middle[learns], weights(whole / "model")[learns])
    losses = [(folder / "losses.jsonl").read_text() for folder in (whole, halves)]
    assert losses[0] == losses[1] and losses[0].count("\n") == 4


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


def test_an_adapters_base_is_in_the_precision_asked_for(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is frozen; the adapter, and a whole model with it, stay in float32 and near to what they
    are with a base in float32."""
    bases: list[tuple[torch.dtype, torch.dtype]] = []
    predict = WanTrainee.predict

    def watched(self: WanTrainee, *inputs: Any) -> torch.Tensor:
        kept = {p.requires_grad: p.dtype for p in self.denoiser.blocks[0].attn1.parameters()}
        bases.append((kept[False], kept[True]))
        return predict(self, *inputs)

    monkeypatch.setattr(WanTrainee, "predict", watched)
    said = ["--steps", "4", "--lora-rank", "2", "--merge", "--rate", "0.02", "--warmup-steps", "1"]
    whole = run(model, data, tmp_path / "whole", *said)
    AcceleratorState._reset_state(reset_partial_state=True)
    half = run(model, data, tmp_path / "half", *said, "--precision", "bf16")
    assert bases == [(torch.float32, torch.float32)] * 4 + [(torch.bfloat16, torch.float32)] * 4
    name = "blocks.0.attn1.to_q.weight"
    before, ours, theirs = (weights(f)[name] for f in (model, half / "model", whole / "model"))
    assert before.dtype == ours.dtype == torch.float32
    assert (ours - theirs).norm() < 0.2 * (theirs - before).norm()
    untouched = "patch_embedding.weight"
    assert torch.equal(weights(model)[untouched], weights(half / "model")[untouched])
    adapter = load_file(half / "lora" / "pytorch_lora_weights.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}


@pytest.mark.parametrize(
    "more",
    few(
        [
            ["--no-alignment"],
            ["--no-stage-positions"],
            ["--coarse", "first"],
            ["--precision", "bf16"],
        ],
        ["--no-alignment"],
        ["--no-stage-positions"],
        ["--coarse", "first"],
    ),
)
def test_options_change_what_is_learned(
    model: Path, data: Path, tmp_path: Path, plain: Path, more: list[str]
) -> None:
    out = run(model, data, tmp_path / "out", *SHORT, *more)
    ours, theirs = weights(out / "model"), weights(plain / "model")
    assert not torch.equal(ours["proj_out.weight"], theirs["proj_out.weight"])
    assert all(tensor.dtype == torch.float32 for tensor in ours.values())
    assert inspect_model(out / "model").defaults.stage_positions == (
        "--no-stage-positions" not in more
    )


@pytest.mark.long
def test_checkpointing_computes_again_and_learns_the_same(
    model: Path, data: Path, tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[str] = []
    forward = WanTransformerBlock.forward

    def counted(self: WanTransformerBlock, *inputs: object) -> torch.Tensor:
        entered.append("block")
        return forward(self, *inputs)

    monkeypatch.setattr(WanTransformerBlock, "forward", counted)
    run(model, data, tmp_path / "kept", *SHORT)
    once = len(entered)
    out = run(model, data, tmp_path / "out", *SHORT, "--checkpointing")
    assert once == 2 * 4 and len(entered) - once == 2 * once, "each block of two, and again"
    for name, tensor in weights(plain / "model").items():
        assert torch.equal(tensor, weights(out / "model")[name]), name


def test_pictures_are_rendered_as_films_will_be(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, tuple[int, ...]]] = []
    sample = WanTrainee.sample

    def watched(self: WanTrainee, shot: ShotRender, told: dict[str, torch.Tensor]) -> np.ndarray:
        shown.append((shot.prompt, shot.stage_steps))
        return sample(self, shot, told)

    monkeypatch.setattr(WanTrainee, "sample", watched)
    every = ["--steps", "1", "--sample-every", "1", "--sample-steps", "7"]
    out = run(model, data, tmp_path / "out", *every)
    assert shown == [("sea 0", (4, 3)), ("sea 1", (4, 3))]
    shown.clear()
    own = ["--sample-prompt", "a boat", "--step-shares", "5-2"]
    other = run(model, data, tmp_path / "other", *every, *own)
    assert shown == [("a boat", (5, 2))]
    whole, half = (each / "samples" / "step_000001.png" for each in (out, other))
    assert Image.open(whole).height > 1.5 * Image.open(half).height


def test_videos_too_short_for_whole_windows_are_counted(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in data.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_video(tmp_path / "less.mp4", frames=16)
    window = ["--steps", "1", "--pixel-frames", "9"]
    run(model, data, tmp_path / "all", *window)
    assert "whole windows" not in capsys.readouterr().err
    run(model, tmp_path, tmp_path / "out", *window)
    said = capsys.readouterr().err
    note = "note: 1 of 4 videos last less than the 1.75 s that whole windows of stage 1 take"
    assert said.count("whole windows") == 1 and note in said, said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", "30x32"], "--size 30x32: both must be multiples of 16"),
        (["--pixel-frames", "8"], "the nearest: 7 or 9"),
        (["--step-shares", "1-1-1"], "has 3 shares for 2 stages; give one for each"),
        (["--step-shares", "1"], "has 1 share for 2 stages"),
        (["--step-shares", "0-1"], "needs a share of 1 or more"),
        (["--batch", "0"], "--batch must be 1 or more, not 0"),
        (["--starts", "2"], "--starts is a share"),
        (["--rate", "0"], "--rate must be more than 0"),
        (["--merge"], "--merge would change nothing: all weights are trained"),
        (["--stages", "1", "--coarse", "first"], "--coarse would change nothing: --stages 1"),
        (["--stages", "1", "--step-shares", "1"], "--step-shares would change nothing"),
        (["--stages", "1", "--no-stage-positions"], "--no-stage-positions would change nothing"),
        (["--sample-prompt", "a boat"], "--sample-prompt would change nothing: --sample-every 0"),
        (["--sample-steps", "9"], "--sample-steps would change nothing: --sample-every 0"),
        (["--sample-prompt", " ", "--sample-every", "1"], "--sample-prompt is empty"),
        (["--sample-steps", "1", "--sample-every", "1"], "is too few for 2 stages"),
        (["--seed", "-1"], "--seed must be 0 to 4294967295, not -1"),
        (["--out", __file__], "test_tpdiff.py is a file; give a folder"),
        (["--pixel-frames", "5", "--stages", "4", "--fps", "6"], "lasts 2.00 s, and a clip 2.83 s"),
        (["--precision", "fp16"], "--precision fp16 needs a GPU, and there is none"),
    ],
)
def test_mistakes(model: Path, data: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as refused:
        run(model, data, tmp_path / "out", "--steps", "1", *more)
    assert message in str(refused.value)


def test_a_family_that_is_not_trained_is_told_before_its_schedule(tmp_path: Path) -> None:
    folder = write_tiny_ltx(tmp_path / "ltx")
    with pytest.raises(BadJob, match="ltx models cannot be trained yet; wan, animatediff can"):
        load_trainee(str(folder), "cpu", stages=2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--step-shares", "2-x"], "--step-shares: '2-x' is no shares; write them such as 2-1-1"),
        (["--size", "832"], "--size: '832' is no size; write it such as 832x480"),
        (["--size", "0x32"], "'0x32' is no size"),
    ],
)
def test_what_has_another_form(
    capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        main(["--model", "demo", "--data", "data", "--out", "out", *more])
    assert message in capsys.readouterr().err


def test_warnings_tell_of_a_training_where_there_is_one() -> None:
    assert set(TRAINABLE) == TRAINEES.keys()


def test_a_plain_twin_has_no_pyramid(model: Path, data: Path, tmp_path: Path) -> None:
    out = run(model, data, tmp_path / "out", "--steps", "1", "--stages", "1")
    assert inspect_model(out / "model").defaults.pyramid_steps == ()


def test_a_result_trained_on_does_not_touch_what_it_came_from(
    model: Path, data: Path, tmp_path: Path
) -> None:
    out = run(model, data, tmp_path / "out", "--steps", "1")
    first = inspect_model(out / "model").identity
    with pytest.raises(SystemExit, match="was begun with model"):
        run(out / "model", data, out, "--steps", "2")
    assert inspect_model(out / "model").identity == first
    config = out / "model" / "scheduler" / "scheduler_config.json"
    before = (model / "scheduler" / "scheduler_config.json").read_text()
    config.write_text("{}")
    assert (model / "scheduler" / "scheduler_config.json").read_text() == before


@pytest.mark.long
def test_windows_of_all_stages_start_shots_and_lie_inside(model: Path, data: Path) -> None:
    videos, _ = scan(data, 0.5)
    geometry = inspect_model(model).geometry
    settings = Settings(pixel_frames=5, fps=12, size=(32, 32), batch=2, stages=2)
    batches = MicroBatches(videos, settings, geometry, FlowPath())
    met = set()
    for number in range(40):
        drawn = batches.draw(number)
        latents = geometry.latent_frames(drawn.frames_BFHWC.shape[1]) - (not drawn.starts)
        stage = batches.stages[drawn.stage]
        assert latents == clip_frames(stage, drawn.frames, starts=drawn.starts)
        assert drawn.frames == 3, "the videos are long enough"
        met.add((drawn.stage, drawn.starts))
    assert len(met) == 4
    long = Settings(pixel_frames=21, fps=12, size=(32, 32), stages=2, starts=0.0)
    few = [MicroBatches(videos, long, geometry, FlowPath()).draw(n) for n in range(8)]
    assert {drawn.frames for drawn in few if drawn.stage == 0} == {5}, "as long as a video allows"


@pytest.mark.long
@pytest.mark.parametrize("more", [(), ADAPTER], ids=["all weights", "adapter"])
def test_two_processes(model: Path, data: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """Each draws its own; a step of both is one process's of twice as much, and they go on after a
    stop. What there is to go on from is said when all have written theirs."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "--module", "tests.training.late_rank", "--model", str(model), "--data", str(data), "--out",
        str(tmp_path / "out"), "--stages", "2", "--rate", "1e-3", "--batch", "1", *more,
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for steps, resumed in (("2", 0), ("3", 1)):
        ran = subprocess.run(
            [*command, "--steps", steps], capture_output=True, text=True, env=env, cwd=ROOT
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        said = [line for line in ran.stderr.splitlines() if "render with it" in line]
        assert said and len(set(said)) == len(said), "one process speaks"
        assert ran.stderr.count("going on from step 2") == resumed
    kept = tmp_path / "out" / "tpdiff.json"
    assert json.loads(kept.read_text())["origin"]["processes"] == 2
    late = tmp_path / "out" / "state" / "3" / "random_states_1.pkl"
    assert late.stat().st_mtime <= kept.stat().st_mtime
    alone = run(model, data, tmp_path / "alone", "--steps", "3", "--batch", "1",
                "--accumulate", "2", *more)  # fmt: skip
    before = weights(model)
    both, one = (weights(each / "model") for each in (tmp_path / "out", alone))
    apart = sum((both[name] - one[name]).square().sum() for name in one).sqrt()
    learned = sum((one[name] - before[name]).square().sum() for name in one).sqrt()
    assert apart < 0.02 * learned and learned > 0, (apart, learned)


def test_other_settings_in_the_same_folder_are_refused(
    model: Path, data: Path, tmp_path: Path
) -> None:
    run(model, data, tmp_path / "out", "--steps", "1")
    with pytest.raises(SystemExit, match=r"was begun with batch 2 \(now 1\)"):
        run(model, data, tmp_path / "out", "--steps", "2", "--batch", "1")
    run(model, data, tmp_path / "out", "--steps", "2", "--checkpointing")


def test_micro_batches_depend_on_their_number_alone(model: Path, data: Path) -> None:
    videos, _ = scan(data, 0.5)
    settings = Settings(pixel_frames=5, fps=12, size=(32, 32), batch=2)
    geometry = inspect_model(model).geometry
    ours, again, other = (
        MicroBatches(videos, settings, geometry, FlowPath(), rank, ranks=2) for rank in (0, 0, 1)
    )
    assert list(ours.ahead(range(3, 3))) == []
    ahead = [drawn.noise_seed for drawn in ours.ahead(range(5, 8))]
    assert ahead == [again.draw(number).noise_seed for number in (5, 6, 7)]
    ours, again, other = (each.draw(7) for each in (ours, again, other))
    assert np.array_equal(ours.frames_BFHWC, again.frames_BFHWC)
    assert (ours.captions, ours.stage, ours.noise_seed) == (
        again.captions, again.stage, again.noise_seed
    )  # fmt: skip
    assert ours.noise_seed != other.noise_seed


def test_the_next_clips_are_read_meanwhile_and_damage_comes_in_its_turn(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos, _ = scan(data, 0.5)
    settings = Settings(pixel_frames=5, fps=12, size=(32, 32), batch=2)
    batches = MicroBatches(videos, settings, inspect_model(model).geometry, FlowPath())
    draw, second = batches.draw, threading.Event()

    def watched(number: int) -> MicroBatch:
        if number == 6:
            second.set()
        if number == 7:
            raise Damaged(videos[0].path, "torn")
        return draw(number)

    monkeypatch.setattr(batches, "draw", watched)
    drawn = batches.ahead(range(5, 8))
    assert next(drawn).noise_seed == draw(5).noise_seed
    assert second.wait(10), "nobody reads ahead"
    assert next(drawn).noise_seed == draw(6).noise_seed
    with pytest.raises(Damaged, match="torn"):
        next(drawn)


def test_a_state_without_its_adapter_is_not_gone_on_from(
    model: Path, data: Path, tmp_path: Path
) -> None:
    out = run(model, data, tmp_path / "out", "--steps", "1", *ADAPTER)
    file = out / "state" / "1" / "model.safetensors"
    kept = load_file(file)
    lost = kept.pop(sorted(kept)[0])
    save_file(kept, file)
    with pytest.raises(SystemExit, match=r"lacks 1 of the \d+ tensors that are trained"):
        run(model, data, out, "--steps", "2", *ADAPTER)
    assert lost.numel()


def test_captions_are_encoded_once(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run(model, data, tmp_path / "out", "--steps", "1")
    assert len(list((out / "texts").glob("*.safetensors"))) == 3 + 1, "and no caption, for guidance"
    told = Texts(out / "texts", inspect_model(model).identity, 12)
    trainee = load_trainee(str(model), "cpu")
    assert torch.equal(told["sea 1"], trainee.embed("sea 1"))
    assert not torch.equal(told["sea 1"], told["sea 2"])

    def unwanted(self: object, prompt: str) -> torch.Tensor:
        raise AssertionError(f"{prompt} has been encoded before")

    monkeypatch.setattr(WanTrainee, "embed", unwanted)
    run(model, data, out, "--steps", "2")
    with pytest.raises(AssertionError, match="encoded before"):
        Texts(out / "texts", "another model", 12).encode(["sea 1"], trainee.embed)
