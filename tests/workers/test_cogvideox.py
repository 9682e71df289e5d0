"""CogVideoX: with one window and nothing accelerated, our chain is its pipeline, bit for bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline
from diffusers.schedulers import scheduling_dpm_cogvideox

from jobs.arrays import Bundle
from jobs.errors import BadJob, CannotRunHere, UnitError
from jobs.families.cogvideox import CogVideoX
from jobs.model_folder import inspect_model
from jobs.spec_file import parse_spec
from jobs.units import ShotRender, Unit, Window
from orchestrator.plan import Plan
from orchestrator.prepare import prepare
from tests.marks import few
from tests.workers.test_animatediff import spoiled
from tests.workers.test_conformance import WINDOWS, assert_overlaps_agree, assert_same_bits
from tests.workers.test_loras import write_lora
from tests.workers.tiny import CHANNELS, encode, piece_task, render_windows, tiny_worker
from tests.workers.tiny_cogvideox import (
    SCALE_PX,
    TEXT_TOKENS,
    cogvideox_shot,
    write_tiny_cogvideox,
)
from workers.bundles import to_tensor
from workers.families import open_family
from workers.families.cogvideox import CogVideoXFamily
from workers.noise import initial_noise, step_noise
from workers.worker import Worker


@pytest.fixture(scope="module", params=["2b", "5b"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fixed positions and a deterministic scheduler; rotary ones and one that adds noise."""
    path = tmp_path_factory.mktemp("tiny") / request.param
    return write_tiny_cogvideox(path, rotary=request.param == "5b")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 2b's kind."""
    return write_tiny_cogvideox(tmp_path_factory.mktemp("tiny") / "cogvideox")


def worker_of(folder: Path, **changes: object) -> Worker:
    return tiny_worker(folder, family="cogvideox", **changes)


def run_pipeline(folder: Path, shot: ShotRender, monkeypatch, dtype=torch.float32, **options):
    """Diffusers' pipeline with our noise: what its scheduler would draw is drawn as for us."""
    pipeline = CogVideoXPipeline.from_pretrained(folder, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    noise, frames, done = initial_noise(shot, range(shot.latent_frames), CHANNELS), range(9), [0]

    def drawn(shape: torch.Size, dtype: torch.dtype, **_: object) -> torch.Tensor:
        turned = step_noise(shot, done[0], frames, CHANNELS).transpose(1, 2)
        assert turned.shape == shape
        return turned.to(dtype)

    def count(pipeline: object, step: int, time: object, tensors: dict) -> dict:
        done[0] = step + 1
        return tensors

    monkeypatch.setattr(scheduling_dpm_cogvideox, "randn_tensor", drawn)
    return pipeline(
        prompt=shot.prompt,
        negative_prompt=shot.negative_prompt,
        height=shot.latent_height * SCALE_PX,
        width=shot.latent_width * SCALE_PX,
        num_frames=shot.pixel_frames,
        num_inference_steps=shot.steps,
        guidance_scale=shot.guidance[0],
        max_sequence_length=shot.text_tokens,
        latents=noise.transpose(1, 2).to(dtype),
        callback_on_step_end=count,
        return_dict=False,
        **{"output_type": "latent"} | options,
    )[0]


def finished(done: dict[tuple[int, int], Bundle], shot: ShotRender) -> torch.Tensor:
    return to_tensor(done[0, shot.steps], "latents")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("guidance", few([6.0, 1.0], 6.0))
def test_one_window_is_the_pipeline(folder: Path, guidance: float, dtype: str, monkeypatch) -> None:
    shot = cogvideox_shot(guidance=(guidance,))
    worker = worker_of(folder, dtype=dtype)
    ours = finished(render_windows(worker, shot, [Window(0, 0, 9)]), shot)
    theirs = run_pipeline(folder, shot, monkeypatch, getattr(torch, dtype)).transpose(1, 2)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)
    assert theirs.float().std() > 0.1, "a comparison of nothing"


@pytest.mark.parametrize("scheduler", ["cogvideox-ddim", "cogvideox-dpm"])
def test_a_job_can_name_the_other_scheduler(folder: Path, scheduler: str) -> None:
    """The schedule is the folder's all the same: the last step of both goes to no noise."""
    plan = prepare(parse_spec(job(folder, scheduler=scheduler))).plan
    assert plan.shots[0].render.scheduler == scheduler
    worker, shot = worker_of(folder), cogvideox_shot(scheduler=scheduler, stage_steps=(1,))
    render_windows(worker, shot, [Window(0, 0, 9)])
    (stepper,) = worker._steppers.values()
    assert stepper.name == scheduler
    assert stepper._scheduler.alphas_cumprod[-1] == 0
    assert stepper._scheduler.config.timestep_spacing == "trailing"


def test_decoded_frames_are_the_pipelines(folder: Path, monkeypatch) -> None:
    shot = cogvideox_shot(stage_steps=(2,))
    latents = finished(render_windows(worker_of(folder), shot, [Window(0, 0, 9)]), shot)
    family = CogVideoXFamily(str(folder), "float32", "cpu")
    ours = family.decode(piece_task(shot, 0, latents.shape[2]), latents)
    theirs = run_pipeline(folder, shot, monkeypatch, output_type="pil")[0]
    assert len(theirs) == 17
    assert np.array_equal(ours, np.stack([np.asarray(frame) for frame in theirs]))


@torch.no_grad()
def test_embeddings_are_the_pipelines(folder: Path) -> None:
    shot = cogvideox_shot(prompt="a ball", negative_prompt="grey")
    bundle = encode(worker_of(folder), shot)
    pipeline = CogVideoXPipeline.from_pretrained(folder)
    cond, uncond = pipeline.encode_prompt(
        shot.prompt, shot.negative_prompt, max_sequence_length=TEXT_TOKENS
    )
    assert torch.equal(to_tensor(bundle, "cond"), cond)
    assert torch.equal(to_tensor(bundle, "uncond"), uncond)
    assert cond.shape[1] == TEXT_TOKENS and not torch.equal(cond, uncond)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_windows_agree_and_order_changes_no_bit(folder: Path, dtype: str) -> None:
    """The noise that a scheduler adds among it: it belongs to a latent frame, not to a window."""
    shot, worker = cogvideox_shot(), worker_of(folder, dtype=dtype)
    forwards = render_windows(worker, shot, WINDOWS)
    assert_same_bits(forwards, render_windows(worker, shot, WINDOWS, backwards=True))
    for step in range(shot.steps + 1):
        assert_overlaps_agree({w: to_tensor(forwards[w.index, step], "latents") for w in WINDOWS})
    first, second = (to_tensor(forwards[i, 1], "prediction") for i in (0, 1))
    assert not torch.equal(first[:, :, 2:5], second[:, :, 0:3]), "blending made them agree"


# -- jobs


def job(folder: Path, **changes: object) -> dict[str, object]:
    said = {"model": str(folder), "prompt": "a", "seconds": 4, "size": [32, 32], "seed": 1}
    return said | changes


def test_a_job_is_planned_from_its_configs(folder: Path) -> None:
    plan = prepare(parse_spec(job(folder, pixel_frames=38, seconds=None))).plan
    shot = plan.shots[0].render
    assert plan.geometry.family == "cogvideox"
    assert (shot.latent_frames, shot.fps, shot.text_tokens) == (21, 8, TEXT_TOKENS)
    assert (shot.latent_height, shot.guidance, shot.steps) == (16, (6.0,), 50)
    assert [(w.start, w.stop) for w in plan.shots[0].stages[0].windows] == [(0, 13), (8, 21)]
    assert plan.shots[0].pieces == ((0, 7), (7, 21)), "cut where a batch begins"


def render(plan: Plan, workers: list[Worker]) -> list[Bundle]:
    """The pieces of a film, each unit at the next worker in turn."""
    done: dict[Unit, Bundle] = {}

    def compute(unit: Unit) -> Bundle:
        if unit not in done:
            inputs = [compute(each) for each in plan.inputs(unit)]
            done[unit] = workers[len(done) % len(workers)].run(plan.task(unit, 1), inputs)[1]
        return done[unit]

    return [compute(unit) for unit in plan.goals()]


def test_a_long_film_is_the_same_whoever_decodes_it(folder: Path) -> None:
    """One worker goes on with its decoder's context; of three, most must warm up. Both give the
    frames of one decode of the whole shot."""
    spec = job(folder, seconds=None, pixel_frames=92, window_latent_frames=11, steps=2)
    plan = prepare(parse_spec(spec | {"overlap_latent_frames": 2})).plan
    latents = plan.shots[0].render.latent_frames
    starts = [plan.warm_start(unit) for unit in plan.goals()]
    assert latents == 47 and max(starts) > 3 and {start % 2 for start in starts if start} == {1}
    alone = render(plan, [worker_of(folder)])
    together = render(plan, [worker_of(folder, worker=f"w{i}") for i in range(3)])
    for ours, theirs in zip(alone, together, strict=True):
        assert ours.meta == theirs.meta
        assert ours.arrays["segment"].tobytes() == theirs.arrays["segment"].tobytes()
    whole = dataclasses.replace(plan.shots[0], pieces=((0, latents),))
    (piece,) = render(dataclasses.replace(plan, shots=(whole,)), [worker_of(folder)])
    joined = [sha for each in alone for sha in json.loads(each.meta["frame_sha256"])]
    assert joined == json.loads(piece.meta["frame_sha256"]) and len(set(joined)) == 92


def test_a_preset_has_settings_for_schedulers_that_add_noise(small: Path) -> None:
    given = {"preset": "fast", "steps": 9}
    forms = {
        scheduler: prepare(parse_spec(job(small, scheduler=scheduler, **given))).plan.accelerations
        for scheduler in ("cogvideox-ddim", "cogvideox-dpm")
    }
    assert forms["cogvideox-ddim"].adaptive.form == "spectral"
    assert forms["cogvideox-dpm"].adaptive.form == "scalar"
    with pytest.raises(BadJob, match="preset: has nothing to skip: steps are 6, and 6 of a stage"):
        prepare(parse_spec(job(small, scheduler="cogvideox-dpm", **given | {"steps": 6})))
    own = given | {"accelerations": {"adaptive": {"threshold": 0.7}}, "scheduler": "cogvideox-dpm"}
    asked = prepare(parse_spec(job(small, **own))).plan.accelerations.adaptive
    assert (asked.form, asked.threshold) == ("tensor", 0.7)


def test_slices_of_the_decoder_are_planned(small: Path) -> None:
    def planned(slices: int | None) -> Plan:
        asked = {"accelerations": {"slicing": {"slices": slices}}} if slices else {}
        return prepare(parse_spec(job(small, **asked))).plan

    whole, halves, thin = (planned(slices) for slices in (None, 2, 9))
    assert whole.tile_bytes > halves.tile_bytes > thin.tile_bytes  # decoding needs the most
    assert whole.warnings == halves.warnings == ()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"flow_shift": 3.0}, "flow_shift: cogvideox models have no flow shift"),
        ({"text_tokens": 77}, f"text_tokens: .* always has {TEXT_TOKENS}"),
        ({"scheduler": "ddim"}, "scheduler: .*valid: auto, cogvideox-ddim, cogvideox-dpm"),
        ({"pyramid": 2}, "scheduler: .*has no pyramid.*use pyramid: off"),
        ({"size": [44, 32]}, "size: .*multiples? of 8"),
        *(
            (
                {"accelerations": {"adaptive": each}, "steps": 9, "scheduler": "cogvideox-dpm"},
                "adaptive: form spectral and forecast are not for scheduler cogvideox-dpm",
            )
            for each in ({"form": "spectral"}, {"forecast": True})
        ),
    ],
)
def test_what_it_has_no_use_for_is_refused(small: Path, changes: dict, says: str) -> None:
    with pytest.raises(BadJob, match=says):
        prepare(parse_spec(job(small, **changes)))


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("transformer/config.json", {"patch_size_t": 2}, r"patch_size_t 2 \(CogVideoX 1.5\)"),
        ("transformer/config.json", {"ofs_embed_dim": 8}, "ofs_embed_dim .* not built"),
        ("transformer/config.json", {"use_learned_positional_embeddings": True}, "learned"),
        ("transformer/config.json", {"attention_head_dim": 12}, "is 24, .* multiple of 16"),
        ("transformer/config.json", {"in_channels": 8}, "takes 8 latent channels and gives 4"),
        ("transformer/config.json", {"text_embed_dim": 8}, "d_model is 16, text_embed_dim is 8"),
        ("transformer/config.json", {"temporal_compression_ratio": 4}, "is 4 and 2"),
        ("transformer/config.json", {"patch_size": None}, "lacks patch_size"),
        ("vae/config.json", {"temporal_compression_ratio": 4}, "is 4, but 2 levels .* only 2"),
        ("vae/config.json", {"block_out_channels": 4}, "block_out_channels cannot be 4"),
        ("longtake.json", {"format": 1, "flow_shift": 3.0}, "flow_shift: .* have none"),
        ("longtake.json", {"format": 1, "pyramid_steps": [1, 1]}, "pyramid is not built"),
        ("model_index.json", {"_class_name": "CogVideoXImageToVideoPipeline"}, "not built; built:"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    small: Path, tmp_path: Path, file: str, changes: dict, says: str
) -> None:
    with pytest.raises(CannotRunHere, match=says):
        inspect_model(spoiled(small, tmp_path, file, **changes))


def test_a_prompt_that_would_lose_its_end_is_refused(small: Path) -> None:
    shot = cogvideox_shot(prompt="a long walk on the beach")
    with pytest.raises(UnitError, match="has 25 tokens, and this model reads 20") as no:
        encode(worker_of(small), shot)
    assert no.value.kind == "bad_job"


def test_missing_weights_are_refused_when_they_load(small: Path, tmp_path: Path) -> None:
    copy = spoiled(small, tmp_path, "transformer/config.json", num_layers=3)
    with pytest.raises(CannotRunHere, match=r"transformer_blocks\.2"):
        CogVideoXFamily(str(copy), "float32", "cpu").denoiser  # noqa: B018


def test_noise_of_other_frames_is_other_noise() -> None:
    shot = cogvideox_shot()
    one, two = (step_noise(shot, step, range(3), CHANNELS) for step in (0, 1))
    assert not torch.equal(one, two)
    assert torch.equal(step_noise(shot, 1, range(1, 3), CHANNELS), two[:, :, 1:])
    assert not torch.equal(initial_noise(shot, range(3), CHANNELS), one)


def test_published_configs_have_the_published_geometry() -> None:
    transformer = {
        "in_channels": 16,
        "out_channels": 16,
        "num_attention_heads": 30,
        "attention_head_dim": 64,
        "text_embed_dim": 4096,
        "max_text_seq_length": 226,
        "patch_size": 2,
        "sample_width": 90,
        "sample_height": 60,
        "temporal_compression_ratio": 4,
    }
    vae = {
        "latent_channels": 16,
        "layers_per_block": 3,
        "temporal_compression_ratio": 4,
        "block_out_channels": [128, 256, 256, 512],
    }
    text, cogvideox = {"d_model": 4096}, CogVideoX()
    configs = {"transformer": transformer, "vae": vae, "text_encoder": text}
    geometry = cogvideox.geometry(configs, cogvideox.defaults)
    assert (geometry.spatial_scale, geometry.temporal_scale, geometry.size_multiple) == (8, 4, 16)
    assert geometry.latent_frames(49) == geometry.window_latent_frames == 13
    assert [geometry.latent_frames(n) for n in (1, 2, 9, 10, 50)] == [1, 3, 3, 5, 15]
    assert geometry.text_tokens == cogvideox.defaults.text_tokens == 226
    assert geometry.decode_context_latent_frames == 76


def test_adapters_are_added_as_diffusers_adds_them(small: Path, tmp_path: Path) -> None:
    file = write_lora("cogvideox", small, tmp_path)
    ours = open_family("cogvideox", str(small), "float32", "cpu", [(str(file), 0.5)]).denoiser
    pipeline = CogVideoXPipeline.from_pretrained(small)
    plain = {name: tensor.clone() for name, tensor in pipeline.transformer.named_parameters()}
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora(lora_scale=0.5)
    pipeline.unload_lora_weights()
    theirs = dict(pipeline.transformer.named_parameters())
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.named_parameters())
    assert any(not torch.equal(tensor, plain[name]) for name, tensor in ours.named_parameters())
