"""Everything that can be wrong with a job, a path or a model, and what the person is told.

Every refusal is one message on standard error that names the place, what is valid and the fix;
nothing stands on standard output, and no job is left in the store.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import Desk, refusal


def whole(desk: Desk, **changes: str) -> str:
    """A job's text that is right but for the changes; a change to '' takes the field out."""
    fields = {
        "model": str(desk.model),
        "prompt": "a red kite",
        "seconds": "1",
        "size": "[64, 64]",
        "steps": "4",
    }
    fields |= changes
    return "".join(f"{name}: {value}\n" for name, value in fields.items() if value)


BAD_FIELDS = [
    # unknown names
    ({"promt": "a"}, "film.yaml:6:1: promt: unknown field 'promt'; did you mean 'prompt'?"),
    ({"scheduler": "dpm"}, "scheduler: unknown value 'dpm'; did you mean 'dpm++'? valid: auto"),
    ({"preset": "exakt"}, "preset: unknown value 'exakt'; did you mean 'exact'? valid: exact,"),
    ({"dtype": "int8"}, "dtype: unknown value 'int8'; valid: auto, float32, bfloat16, float16"),
    ({"numerics": "all"}, "numerics: unknown value 'all'; valid: any, pinned"),
    ({"output": "{codec: vp9}"}, "output.codec: unknown value 'vp9'; valid: h264, ffv1"),
    ({"output": "{crf: 3}"}, "output.crf: unknown field 'crf'; valid: codec, quality"),
    ({"version": "2"}, "version: must be 1, got"),
    # what is missing or empty
    ({"prompt": "''"}, "film.yaml:2:1: prompt: must not be empty; say what the shot shows"),
    ({"prompt": "'  '"}, "film.yaml:2:1: prompt: must not be empty"),
    ({"prompt": ""}, "prompt: missing; say what the shot shows"),
    ({"seconds": ""}, "seconds: missing; say how long the shot is, for example seconds: 5"),
    ({"prompt": "", "seconds": "", "shots": "[]"}, "shots: needs at least 1"),
    # numbers that cannot be
    ({"seconds": "0"}, "film.yaml:3:1: seconds: must be more than 0, got 0"),
    ({"seconds": "-1"}, "seconds: must be more than 0, got -1"),
    ({"seconds": ".nan"}, "seconds: needs a finite number, got nan"),
    ({"seconds": ".inf"}, "seconds: needs a finite number, got inf"),
    ({"seconds": "1e9"}, "got the text '1e9'; write 1000000000 without quotes"),
    ({"seconds": "1.0e+9"}, "seconds: must be at most 86400, got 1000000000"),
    ({"seconds": "ten"}, "seconds: needs a number, got the text 'ten'"),
    ({"seconds": "", "pixel_frames": "0"}, "pixel_frames: must be at least 1, got 0"),
    ({"seconds": "", "pixel_frames": "-5"}, "pixel_frames: must be at least 1, got -5"),
    ({"seconds": "", "pixel_frames": "1.5"}, "pixel_frames: needs a whole number, got 1.5"),
    ({"seconds": "", "pixel_frames": "99999999999"}, "pixel_frames: must be at most"),
    ({"pixel_frames": "9"}, "seconds: give seconds or pixel_frames, not both; remove one"),
    ({"steps": "0"}, "film.yaml:5:1: steps: must be at least 1, got 0"),
    ({"steps": "-3"}, "steps: must be at least 1, got -3"),
    ({"steps": ".nan"}, "steps: needs a whole number, got nan"),
    ({"steps": "1001"}, "steps: must be at most 1000, got 1001"),
    ({"fps": "0"}, "fps: must be at least 1, got 0"),
    ({"fps": "-8"}, "fps: must be at least 1, got -8"),
    ({"fps": ".inf"}, "fps: needs a whole number, got inf"),
    ({"fps": "241"}, "fps: must be at most 240, got 241"),
    ({"guidance": "-1"}, "guidance"),
    ({"guidance": ".nan"}, "needs a finite number, got nan"),
    ({"seed": "-1"}, "seed: must be at least 0, got -1"),
    ({"seed": "99999999999999999999"}, "seed: must be at most"),
    ({"flow_shift": "0"}, "flow_shift: must be more than 0"),
    ({"threads": "0"}, "threads: must be at least 1"),
    ({"checkpoint_every": "0"}, "checkpoint_every: must be at least 1"),
    ({"window_latent_frames": "0"}, "window_latent_frames: must be at least 1"),
    ({"window_latent_frames": "4", "overlap_latent_frames": "4"}, "must be less than the window"),
    ({"size": "[60, 64]", "accelerations": "{slicing: {slices: 2, budget_gb: 9}}"},
     "accelerations.slicing: slices are found for budget_gb; remove one of them"),
    # sizes
    ({"size": "[0, 64]"}, "size[1]: must be at least 16, got 0"),
    ({"size": "[64, -64]"}, "size[2]: must be at least 16, got -64"),
    ({"size": "[.nan, 64]"}, "size[1]: needs a whole number, got nan"),
    ({"size": "[64, 100000]"}, "size[2]: must be at most 8192, got 100000"),
    ({"size": "[64]"}, "size[2]: needs width and height in px, for example [832, 480] or 832x480"),
    ({"size": "big"}, "size: needs width and height in px"),
    ({"size": "[60, 64]"}, "film.yaml:4:1: size: 60x64 does not fit: width and height must be "
     "multiples of 16 px for this model; the nearest: 48x64 or 64x64"),
    ({"image": "a.png"}, "image: wan models start from text alone; remove it, or name a model"),
    # not built
    ({"loras": "[{path: a}]"}, "/a is no file here; give an adapter's file or folder"),
    ({"audio": "{file: a.wav}"}, "audio: not built yet; remove it"),
    ({"regions": "2"}, "regions: more than 1 is not built yet; remove it"),
    ({"pyramid": "5"}, "pyramid: must be off, auto or a whole number from 2 to 4, got 5"),
    ({"pyramid": "3", "steps": "2"}, "steps: 2 steps are too few for a pyramid of 3 stages"),
    ({"model_fps": "4", "fps": "8"}, "model_fps: a model_fps other than fps (8) is not built yet"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), BAD_FIELDS)
def test_a_bad_field(desk: Desk, changes: dict[str, str], said: str) -> None:
    message = desk.refuse(desk.job(whole(desk, **changes)))
    assert said in message
    assert "film.yaml:" in message, "the place is named"


SHOTS = "model: {model}\nshots:\n- prompt: a\n  seconds: 2\n- prompt: b\n  seconds: 2\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("  start_s: 1", "shots[2].start_s: 1, but the shots before it end at 2"),
        ("  start_s: 3", "shots stand in order, without gaps; correct it or remove it"),
        ("  start_s: -1", "shots[2].start_s: must be at least 0, got -1"),
        ("  transition: crossfade", "shots[2].transition: 'crossfade' is not built yet; use 'cut'"),
        ("  crossfade_s: 1", "shots[2].crossfade_s: not built yet; remove it"),
        ("  image: a.png", "shots[2].image: wan models start from text alone; remove it"),
        ("  lenght: 3", "shots[2].lenght: unknown field 'lenght'"),
        ("  pixel_frames: 3", "shots[2].seconds: give seconds or pixel_frames, not both"),
        ("prompt: c", "prompt: stands at the top beside shots; move it into a shot"),
    ],
)
def test_a_bad_shot(desk: Desk, line: str, said: str) -> None:
    message = desk.refuse(desk.job(SHOTS.format(model=desk.model) + line + "\n"))
    assert said in message
    assert message.startswith(f"{desk.folder}/film.yaml:{6 if '.seconds:' in said else 7}:")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("prompt: a: b", "film.yaml:1:10: this is not valid YAML"),
        ("prompt: [a", "is not valid YAML"),
        ("just words", "film.yaml must be a mapping of names to values"),
        ("- a", "film.yaml must be a mapping"),
        ("", "film.yaml is empty; give at least a prompt and seconds"),
        ("# nothing", "film.yaml is empty"),
        (b"prompt: caf\xe9", "film.yaml is not UTF-8 text (byte 12); save it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "film.yaml is not UTF-8 text"),
        (bytes(100), "film.yaml"),
        ("prompt: a\nseconds: 1\nseconds: 2", "film.yaml:3:1: 'seconds' stands here twice"),
        (b"# " + b"x" * 1_100_000, "film.yaml is larger than 1000 kB; is it a job file?"),
    ],
)
def test_a_file_that_is_no_job(desk: Desk, content: str | bytes, said: str) -> None:
    assert said in desk.refuse(desk.job(content))


def test_a_path_that_is_no_file(desk: Desk) -> None:
    (desk.folder / "sub").mkdir()
    assert "sub is a folder; give a job file" in desk.refuse("sub")
    assert "nothing.yaml does not exist" in desk.refuse("nothing.yaml")
    desk.job("", "other.yaml")
    assert "job files there: other.yaml" in desk.refuse("film.yaml")
    assert "not an ordinary file" in desk.refuse("/dev/zero")


def test_no_job_at_all(desk: Desk) -> None:
    assert "give a job file, or --prompt and --seconds" in desk.refuse()
    assert "give a job file, or --prompt" in refusal(desk.run("plan", "--seconds", "1"), 2)
    said = desk.refuse("--prompt", "kite", "--model", desk.model)
    assert said == "seconds: missing; say how long the film is, for example --seconds 5"


GOOD_FLAGS = {"--prompt": "a kite", "--seconds": "1", "--size": "64x64", "--steps": "4"}


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--size", "nonsense", "--size: needs width and height in px, for example [832, 480] or"),
        ("--size", "64", "--size: needs width and height"),
        ("--size", "64x", "--size: needs width and height"),
        ("--size", "-64x64", "--size: needs width and height"),
        ("--size", "0x64", "--size: must be at least 16, got 0"),
        ("--size", "99999x64", "--size: must be at most 8192"),
        ("--size", "60x64", "the nearest: 48x64 or 64x64"),
        ("--lora", "style.safetensors", "--lora: style.safetensors is no file here"),
        ("--seconds", "0", "--seconds: must be more than 0, got 0"),
        ("--seconds", "-2", "--seconds: must be more than 0, got -2"),
        ("--seconds", "nan", "--seconds: needs a finite number, got nan"),
        ("--seconds", "inf", "--seconds: needs a finite number, got inf"),
        ("--seconds", "1e12", "--seconds: must be at most 86400"),
        ("--seconds", "ten", "Invalid value for '--seconds'"),
        ("--fps", "0", "--fps: must be at least 1, got 0"),
        ("--fps", "x", "Invalid value for '--fps'"),
        ("--steps", "-1", "--steps: must be at least 1, got -1"),
        ("--steps", "5000", "--steps: must be at most 1000"),
        ("--seed", "-1", "--seed: must be at least 0"),
        ("--preset", "x", "--preset: unknown value 'x'; valid: exact, balanced, fast"),
        ("--prompt", "  ", "--prompt: must not be empty; say what the shot shows"),
        ("--workers", "0", "Invalid value for '--workers'"),
        ("--workers", "-1", "Invalid value for '--workers'"),
        ("--workers", "1000000", "Invalid value for '--workers'"),
        ("--workers", "two", "Invalid value for '--workers'"),
        ("--timeout", "0", "Invalid value for '--timeout'"),
        ("--timeout", "nan", "--timeout"),
        ("--model", "x", "model: 'x' is no folder here; valid: 'demo', 'demo-pyramid',"),
        ("--model", "film.yaml", "model: 'film.yaml' is a file; valid: 'demo', 'demo-pyramid',"),
        ("--wokers", "2", "No such option: --wokers (Possible options: --workers)"),
    ],
)
def test_a_bad_flag(desk: Desk, flag: str, value: str, said: str) -> None:
    desk.job(whole(desk))
    flags = GOOD_FLAGS | {"--model": str(desk.model), flag: value}
    assert said in desk.refuse(*(each for pair in flags.items() for each in pair))


def test_a_model_that_cannot_be_had(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    args = ("--prompt", "a", "--seconds", "1", "--model", "nobody/nothing")
    said = desk.refuse(*args, code=6)
    assert "'nobody/nothing' is no folder here and could not be had from Hugging Face" in said
    assert "'demo-animatediff-pyramid', the folder of a model, or a Hugging Face id" in said


def test_several_mistakes_are_one_message(desk: Desk) -> None:
    message = desk.refuse(desk.job(whole(desk, fps="0", steps="0", colour="red")))
    assert message.startswith("3 problems in this job:")
    assert [line.split(":")[1] for line in message.splitlines()[1:]] == ["5", "6", "7"]


# -- where the film goes


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("no/such/film.mp4", "does not exist; create it first"),
        ("folder.mp4", "folder.mp4 is a folder; give a file name for the film"),
        ("film.avi", "must end in .mp4; name it film.mp4"),
        ("film.mkv", "must end in .mp4; name it film.mp4"),
        ("film", "must end in .mp4; name it film.mp4"),
        ("", "is a folder; give a file name"),
        (f"{'x' * 300}.mp4", "too long"),
    ],
)
def test_an_output_that_cannot_be(desk: Desk, out: str, said: str) -> None:
    (desk.folder / "folder.mp4").mkdir()
    assert said in desk.refuse(desk.job(whole(desk)), "--out", out)


def test_a_lossless_film_has_its_own_ending(desk: Desk) -> None:
    job = desk.job(whole(desk, output="{codec: ffv1}"))
    assert "must end in .mkv; name it film.mkv" in desk.refuse(job, "--out", "film.mp4")


def test_no_permission_to_write(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the system's answer is given here."""
    closed = desk.folder / "closed"
    closed.mkdir()
    plain = os.access
    monkeypatch.setattr("os.access", lambda path, mode: path != closed and plain(path, mode))
    said = desk.refuse(desk.job(whole(desk)), "--out", closed / "film.mp4")
    assert f"no permission to write in {closed}; choose another --out" in said


@pytest.mark.parametrize(
    ("latents", "said"),
    [
        ("no/such/a.safetensors", "--save-latents no/such/a.safetensors: the folder does not"),
        ("a.npy", "--save-latents a.npy: the file's name must end in .safetensors"),
        ("folder.safetensors", "--save-latents folder.safetensors: is a folder"),
    ],
)
def test_latents_that_cannot_be_saved(desk: Desk, latents: str, said: str) -> None:
    (desk.folder / "folder.safetensors").mkdir()
    assert said in desk.refuse(desk.job(whole(desk)), "--save-latents", latents)


# -- what it is rendered on


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(desk: Desk) -> None:
    said = desk.refuse(desk.job(whole(desk)), "--device", "cuda", code=6)
    assert "finds no GPU to use; give --device cpu, or install a torch" in said


@pytest.mark.parametrize(
    ("address", "wrong"),
    [
        ("ray://here:1", "run longtake on a machine of the cluster, with --address auto"),
        ("127.0.0.1:1", "Connection refused; start one there (ray start, or ray up"),
        ("127.0.0.1:99999", "no Ray at 127.0.0.1:99999 to join: "),
        ("foo", "--address foo: valid: auto, or a host and a port such as 10.0.0.7:6379"),
    ],
)
def test_a_ray_that_cannot_be_joined(desk: Desk, address: str, wrong: str) -> None:
    """Told at once: Ray itself would try for minutes."""
    assert wrong in desk.refuse(desk.job(whole(desk)), "--address", address, code=6)


# -- models


@pytest.fixture
def copied(desk: Desk) -> Path:
    """A model folder to damage."""
    return Path(shutil.copytree(desk.model, desk.folder / "broken"))


def refuse_model(desk: Desk, copied: Path) -> str:
    return desk.refuse(desk.job(whole(desk, model=str(copied))), code=6)


TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "transformer/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        TRANSFORMER,
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ],
)
def test_a_model_without_a_file(desk: Desk, copied: Path, name: str) -> None:
    (copied / name).unlink()
    said = refuse_model(desk, copied)
    assert f"model {copied}: {name} is missing" in said
    assert "copy it" in said or "must be a folder in diffusers format" in said


def test_a_model_without_a_tokenizer(desk: Desk, copied: Path) -> None:
    (copied / "tokenizer/tokenizer.json").unlink()
    assert "tokenizer/ lacks tokenizer.json or spiece.model; copy it" in refuse_model(desk, copied)
    shutil.rmtree(copied / "tokenizer")
    assert "tokenizer/tokenizer_config.json is missing" in refuse_model(desk, copied)


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff", "null"])
def test_a_config_that_cannot_be_read(desk: Desk, copied: Path, content: str) -> None:
    (copied / "transformer/config.json").write_text(content, encoding="latin-1")
    assert f"model {copied}: transformer/config.json" in refuse_model(desk, copied)


def test_weights_that_are_cut_short(desk: Desk, copied: Path) -> None:
    whole_file = (copied / TRANSFORMER).read_bytes()
    for length in (0, 7, 100, len(whole_file) - 1):
        (copied / TRANSFORMER).write_bytes(whole_file[:length])
        said = refuse_model(desk, copied)
        assert f"{copied / TRANSFORMER} is damaged or not copied whole" in said
        assert "copy it again" in said


def test_weights_of_another_shape(desk: Desk, copied: Path) -> None:
    weights = load_file(copied / TRANSFORMER)
    weights["proj_out.weight"] = weights["proj_out.weight"][:, :-1].contiguous()
    save_file(weights, copied / TRANSFORMER)
    said = refuse_model(desk, copied)
    assert "weight proj_out.weight has shape [16, 23]" in said
    assert "config.json implies [16, 24]" in said
    del weights["proj_out.weight"]
    save_file(weights, copied / TRANSFORMER)
    assert "weight proj_out.weight is missing" in refuse_model(desk, copied)


def test_pickled_weights_only(desk: Desk, copied: Path) -> None:
    (copied / TRANSFORMER).rename(copied / "transformer/diffusion_pytorch_model.bin")
    said = refuse_model(desk, copied)
    assert "has only pickled weights (diffusion_pytorch_model.bin)" in said
    assert "convert them to safetensors" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_class_name": "FluxPipeline"}, "pipeline 'FluxPipeline' is not built; built: Wan"),
        ({"boundary_ratio": 0.9}, "two experts (transformer_2) are not built yet"),
    ],
)
def test_a_model_of_another_kind(desk: Desk, copied: Path, change: dict, said: str) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps(index | change))
    assert said in refuse_model(desk, copied)
