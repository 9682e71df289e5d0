"""The other families' small models: what is trained is what the renderer asks for, and what a
training leaves is an ordinary folder that renders."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from PIL import Image

from benchmarks.here import render_here
from tests.marks import few
from training import world
from training.demo_model import write_folder
from training.draws import Draw
from training.edm import EdmPath
from training.families import autoencoder, cogvideox
from training.families.__main__ import MODELS, Small, make
from training.families.hunyuan_video import llama_tokenizer
from training.families.svd import SCHEDULER
from training.student import velocity
from training.text import new_tokenizer

pytestmark = pytest.mark.slow

GUIDANCE = 3.0
CAPTION = "a big red circle moves left on a blue striped background"


def draw_of(path: Any, time: float) -> Draw:
    clean, noise = torch.randn(2, 1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    return Draw(
        clean_BCFHW=clean, noise_BCFHW=noise, path=path, times_B=torch.tensor([time]),
        mask_B1FHW=torch.zeros(1, 1, 3, 2, 2), captions=[""],
    )  # fmt: skip


@pytest.mark.parametrize("step", [0, 12, 24])
def test_svd_sees_and_predicts_what_its_own_scheduler_has(step: int) -> None:
    scheduler = EulerDiscreteScheduler(**SCHEDULER)
    scheduler.set_timesteps(25)
    time, sigma = scheduler.timesteps[step], scheduler.sigmas[step]
    drawn = draw_of(EdmPath(), float(time))
    sample = drawn.clean_BCFHW + sigma * drawn.noise_BCFHW
    shown = scheduler.scale_model_input(sample, time)
    assert torch.allclose(shown, drawn.noisy_BCFHW, rtol=1e-4, atol=1e-5)
    clean = scheduler.step(velocity(drawn), time, sample).pred_original_sample
    assert torch.allclose(clean, drawn.clean_BCFHW, rtol=1e-3, atol=2e-4 * float(sigma) + 1e-4)


def test_its_times_reach_from_the_first_step_to_the_last() -> None:
    times = EdmPath().draw(np.random.default_rng(0), 4000)
    scheduler = EulerDiscreteScheduler(**SCHEDULER)
    scheduler.set_timesteps(25)
    assert times.min() == pytest.approx(float(scheduler.timesteps[-1]), abs=0.05)
    assert times.max() == pytest.approx(float(scheduler.timesteps[0]), abs=0.05)


def test_llama_reads_a_caption_behind_all_of_the_template() -> None:
    tokenizer, words = llama_tokenizer(), new_tokenizer()
    told = tokenizer(DEFAULT_PROMPT_TEMPLATE["template"].format(CAPTION)).input_ids
    ours = words(CAPTION, add_special_tokens=False).input_ids
    begins = DEFAULT_PROMPT_TEMPLATE["crop_start"]
    assert told[begins : begins + len(ours)] == ours
    assert len(told) == begins + len(ours) + 2, "the template's end is two words"


def fresh(name: str, small: Small, folder: Path) -> tuple[Any, Path]:
    """A student with weights of its own in every layer, as bfloat16 has them, and its folder."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    student = small.student(len(tokenizer)).eval()
    for each in student.denoiser.parameters():
        if not each.any():
            torch.nn.init.normal_(each, std=0.02)
        each.data = each.data.bfloat16().float()
    autoencoder.KINDS[name].new().save_pretrained(folder / "vae")
    student.save(folder / "run", tokenizer)
    out = folder / "model"
    write_folder(
        small.module.pipeline(folder / "run", folder / "vae"),
        out,
        small.module.SIDECAR,
        ships=False,
    )
    return student, out


@pytest.mark.parametrize("name", few(MODELS, "ltx"))
def test_it_learns_what_a_render_asks_of_it(name: str, tmp_path: Path) -> None:
    student, folder = fresh(name, MODELS[name], tmp_path)
    asked: dict[str, Any] = {"prompt": CAPTION}
    if name == "svd":
        frame = world.render(world.sample_scene(np.random.default_rng(0)), world.frame_times(1))[0]
        Image.fromarray(frame).save(tmp_path / "image.png")
        asked = {"image": str(tmp_path / "image.png")}
    seen: list[tuple[tuple[Any, ...], torch.Tensor]] = []

    @contextmanager
    def watched(family: Any) -> Iterator[None]:
        predict = family.predict

        def told(*inputs: Any) -> torch.Tensor:
            seen.append((inputs, predict(*inputs)))
            return seen[-1][1]

        family.predict = told
        yield
        del family.predict

    render_here(
        {
            "model": str(folder),
            "steps": 2,
            "pixel_frames": 5,
            "guidance": GUIDANCE,
            "dtype": "float32",
        }
        | {"size": [32, 32]}
        | asked,
        watched,
    )
    (_, latents, stepper, step, embeddings, _), predicted = seen[0]
    time = stepper.timesteps[step]
    if name in ("ltx", "hunyuan-video"):  # flow matching
        shown, time = latents, time / 1000
    else:
        shown = stepper.scale_input(latents, step)
    if name == "svd":
        image = embeddings["image_latents"].unsqueeze(2).expand_as(shown)
        shown = torch.cat([shown, image], dim=1)
    with torch.no_grad():
        cond, dropped = (
            student(
                shown,
                time.reshape(1).float(),
                *student.tokens(new_tokenizer(), [said], long=False),
                stride=1,
            )
            for said in (CAPTION, "")
        )
    guidance = torch.full((cond.shape[2], 1, 1), GUIDANCE)
    if name == "svd":
        guidance = torch.linspace(1, GUIDANCE, cond.shape[2]).view(-1, 1, 1)
    told = dropped + guidance * (cond - dropped)
    assert (cond - dropped).std() > 1e-4 and predicted.std() > 1e-3
    assert torch.allclose(told, predicted, rtol=0, atol=1e-3 * float(predicted.abs().max()))


@pytest.mark.parametrize("name", ["ltx", "hunyuan-video"])
def test_a_flow_is_how_fast_what_is_seen_changes(name: str) -> None:
    student = MODELS[name].student
    early, late = draw_of(student.path, 0.25), draw_of(student.path, 0.75)
    change = (late.noisy_BCFHW - early.noisy_BCFHW) / 0.5
    assert torch.allclose(student.target(None, early), change, atol=1e-6)


def test_cogvideox_predicts_what_its_own_scheduler_calls_velocity() -> None:
    student = MODELS["cogvideox"].student
    drawn, scheduler = draw_of(student.path, 500.0), cogvideox.SCHEDULER
    told = scheduler.get_velocity(drawn.clean_BCFHW, drawn.noise_BCFHW, torch.tensor([500]))
    assert torch.allclose(student.target(None, drawn), told, atol=1e-6)


def digests(folder: Path) -> dict[str, str]:
    """Of all weights in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_it_is_made_in_one_command_and_renders(name: str, tmp_path: Path) -> None:
    small = MODELS[name]
    tiny = replace(
        small,
        vae=replace(small.vae, batch=1, crop_px=32), vae_steps=2, steps=1,
        recipe=replace(
            small.recipe, tokens=1, clips=4, first_clips=2, reading_steps=20, short_windows=0.0
        ),
    )  # fmt: skip
    make(name, tiny, tmp_path / "runs", tmp_path / "out")
    weights = digests(tmp_path / "out")
    make(name, tiny, tmp_path / "runs", tmp_path / "again")
    assert weights == digests(tmp_path / "again"), "what is done is not done again"
    with pytest.raises(SystemExit, match="was begun otherwise"):
        make(name, replace(tiny, vae=replace(tiny.vae, seed=1)), tmp_path / "runs", tmp_path / "no")
    asked = {"prompt": CAPTION}
    if name == "svd":
        Image.new("RGB", (96, 96), "navy").save(tmp_path / "image.png")
        asked = {"image": str(tmp_path / "image.png")}
    film = render_here({"model": str(tmp_path / "out"), "steps": 2, "pixel_frames": 9} | asked)
    assert film.frames.shape == (9, 96, 96, 3) and film.frames.std() > 0


@pytest.mark.parametrize("name", few(autoencoder.KINDS, "ltx"))
def test_statistics_are_in_the_encoders_last_layer(name: str) -> None:
    kind = autoencoder.KINDS[name]
    vae = kind.new().eval()
    autoencoder.fold_statistics(kind, vae, pixel_frames=5, scenes=4)
    with torch.no_grad():
        z = torch.cat([kind.encode(vae, each) for each in autoencoder.clips(4, 5, 20_000)])
    assert z.mean((0, 2, 3, 4)).abs().max() < 1e-3
    assert (z.std((0, 2, 3, 4)) - 1).abs().max() < 1e-3
