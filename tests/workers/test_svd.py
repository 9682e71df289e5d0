"""Stable Video Diffusion: with nothing accelerated, our chain is its pipeline, bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion
from diffusers.utils import load_image
from safetensors.torch import save_file

from jobs.arrays import Bundle
from jobs.errors import BadJob, CannotRunHere, UnitError
from jobs.families.family import encoding_bytes, rendering_bytes
from jobs.families.svd import SVD
from jobs.images import ImageFile
from jobs.model_folder import download_patterns, inspect_model
from jobs.spec_file import load_spec, parse_spec
from jobs.units import DecodeTask, ShotRender, Unit, Window
from orchestrator.plan import Plan
from orchestrator.prepare import check_same_model, new_job_id, plan_from_json, plan_to_json, prepare
from orchestrator.recipes import film_key
from orchestrator.show_plan import plan_report, plan_text
from tests.marks import few
from tests.workers.test_animatediff import spoiled
from tests.workers.tiny import CHANNELS, encode, piece_task, render_windows, tiny_worker
from tests.workers.tiny_svd import FRAMES, SCALE_PX, WIDTH, svd_shot, write_image, write_tiny_svd
from workers.bundles import to_bundle, to_tensor
from workers.families.svd import SVDFamily
from workers.joining import join
from workers.noise import image_noise, initial_noise
from workers.setup import WorkerSetup
from workers.worker import Worker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_svd(tmp_path_factory.mktemp("tiny") / "svd")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> ImageFile:
    return write_image(tmp_path_factory.mktemp("images") / "start.png")


def worker_of(folder: Path, **changes: object) -> Worker:
    return tiny_worker(folder, family="svd", **changes)


def run_pipeline(folder: Path, shot: ShotRender, monkeypatch, output_type: str = "latent"):
    """The pipeline draws the noise of the image by itself: here it is given ours."""
    pipeline = StableVideoDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    height, width = SCALE_PX * shot.latent_height, SCALE_PX * shot.latent_width
    asked = []

    def noise(shape, **_):
        asked.append(tuple(shape))
        return image_noise(shot, height, width)

    monkeypatch.setattr(pipeline_stable_video_diffusion, "randn_tensor", noise)
    noise_of_frames = initial_noise(shot, range(shot.latent_frames), CHANNELS)
    frames = pipeline(
        image=load_image(shot.image.path),
        height=height,
        width=width,
        num_frames=shot.pixel_frames,
        num_inference_steps=shot.steps,
        max_guidance_scale=shot.guidance[0],
        fps=shot.fps,
        latents=noise_of_frames.transpose(1, 2).contiguous(),
        output_type=output_type,
        return_dict=False,
    )
    assert asked == [(1, 3, height, width)]
    return frames.transpose(1, 2) if output_type == "latent" else frames[0]


def finished(worker: Worker, shot: ShotRender) -> torch.Tensor:
    done: dict[tuple[int, int], Bundle] = render_windows(
        worker, shot, [Window(0, 0, shot.latent_frames)]
    )
    return to_tensor(done[0, shot.steps], "latents")


@pytest.mark.parametrize("guidance", few([3.0, 1.0], 3.0))
@pytest.mark.parametrize("fps", few([7, 12], 12))
def test_one_window_is_the_pipeline(
    folder: Path, image: ImageFile, guidance: float, fps: int, monkeypatch
) -> None:
    shot = svd_shot(image, guidance=(guidance,), fps=fps)
    ours = finished(worker_of(folder), shot)
    theirs = run_pipeline(folder, shot, monkeypatch)
    assert torch.equal(ours, theirs)
    assert theirs.std() > 0.1, "a comparison of nothing"


def test_decoded_frames_are_the_pipelines(folder: Path, image: ImageFile, monkeypatch) -> None:
    shot = svd_shot(image, stage_steps=(2,))
    latents = finished(worker_of(folder), shot)
    ours = SVDFamily(str(folder), "float32", "cpu").decode(
        piece_task(shot, 0, latents.shape[2]), latents
    )
    theirs = run_pipeline(folder, shot, monkeypatch, "pil")
    assert np.array_equal(ours, np.stack([np.asarray(frame) for frame in theirs]))


def test_all_that_it_is_told_matters(folder: Path, image: ImageFile, tmp_path: Path) -> None:
    """So that the comparisons above compare image, frame rate, noise and guidance too."""
    worker = worker_of(folder)
    other = write_image(tmp_path / "other.png", seed=1)
    shots = [
        svd_shot(image),
        svd_shot(other),
        svd_shot(image, fps=12),
        svd_shot(image, seed=8),
        svd_shot(image, guidance=(1.0,)),
    ]
    seen = {finished(worker, shot).numpy().tobytes() for shot in shots}
    assert len(seen) == len(shots)


def test_the_images_noise_is_the_shots(folder: Path, image: ImageFile) -> None:
    worker = worker_of(folder)
    one, other = (encode(worker, svd_shot(image, seed=seed)) for seed in (1, 2))
    assert np.array_equal(one.arrays["image"], other.arrays["image"])
    assert not np.array_equal(one.arrays["image_latents"], other.arrays["image_latents"])


def test_it_renders_in_bfloat16(folder: Path, image: ImageFile) -> None:
    latents = finished(worker_of(folder, dtype="bfloat16"), svd_shot(image))
    assert latents.dtype == torch.bfloat16
    assert latents.float().std() > 0.1


def test_another_image_than_planned_fails_the_job(folder: Path, tmp_path: Path) -> None:
    image = write_image(tmp_path / "start.png")
    other = dataclasses.replace(image, sha256=hashlib.sha256(b"").hexdigest())
    with pytest.raises(UnitError, match="another image than the film was planned with") as no:
        encode(worker_of(folder), svd_shot(other))
    assert no.value.kind == "bad_job"


def job(folder: Path, image: ImageFile, /, **changes: object) -> dict[str, object]:
    plain = {"model": str(folder), "image": image.path, "pixel_frames": 5, "size": [32, 32]}
    return {key: value for key, value in (plain | changes).items() if value is not None}


def test_a_job_is_planned_from_its_configs(folder: Path, image: ImageFile) -> None:
    plan = prepare(parse_spec(job(folder, image, pixel_frames=None, seconds=1))).plan
    (shot,) = plan.shots
    render = shot.render
    assert (plan.geometry.family, render.image, render.prompt) == ("svd", image, "")
    assert (render.latent_frames, render.fps, render.steps, render.guidance) == (7, 7, 25, (3.0,))
    assert (render.latent_height, render.latent_width) == (16, 16)
    assert (shot.stages[0].windows, shot.pieces) == ((Window(0, 0, 7),), ((0, 7),))
    assert plan_from_json(plan_to_json(plan)) == plan
    (warning,) = plan.warnings
    assert "image of shot 1, 60x40 px, is stretched to 32x32: crop it" in warning
    assert not prepare(parse_spec(job(folder, image, size=[48, 32]))).plan.warnings
    report = plan_report(plan, 1, None)
    assert report["shots"][0]["image"] == image.path and image.path[:20] in plan_text(report)


def test_a_shot_of_many_frames_is_decoded_in_one_piece(
    folder: Path, image: ImageFile, tmp_path: Path
) -> None:
    wide = spoiled(folder, tmp_path, "unet/config.json", num_frames=40)
    plan = prepare(parse_spec(job(wide, image, pixel_frames=40))).plan
    assert plan.shots[0].pieces == ((0, 40),)


def test_an_image_counts_from_the_job_file(folder: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "films").mkdir()
    image = write_image(tmp_path / "films" / "Red kite.png")
    file = tmp_path / "films" / "film.yaml"
    file.write_text(f"model: {folder}\nimage: Red kite.png\npixel_frames: 3\nsize: 32x32\n")
    monkeypatch.chdir(tmp_path)
    prepared = prepare(load_spec(file))
    assert prepared.plan.images == (image,)
    assert new_job_id(prepared.spec).startswith("red-kite-")
    Path(image.path).unlink()
    with pytest.raises(BadJob, match=r"film\.yaml:2:1: image: .*Red kite\.png is no file here"):
        prepare(load_spec(file))


def test_the_images_content_is_part_of_the_film(folder: Path, tmp_path: Path) -> None:
    def plan_of(seed: int) -> Plan:
        return prepare(parse_spec(job(folder, write_image(tmp_path / "a.png", seed)))).plan

    first, other, again = (plan_of(seed) for seed in (0, 1, 0))
    assert film_key(first) == film_key(again) != film_key(other)
    with pytest.raises(BadJob, match="another image than the film was planned with"):
        check_same_model(other)
    check_same_model(again)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image": None, "prompt": "a kite"}, "image: missing; svd models start each shot from"),
        ({"prompt": "a kite"}, "prompt: this model reads no text, .*no effect; remove it"),
        ({"negative": "blur"}, "negative: this model reads no text"),
        ({"text_tokens": 77}, "text_tokens: this model reads no text"),
        ({"flow_shift": 3.0}, "flow_shift: svd models have no flow shift"),
        ({"scheduler": "ddim"}, "scheduler: .*valid: auto, euler"),
        ({"pyramid": 2}, "pyramid: this model makes each shot as one window"),
        ({"window_latent_frames": 5}, "window_latent_frames: .*one window, so .* remove it"),
        ({"overlap_latent_frames": 1}, "overlap_latent_frames: .*one window"),
        ({"repeated_noise": 0.5}, "repeated_noise: .*one window, so .* no effect; remove it"),
        ({"loras": [{"path": "a"}]}, "loras: adapters of this family's models are not built"),
        ({"pixel_frames": FRAMES + 1}, "8 frames are too many: this model makes at most 7 in a"),
        ({"guidance": [1, 3]}, "guidance: has 2 values"),
        ({"size": [36, 32]}, "size: 36x32 does not fit: .*multiples of 8 px"),
    ],
)
def test_what_it_has_no_use_for_is_refused(
    folder: Path, image: ImageFile, tmp_path: Path, changes: dict, says: str
) -> None:
    if "loras" in changes:
        save_file({"unet.a.lora_A.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
        changes = {"loras": [{"path": str(tmp_path / "a.safetensors")}]}
    with pytest.raises(BadJob, match=says):
        prepare(parse_spec(job(folder, image, **changes)))


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("model_index.json", {"unet": ["diffusers", "UNetMotionModel"]}, "must be a UNetSpatio"),
        ("unet/config.json", {"in_channels": 9}, "takes 9 channels and gives 4; .* must take 8"),
        ("unet/config.json", {"out_channels": 8}, "takes 8 channels and gives 8"),
        ("unet/config.json", {"cross_attention_dim": 32}, f"projection_dim is {WIDTH}, .* is 32"),
        ("unet/config.json", {"cross_attention_dim": [32]}, "cross_attention_dim cannot be"),
        ("unet/config.json", {"addition_time_embed_dim": 9}, "is 24; .* need 27"),
        ("unet/config.json", {"num_frames": None}, "lacks num_frames"),
        ("image_encoder/config.json", {"image_size": 336}, "image_size is 336"),
        ("longtake.json", {"format": 1, "flow_shift": 3.0}, "flow_shift: .* have none"),
        ("longtake.json", {"format": 1, "pyramid_steps": [1, 1]}, "have no pyramid"),
        ("longtake.json", {"format": 1, "stage_positions": True}, "have no pyramid"),
        ("longtake.json", {"format": 1, "window_latent_frames": 9}, "must be 7, as unet/config"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, file: str, changes: dict, says: str
) -> None:
    with pytest.raises(CannotRunHere, match=says):
        inspect_model(spoiled(folder, tmp_path, file, **changes))


def test_how_images_are_prepared_is_part_of_the_models_identity(
    folder: Path, tmp_path: Path
) -> None:
    extractor = "feature_extractor/preprocessor_config.json"
    changed = spoiled(folder, tmp_path, extractor, image_mean=[0.5, 0.5, 0.5])
    assert inspect_model(changed).identity != inspect_model(folder).identity
    assert {"feature_extractor/*.json", "image_encoder/*.json"} <= set(download_patterns(SVD()))


def test_a_host_without_the_image_cannot_join(folder: Path, tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png")
    setup = WorkerSetup(worker="w", model=str(folder), family="svd", images=(image,))
    identity = inspect_model(folder).identity
    assert "pillow" in join(setup, identity).profile().numerics.images
    write_image(tmp_path / "a.png", seed=1)
    with pytest.raises(CannotRunHere, match=r"another image .*; copy the image there again"):
        join(setup, identity)


def test_a_piece_is_a_segment_of_the_whole_shot(folder: Path, image: ImageFile) -> None:
    """Through the worker, from a planned job."""
    plan = prepare(parse_spec(job(folder, image, steps=2) | {"output": {"codec": "ffv1"}})).plan
    worker, done = worker_of(folder), {}
    for unit in plan.units():
        inputs = [done[name] for name in plan.inputs(unit)]
        done[unit] = worker.run(plan.task(unit, 1), inputs)[1]
    task = plan.task(Unit("decode", 0), 1)
    assert isinstance(task, DecodeTask)
    assert done[task.unit].meta["pixel_frames"] == "5"


def test_slices_of_the_decoder_are_counted(folder: Path, image: ImageFile) -> None:
    asked = job(folder, image, steps=2) | {"accelerations": {"slicing": {"slices": 3}}}
    plan = prepare(parse_spec(asked)).plan
    task = plan.task(Unit("decode", 0), 1)
    (shot,) = plan.shots
    size = (1, CHANNELS, shot.render.latent_frames, shot.render.latent_height)
    latents = to_bundle({"latents": torch.zeros(*size, shot.render.latent_width)})
    worker = worker_of(folder, accelerations=plan.accelerations)
    counts = [worker.run(task, [latents])[0].engaged for _ in range(2)]
    assert counts[0] == counts[1] and counts[0].keys() == {"slicing.decoder"}
    assert counts[0]["slicing.decoder"] > 0
    assert worker_of(folder).run(task, [latents])[0].engaged == {}


def test_an_image_is_encoded_by_encoder_and_autoencoder_together() -> None:
    parameters = {"unet": 1000, "vae": 10, "image_encoder": 500}
    assert encoding_bytes(SVD(), parameters, "bfloat16") == 2 * (1000 + 500) + 4 * 10
    assert rendering_bytes(SVD(), parameters, "bfloat16", "float16") == 2 * 1000 + 2 * 10
