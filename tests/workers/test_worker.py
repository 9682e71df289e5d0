"""A worker as the driver sees it: tasks in, reports and bundles out, blame told apart."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import pickle
import shutil
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.video_processor import VideoProcessor

from jobs.accelerations import Accelerations, FastAttention, Slicing
from jobs.arrays import Bundle, decode_bundle, encode_bundle
from jobs.errors import BadJob, CannotRunHere, UnitError
from jobs.units import DecodeTask, ShotRender, Unit, Window
from tests.workers.test_conformance import WINDOWS, load_pipeline, run_pipeline
from tests.workers.tiny import encode, render_windows, run_step, step_task, tiny_shot, tiny_worker
from workers import machine
from workers.blame import blame
from workers.bundles import to_bundle, to_tensor
from workers.decoding import DecodeLane
from workers.depth import Depth, in_model
from workers.families import FAMILIES, wan
from workers.films import iter_frames
from workers.setup import WorkerSetup
from workers.worker import Worker

ONE = [Window(0, 0, 9)]


def decode_task(shot: ShotRender, start: int, stop: int, warm_start: int, **changes) -> DecodeTask:
    """A piece whose latents come from WINDOWS, cut at the middle of each overlap."""
    cuts = [0, 4, 6, 9]
    owned = [(max(a, warm_start), min(b, stop)) for a, b in pairwise(cuts)]
    used = [(w, o) for w, o in zip(WINDOWS, owned, strict=True) if o[0] < o[1]]
    task = DecodeTask(
        unit=Unit("decode", 0, index=start),
        attempt=1,
        shot=shot,
        start=start,
        stop=stop,
        warm_start=warm_start,
        windows=tuple(w for w, _ in used),
        owned=tuple(o for _, o in used),
        codec="ffv1",
        quality=18,
    )
    return dataclasses.replace(task, **changes)


def run_decode(worker: Worker, task: DecodeTask, done: dict) -> Bundle:
    return worker.run(task, [done[w.index, task.shot.steps] for w in task.windows])[1]


def hashes(*bundles: Bundle) -> list[str]:
    return [sha for bundle in bundles for sha in json.loads(bundle.meta["frame_sha256"])]


def test_one_window_to_pixels_is_the_pipeline(tiny_wan: Path) -> None:
    shot, worker = tiny_shot(), tiny_worker(tiny_wan)
    done = render_windows(worker, shot, ONE)
    task = decode_task(shot, 0, 9, 0, windows=tuple(ONE), owned=((0, 9),))
    video = run_pipeline(load_pipeline(tiny_wan, torch.float32), shot, output_type="pt")
    frames = VideoProcessor().postprocess_video(video.transpose(1, 2) * 2 - 1, output_type="pil")[0]
    theirs = [hashlib.sha256(np.asarray(frame).tobytes()).hexdigest() for frame in frames]
    assert len(set(theirs)) == 17
    assert hashes(run_decode(worker, task, done)) == theirs


def test_pieces_continued_or_cold_are_the_whole(tiny_wan: Path) -> None:
    shot = tiny_shot(pixel_frames=16)
    worker, other = tiny_worker(tiny_wan), tiny_worker(tiny_wan, worker="w1")
    done = render_windows(worker, shot, WINDOWS)
    whole = run_decode(other, decode_task(shot, 0, 9, 0), done)
    pieces = [decode_task(shot, 0, 3, 0), decode_task(shot, 3, 7, 0), decode_task(shot, 7, 9, 0)]
    continued = [run_decode(worker, piece, done) for piece in pieces]
    cold = [run_decode(other, piece, done) for piece in reversed(pieces)][::-1]
    assert hashes(*continued) == hashes(*cold) == hashes(whole)
    for ours, theirs in zip(continued, cold, strict=True):
        assert ours.arrays["segment"].tobytes() == theirs.arrays["segment"].tobytes()
    assert [b.meta["first_pixel_frame"] for b in continued] == ["0", "5", "13"]
    assert [b.meta["pixel_frames"] for b in continued] == ["5", "8", "3"], "the last is trimmed"


def test_a_decode_goes_on_from_its_live_context(tiny_wan: Path, monkeypatch) -> None:
    shot, worker = tiny_shot(), tiny_worker(tiny_wan)
    done = render_windows(worker, shot, WINDOWS)
    run_decode(worker, decode_task(shot, 0, 3, 0), done)
    decoded = []
    plain = DecodeLane.decode_batch
    monkeypatch.setattr(DecodeLane, "decode_batch", lambda *a: (decoded.append(1), plain(*a))[1])
    run_decode(worker, decode_task(shot, 3, 7, 0), done)
    assert len(decoded) == 4
    run_decode(worker, decode_task(shot, 3, 7, 0), done)
    assert len(decoded) == 4 + 7, "asked again, its context has moved on: it warms up"
    run_decode(worker, decode_task(shot, 7, 9, 0), done)
    assert len(decoded) == 4 + 7 + 2
    assert not worker._family._lanes, "a shot's last piece frees its context"


def test_a_segment_holds_the_frames(tiny_wan: Path) -> None:
    shot, worker = tiny_shot(), tiny_worker(tiny_wan)
    bundle = run_decode(worker, decode_task(shot, 0, 9, 0), render_windows(worker, shot, WINDOWS))
    path = tiny_wan.parent / "segment.mkv"
    path.write_bytes(bundle.arrays["segment"].tobytes())
    found = [hashlib.sha256(np.ascontiguousarray(f)).hexdigest() for f in iter_frames(path)]
    assert found == hashes(bundle), "ffv1 is lossless"


def test_stored_and_read_only_inputs_do(tiny_wan: Path) -> None:
    """Inputs come back from the store, or from shared memory that must not be written to."""
    shot, worker = tiny_shot(stage_steps=(2,)), tiny_worker(tiny_wan, dtype="bfloat16")
    done = render_windows(worker, shot, ONE)
    stored = {key: decode_bundle(encode_bundle(bundle)) for key, bundle in done.items()}
    for bundle in stored.values():
        for array in bundle.arrays.values():
            array.flags.writeable = False
    again = run_step(worker, step_task(shot, ONE, 0, 2), encode(worker, shot), stored)
    assert again.arrays["latents"].tobytes() == done[0, 2].arrays["latents"].tobytes()
    assert done[0, 1].dtypes["prediction"] == "bfloat16"


def test_outputs_are_as_the_task_says(tiny_wan: Path) -> None:
    done = render_windows(tiny_worker(tiny_wan), tiny_shot(stage_steps=(2,)), ONE)
    assert set(done[0, 0].arrays) == {"latents", "prediction"}
    history = {name for name in done[0, 1].arrays if name.startswith("history.")}
    assert history
    assert set(done[0, 1].arrays) == {"latents", "prediction"} | history
    assert set(done[0, 2].arrays) == {"latents"}
    assert done[0, 1].arrays["prediction"].shape == (1, 4, 9, 16, 16)


def test_the_denoiser_loads_only_for_steps(tiny_wan: Path) -> None:
    worker = tiny_worker(tiny_wan)
    embeddings = encode(worker, tiny_shot())
    assert not {"denoiser", "vae"} & vars(worker._family).keys()
    assert worker._family.loaded_bytes() == 0
    assert set(embeddings.arrays) == {"cond", "uncond"}
    assert set(encode(worker, tiny_shot(guidance=(1.0,))).arrays) == {"cond"}


def test_the_text_encoder_is_loaded_once_and_freed_before_the_first_step(
    tiny_wan: Path, monkeypatch
) -> None:
    held = []
    plain = wan.WanFamily._load_encoders

    def load(family):
        pipeline = plain(family)
        held.append(weakref.ref(pipeline.text_encoder))
        return pipeline

    monkeypatch.setattr(wan.WanFamily, "_load_encoders", load)
    gc.disable()  # the next collection may be minutes away
    try:
        worker, shot = tiny_worker(tiny_wan), tiny_shot()
        embeddings = encode(worker, shot)
        encode(worker, tiny_shot(prompt="another"))
        assert [encoder() is None for encoder in held] == [False]
        run_step(worker, step_task(shot, ONE, 0, 0), embeddings, {})
        assert [encoder() is None for encoder in held] == [True]
    finally:
        gc.enable()


def test_report_profile_and_log(tiny_wan: Path, tmp_path: Path) -> None:
    worker = tiny_worker(tiny_wan, log_dir=str(tmp_path / "log"))
    shot = tiny_shot()
    embeddings = encode(worker, shot)
    report, output = worker.run(step_task(shot, ONE, 0, 0), [embeddings])
    profile = worker.profile()
    assert report.numerics == profile.numerics.digest()
    assert report.output_bytes == output.nbytes
    assert report.elapsed_s > 0
    assert (profile.numerics.threads, profile.numerics.attention) == (1, "native")
    assert profile.numerics.deterministic
    assert profile.model_bytes > 0
    assert profile.free_bytes > 0
    assert pickle.loads(pickle.dumps((report, profile))) == (report, profile)
    lines = [json.loads(line) for line in (tmp_path / "log" / "w0.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["encode", "step"]
    assert lines[1]["unit"] == "shot 1 window 1 step 0"
    assert lines[1].keys() >= {"shot", "stage", "index", "step", "attempt", "elapsed_s", "at_s"}
    assert lines[1]["peak_bytes"] >= lines[0]["peak_bytes"] >= 0, "beside what it held at first"


@pytest.mark.parametrize("broken", ["prediction", "latents"])
def test_nan_is_named(tiny_wan: Path, broken: str) -> None:
    shot, worker = tiny_shot(stage_steps=(2,)), tiny_worker(tiny_wan, dtype="bfloat16")
    embeddings = encode(worker, shot)
    done = {(0, 0): run_step(worker, step_task(shot, ONE, 0, 0), embeddings, {})}
    if broken == "prediction":
        step, says = 0, "prediction became NaN"
        bad = to_tensor(embeddings, "cond")
        bad[0, 0, 0] = torch.nan
        embeddings = to_bundle({"cond": bad, "uncond": bad})
    else:
        step, says = 1, "latents became NaN"
        done[0, 0].arrays["latents"][0, 0, 0, 0, 0] = np.inf
    with pytest.raises(UnitError, match=says) as caught:
        run_step(worker, step_task(shot, ONE, 0, step), embeddings, done)
    assert caught.value.kind == "not_finite"
    assert f"shot 1 window 1 step {step}" in str(caught.value)
    assert "float32" in str(caught.value), "the fix"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.cuda.OutOfMemoryError("2 GiB too much"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(h)`"),
            "out_of_memory",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out_of_memory"),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory"),
        (
            RuntimeError("GET was unable to find an engine to execute this computation"),
            "out_of_memory",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
        (RuntimeError("the device fell over"), "worker"),
        (BadJob("no such thing"), "bad_job"),
    ],
)
def test_blame_is_told_apart(tiny_wan: Path, monkeypatch, error: Exception, kind: str) -> None:
    worker = tiny_worker(tiny_wan)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker._family, "encode", fail)
    with pytest.raises(UnitError) as caught:
        encode(worker, tiny_shot())
    assert caught.value.kind == kind
    assert "shot 1 prompts" in str(caught.value)
    if kind == "worker":
        assert "RuntimeError: the device fell over (at test_worker.py:" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "family", "asked", "slices"),
    [
        ("step", "wan", {}, 8),
        ("step", "wan", {"slicing": Slicing(slices=6)}, 12),
        ("step", "wan", {"slicing": Slicing(slices=40)}, 64),
        ("step", "wan", {"slicing": Slicing(slices=64)}, None),
        ("step", "wan", {"fast_attention": FastAttention()}, 8),
        ("decode", "svd", {}, 8),
        ("decode", "cogvideox", {}, 8),
        ("decode", "hunyuan-video", {}, 8),
        ("decode", "ltx", {}, 8),
        ("decode", "wan", {}, 8),
        ("decode", "animatediff", {}, None),
    ],
)
def test_what_runs_out_of_memory_says_what_needs_less(
    kind: str, family: str, asked: dict, slices: int | None
) -> None:
    """Nothing that a job would be refused for, or that would change nothing."""
    setup = WorkerSetup(worker="w", model="m", family=family, accelerations=Accelerations(**asked))
    depth = Depth(setup.accelerations.slicing, FAMILIES[family].vae_kind.__name__)
    unit = Unit(kind, 0)
    with pytest.raises(UnitError) as caught, blame(unit, setup, depth), in_model(unit):
        raise torch.cuda.OutOfMemoryError("2 GiB too much")
    slicing = f", or accelerations: {{slicing: {{slices: {slices}}}}}, or numerics: any, "
    slicing = f"{slicing}which takes as many slices as it needs" if slices else ""
    half = ", or decoder_dtype: float16 or bfloat16" if kind == "decode" else ""
    says = f"GiB free; plan smaller windows or a smaller size{half}{slicing} (2 GiB too much)"
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "device", "room", "fix"),
    [
        ("step", "cpu", 0, "plan smaller windows or a smaller size"),
        ("encode", "cpu", 0, "take part, or give a smaller dtype"),
        ("encode", "cuda:0", 2**30, "take part, or give a smaller dtype"),
        ("encode", "cuda:0", 0, "or numerics: any, which encodes on the processor then"),
    ],
)
def test_what_runs_out_outside_of_a_model_is_no_matter_of_slices(
    kind: str, device: str, room: int, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``room``: what a job whose numerics are not pinned says that encoding takes."""
    monkeypatch.setattr(machine, "free_bytes", lambda device: 0)
    setup = WorkerSetup(worker="w", model="m", device=device, encoding_bytes=room)
    depth = Depth(None, FAMILIES["wan"].vae_kind.__name__)
    with pytest.raises(UnitError) as caught, blame(Unit(kind, 0), setup, depth):
        raise torch.cuda.OutOfMemoryError("2 GiB too much")
    assert f"{fix} (2 GiB too much)" in str(caught.value)


def test_a_bad_scheduler_is_the_persons_mistake(tiny_wan: Path) -> None:
    worker, shot = tiny_worker(tiny_wan), tiny_shot(scheduler="heun")
    with pytest.raises(UnitError, match="valid: auto, unipc, euler, dpm") as caught:
        run_step(worker, step_task(shot, ONE, 0, 0), encode(worker, shot), {})
    assert caught.value.kind == "bad_job"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"family": "sora"},
            "'sora'; valid: animatediff, cogvideox, hunyuan-video, ltx, ltx-condition, svd, wan, "
            "wan-ti2v",
        ),
        ({"dtype": "int4"}, "unknown dtype 'int4'; valid: float32, bfloat16, float16"),
    ],
)
def test_a_setup_that_cannot_work_is_refused_at_once(tiny_wan: Path, changes, says: str) -> None:
    with pytest.raises(BadJob, match=says):
        tiny_worker(tiny_wan, **changes)


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("model_index.json", {"_class_name": "WanImageToVideoPipeline"}, "WanImageToVideo"),
        ("model_index.json", {"boundary_ratio": 0.875}, "two experts"),
        ("model_index.json", {"expand_timesteps": True}, "a model of wan-ti2v, not of wan"),
        ("model_index.json", {"transformer_2": ["diffusers", "X"]}, "transformer_2"),
        ("model_index.json", {"tokenizer": ["mine", "Evil"]}, "tokenizer is Evil"),
        ("transformer/config.json", {"image_dim": 1280}, "image"),
    ],
)
def test_a_model_of_another_kind_is_refused(tiny_wan, tmp_path, file, change, says) -> None:
    configs = (f"{part}/config.json" for part in ("transformer", "vae", "text_encoder"))
    for name in ("model_index.json", *configs):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        config = json.loads((tiny_wan / name).read_text())
        (tmp_path / name).write_text(json.dumps(config | (change if name == file else {})))
    with pytest.raises(CannotRunHere, match=says):
        tiny_worker(tmp_path)
    with pytest.raises(CannotRunHere, match=r"model_index\.json is missing"):
        tiny_worker(tmp_path / "nowhere")


def test_pickled_weights_are_refused(tiny_wan: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_wan, tmp_path / "wan")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(torch.nn.Linear(1, 1).state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        tiny_worker(folder).profile()
