"""HunyuanVideo: with one window and nothing accelerated, our chain is its pipeline, bit for bit."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline, UniPCMultistepScheduler
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch._subclasses.fake_tensor import FakeTensorMode

from accel import slicing
from jobs.accelerations import Slicing
from jobs.arrays import Bundle
from jobs.errors import BadJob, CannotRunHere, UnitError
from jobs.families.hunyuan_video import HunyuanVideo
from jobs.loras import LORA_FILE
from jobs.model_folder import download_patterns, inspect_model
from jobs.spec_file import parse_spec
from jobs.units import ShotRender, Window
from orchestrator.plan import Plan
from orchestrator.prepare import plan_from_json, plan_to_json, prepare
from tests.marks import few
from tests.workers.test_animatediff import spoiled
from tests.workers.test_conformance import WINDOWS, assert_overlaps_agree, assert_same_bits
from tests.workers.test_pyramid import STEPS, run_all
from tests.workers.tiny import CHANNELS, encode, piece_task, render_windows, tiny_worker
from tests.workers.tiny_hunyuan_video import (
    SCALE_PX,
    hunyuan_shot,
    write_tiny_hunyuan_video,
)
from workers.bundles import to_tensor
from workers.decoding import to_rgb8
from workers.families.hunyuan_video import HunyuanVideoFamily, NativePadding
from workers.noise import initial_noise
from workers.worker import Worker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_hunyuan_video(tmp_path_factory.mktemp("tiny") / "hunyuan")


@pytest.fixture(scope="module")
def undistilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without embedded guidance."""
    place = tmp_path_factory.mktemp("tiny") / "undistilled"
    return write_tiny_hunyuan_video(place, guidance_embeds=False)


def worker_of(folder: Path, **changes: object) -> Worker:
    return tiny_worker(folder, family="hunyuan-video", **changes)


def load_pipeline(folder: Path, dtype: str = "float32") -> HunyuanVideoPipeline:
    vae = AutoencoderKLHunyuanVideo.from_pretrained(folder, subfolder="vae")
    pipeline = HunyuanVideoPipeline.from_pretrained(
        folder, vae=vae, torch_dtype=getattr(torch, dtype)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_pipeline(pipeline: HunyuanVideoPipeline, shot: ShotRender, **options: object):
    return pipeline(
        prompt=shot.prompt,
        height=SCALE_PX * shot.latent_height,
        width=SCALE_PX * shot.latent_width,
        num_frames=shot.pixel_frames,
        num_inference_steps=shot.steps,
        max_sequence_length=shot.text_tokens,
        latents=initial_noise(shot, range(shot.latent_frames), CHANNELS),
        return_dict=False,
        **{"output_type": "latent"} | options,
    )[0]


def finished(done: dict[tuple[int, int], Bundle], shot: ShotRender) -> torch.Tensor:
    return to_tensor(done[0, shot.steps], "latents")


def one_window(worker: Worker, shot: ShotRender) -> torch.Tensor:
    return finished(render_windows(worker, shot, [Window(0, 0, shot.latent_frames)]), shot)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("guidance", few([6.0, 1.0], 6.0))
def test_one_window_is_the_pipeline(folder: Path, guidance: float, dtype: str) -> None:
    shot = hunyuan_shot(guidance=(guidance,))
    ours = one_window(worker_of(folder, dtype=dtype), shot)
    theirs = run_pipeline(load_pipeline(folder, dtype), shot, guidance_scale=guidance)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)
    assert theirs.float().std() > 0.1, "a comparison of nothing"


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_true_guidance_is_the_pipelines(undistilled: Path, guidance: float) -> None:
    shot = hunyuan_shot(guidance=(guidance,))
    ours = one_window(worker_of(undistilled), shot)
    theirs = run_pipeline(
        load_pipeline(undistilled),
        shot,
        negative_prompt=shot.negative_prompt,
        true_cfg_scale=guidance,
    )
    assert torch.equal(ours, theirs)


def test_another_scheduler_has_the_same_levels(folder: Path) -> None:
    shot = hunyuan_shot(scheduler="unipc")
    pipeline = load_pipeline(folder)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(
        pipeline.scheduler.config,
        flow_shift=7.0,
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
    )
    theirs = run_pipeline(pipeline, shot, guidance_scale=6.0)
    assert torch.equal(one_window(worker_of(folder), shot), theirs)


def test_guidance_prompt_and_seed_matter(folder: Path, undistilled: Path) -> None:
    shots = [{}, {"guidance": (2.0,)}, {"prompt": "a blue kite"}, {"seed": 8}]
    worker = worker_of(folder)
    seen = {one_window(worker, hunyuan_shot(**each)).numpy().tobytes() for each in shots}
    assert len(seen) == len(shots)
    worker = worker_of(undistilled)
    negative = [hunyuan_shot(negative_prompt=each) for each in ("blurred", "blue")]
    assert not torch.equal(*(one_window(worker, shot) for shot in negative))


def test_embeddings_are_the_pipelines(undistilled: Path) -> None:
    shot = hunyuan_shot()
    bundle, pipeline = encode(worker_of(undistilled), shot), load_pipeline(undistilled)
    for name, prompt in (("cond", shot.prompt), ("uncond", shot.negative_prompt)):
        text, pooled, mask = pipeline.encode_prompt(prompt, max_sequence_length=24)
        assert torch.equal(to_tensor(bundle, name), text)
        assert torch.equal(to_tensor(bundle, f"pooled_{name}"), pooled)
        assert torch.equal(to_tensor(bundle, f"mask_{name}"), mask.float())
        assert 0 < mask.sum() < 24


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_windows_agree_and_order_changes_no_bit(folder: Path, dtype: str) -> None:
    shot = hunyuan_shot(latent_frames=9, pixel_frames=33)
    worker = worker_of(folder, dtype=dtype)
    forwards = render_windows(worker, shot, WINDOWS)
    assert_same_bits(forwards, render_windows(worker, shot, WINDOWS, backwards=True))
    for step in range(shot.steps + 1):
        assert_overlaps_agree({w: to_tensor(forwards[w.index, step], "latents") for w in WINDOWS})


def test_windows_of_a_pyramid_agree_in_any_order(folder: Path) -> None:
    shot = hunyuan_shot(stage_steps=STEPS, latent_frames=9, pixel_frames=33)
    stages = [[Window(0, 0, 3), Window(1, 1, 5)], [Window(0, 0, 5), Window(1, 4, 9)]]
    done = run_all(worker_of(folder), shot, stages)
    again = run_all(worker_of(folder), shot, stages, backwards=True)
    for unit, bundle in done.items():
        for array in bundle.arrays:
            assert bundle.arrays[array].tobytes() == again[unit].arrays[array].tobytes(), unit


@pytest.mark.parametrize("latent_frames", few([1, 4, 5, 8], 1, 5))
def test_decoded_frames_are_the_pipelines(folder: Path, latent_frames: int) -> None:
    frames = 4 * latent_frames - 3
    shot = hunyuan_shot(latent_frames=latent_frames, pixel_frames=frames, stage_steps=(2,))
    latents = one_window(worker_of(folder), shot)
    ours = HunyuanVideoFamily(str(folder), "float32", "cpu").decode(
        piece_task(shot, 0, latents.shape[2]), latents
    )
    pipeline = load_pipeline(folder)
    theirs = run_pipeline(pipeline, shot, guidance_scale=6.0, output_type="pil")[0]
    assert len(theirs) == frames
    assert np.array_equal(ours, np.stack([np.asarray(frame) for frame in theirs]))


def job(folder: Path, **changes: object) -> dict[str, object]:
    plain = {"model": str(folder), "prompt": "a red ball", "pixel_frames": 61, "size": [32, 32]}
    return plain | {"text_tokens": 24} | changes


def test_a_job_is_planned_from_its_configs(folder: Path, undistilled: Path) -> None:
    plan = prepare(parse_spec(job(folder))).plan
    shot = plan.shots[0].render
    assert plan.geometry.family == "hunyuan-video"
    assert (shot.latent_frames, shot.latent_height, shot.fps) == (16, 4, 24)
    assert (shot.steps, shot.guidance, plan.model_calls) == (50, (6.0,), 50)
    assert plan_from_json(plan_to_json(plan)) == plan
    assert prepare(parse_spec(job(undistilled))).plan.model_calls == 100


def long_plan(folder: Path) -> Plan:
    """17 latent frames in windows of 6, which start at 0, 4, 7 and 11: one of them in mid-tile."""
    layout = {"window_latent_frames": 6, "overlap_latent_frames": 2, "steps": 2}
    layout["pixel_frames"] = 65
    return prepare(parse_spec(job(folder, output={"codec": "ffv1"}, **layout))).plan


def test_pieces_begin_where_tiles_do(folder: Path) -> None:
    plan = long_plan(folder)
    assert [window.start for window in plan.shots[0].stages[0].windows] == [0, 4, 7, 11]
    assert plan.shots[0].pieces == ((0, 4), (4, 7), (7, 10), (10, 17))
    tasks = [plan.task(goal, 1) for goal in plan.goals()]
    reads = [(task.warm_start, task.owned[-1][1] - task.stop) for task in tasks]
    assert reads == [(0, 1), (0, 1), (3, 1), (6, 0)]
    assert tasks[1].owned == ((0, 4), (4, 7), (7, 8))
    assert tasks[1].windows[-1].index == 2, "the frame behind a piece is a later window's"


@torch.no_grad()
def test_pieces_have_the_bits_of_the_whole(folder: Path) -> None:
    """Through a worker, from a planned job; against diffusers' decode of the whole shot."""
    plan, worker, done = long_plan(folder), worker_of(folder), {}
    kinds = ("encode", "step", "decode")
    for unit in sorted(plan.units(), key=lambda unit: (kinds.index(unit.kind), unit.step)):
        done[unit] = worker.run(plan.task(unit, 1), [done[name] for name in plan.inputs(unit)])[1]
    stage = plan.shots[0].stages[-1]
    last = [done[unit] for unit in plan.units() if plan.is_last_step(unit)]
    owned = [
        to_tensor(bundle, "latents")[:, :, : stage.owned(index)[1] - stage.owned(index)[0]]
        for index, bundle in enumerate(last)
    ]
    vae = AutoencoderKLHunyuanVideo.from_pretrained(folder, subfolder="vae")
    whole = to_rgb8(vae.decode(torch.cat(owned, dim=2) / vae.config.scaling_factor).sample)
    frames = [hashlib.sha256(np.ascontiguousarray(frame)).hexdigest() for frame in whole]
    pieces = [done[goal].meta for goal in plan.goals()]
    assert [int(piece["first_pixel_frame"]) for piece in pieces] == [0, 13, 25, 37]
    told = (json.loads(piece["frame_sha256"]) for piece in pieces)
    assert list(itertools.chain.from_iterable(told)) == frames
    assert len(frames) == 65 and len(set(frames)) > 50, "a comparison of something"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"negative": "blurred"}, "negative: guidance is built into this model"),
        ({"scheduler": "ddim"}, "scheduler: .*valid: auto, unipc, euler, dpm"),
        ({"size": [40, 32]}, "size: 40x32 does not fit: .*multiples of 16 px"),
        ({"image": "a.png"}, "image: hunyuan-video models start from text alone"),
    ],
)
def test_what_it_has_no_use_for_is_refused(folder: Path, changes: dict, says: str) -> None:
    with pytest.raises(BadJob, match=says):
        prepare(parse_spec(job(folder, **changes)))


def test_a_negative_prompt_is_for_a_model_without_guidance_of_its_own(undistilled: Path) -> None:
    plan = prepare(parse_spec(job(undistilled, negative="blurred"))).plan
    assert plan.shots[0].render.negative_prompt == "blurred"


def test_a_prompt_that_would_lose_its_end_is_refused(folder: Path) -> None:
    with pytest.raises(UnitError, match=r"has 33 tokens, and text_tokens is 24; .*raise") as no:
        encode(worker_of(folder), hunyuan_shot(prompt="red " * 25))
    assert no.value.kind == "bad_job"
    encode(worker_of(folder), hunyuan_shot(prompt="red " * 16))


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("model_index.json", {"transformer": ["diffusers", "WanTransformer3DModel"]}, "must be a"),
        ("transformer/config.json", {"in_channels": 9}, "takes 9 latent channels and gives 4"),
        ("transformer/config.json", {"image_condition_type": "latent_concat"}, "image to video"),
        ("transformer/config.json", {"patch_size_t": 2}, "patch_size_t 2 and .* only 1 and 4"),
        ("transformer/config.json", {"text_embed_dim": 32}, "text_encoder .*16, text_embed_dim is"),
        ("transformer/config.json", {"pooled_projection_dim": 9}, "text_encoder_2 .* is 8, pooled"),
        ("vae/config.json", {"temporal_compression_ratio": 8}, "ratio 8 are not built"),
        ("vae/config.json", {"latent_channels": None}, "lacks latent_channels"),
        ("text_encoder_2/config.json", {"vocab_size": 9}, "tokenizer_2/.* text_encoder_2 knows 9"),
        ("longtake.json", {"format": 1, "stage_positions": True}, "stage_positions must be false"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, file: str, changes: dict, says: str
) -> None:
    with pytest.raises(CannotRunHere, match=says):
        inspect_model(spoiled(folder, tmp_path, file, **changes))


def test_both_tokenizers_are_part_of_the_models_identity(folder: Path, tmp_path: Path) -> None:
    seen = {inspect_model(folder).identity}
    for name in ("tokenizer_config.json", "merges.txt"):
        changed = spoiled(folder, tmp_path / name, f"tokenizer_2/{name}", padding_side="left")
        seen.add(inspect_model(changed).identity)
    assert len(seen) == 3
    patterns = download_patterns(HunyuanVideo())
    assert {"tokenizer/*.txt", "tokenizer_2/*.txt", "text_encoder_2/*.json"} <= set(patterns)


@torch.no_grad()
@pytest.mark.parametrize("dtype", few(["float32", "bfloat16"], "float32"))
@pytest.mark.parametrize("slices", [None, 3])
def test_pieces_join_to_the_whole(folder: Path, dtype: str, slices: int | None) -> None:
    """Slices of pieces to those of the whole."""
    family = HunyuanVideoFamily(str(folder), "float32", "cpu", (), dtype)
    shot = hunyuan_shot(latent_frames=17)
    if slices:
        slicing.apply(family.vae, Slicing(slices=slices))
    latents = initial_noise(shot, range(17), CHANNELS)
    first = family.decode(piece_task(shot, 0, 7), latents[:, :, :8])[:25]
    rest = family.decode(piece_task(shot, 7, 17, 3), latents[:, :, 3:])
    whole = family.decode(piece_task(shot, 0, latents.shape[2]), latents)
    assert np.array_equal(np.concatenate([first, rest]), whole)


def test_a_deterministic_gpu_pads_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a machine without one can tell: a tensor without values says that it is on it."""

    def by_indices(*_: object) -> None:
        raise AssertionError("in float32, which takes twice the memory of the decoder")

    monkeypatch.setattr("torch._decomp.decompositions._replication_pad", by_indices)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with FakeTensorMode():
            frames = torch.empty(1, 2, 3, 4, 4, device="cuda", dtype=torch.float16)
            with pytest.raises(AssertionError, match="float32"):
                torch.nn.functional.pad(frames, (1, 1, 1, 1, 2, 0), mode="replicate")
            with NativePadding():
                padded = torch.nn.functional.pad(frames, (1, 1, 1, 1, 2, 0), mode="replicate")
            vast = torch.empty(1, 256, 17, 720, 1280, device="cuda", dtype=torch.float16)
            with NativePadding(), pytest.raises(AssertionError, match="float32"):
                torch.nn.functional.pad(vast, (1, 1, 1, 1, 2, 0), mode="replicate")
        assert padded.shape == (1, 2, 5, 6, 6) and padded.dtype == torch.float16
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("slices", [None, 3])
def test_all_that_decoding_pads_is_padded_by_the_kernel(
    folder: Path, slices: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = HunyuanVideoFamily(str(folder), "float32", "cpu")
    if slices:
        slicing.apply(family.vae, Slicing(slices=slices))
    pad = torch.nn.functional.pad

    def inside(*args: object, **kwargs: object) -> torch.Tensor:
        modes = torch.overrides._get_current_function_mode_stack()
        assert any(isinstance(mode, NativePadding) for mode in modes)
        return pad(*args, **kwargs)

    monkeypatch.setattr("torch.nn.functional.pad", inside)
    shot = hunyuan_shot(latent_frames=9)
    latents = initial_noise(shot, range(9), CHANNELS)
    assert len(family.decode(piece_task(shot, 0, 9), latents)) == 33
    assert len(family.decode(piece_task(shot, 7, 9, 3), latents[:, :, 3:])) == 8
    with pytest.raises(AssertionError):
        family.vae.decode(latents)


def test_an_adapter_is_added_as_diffusers_adds_it(folder: Path, tmp_path: Path) -> None:
    lent = HunyuanVideoFamily(str(folder), "float32", "cpu").denoiser
    lent.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v"]))
    for name, weight in lent.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(weight, std=0.3)
    HunyuanVideoPipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(lent))
    adapter = (str(tmp_path / LORA_FILE), 0.5)
    ours = HunyuanVideoFamily(str(folder), "float32", "cpu", [adapter]).denoiser
    pipeline, plain = load_pipeline(folder), load_pipeline(folder).transformer
    pipeline.load_lora_weights(tmp_path)
    pipeline.fuse_lora(lora_scale=0.5)
    pipeline.unload_lora_weights()
    theirs = pipeline.transformer.state_dict()
    assert all(torch.equal(each, theirs[name]) for name, each in ours.state_dict().items())
    name = "transformer_blocks.0.attn.to_q.weight"
    assert not torch.allclose(theirs[name], plain.state_dict()[name], atol=0.01)
