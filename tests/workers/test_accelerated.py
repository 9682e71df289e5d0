"""Accelerations in a worker, as a job asks for them: they engage, move with their tile, and combine
where that is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from accel import adaptive
from jobs.accelerations import Accelerations, Adaptive, FastAttention, Rehash, Slicing
from jobs.arrays import Bundle, decode_bundle, encode_bundle
from jobs.attention_plan import AttentionPlan, branches_of
from jobs.families.features import feature_bytes
from jobs.units import Stayed, Window
from tests.marks import few
from tests.workers.tiny import encode, step_task, tiny_shot, tiny_worker, write_tiny_wan
from tests.workers.tiny_animatediff import animatediff_shot, write_tiny_animatediff
from tests.workers.tiny_cogvideox import cogvideox_shot, write_tiny_cogvideox
from tests.workers.tiny_families import TinyFamily
from tests.workers.tiny_hunyuan_video import hunyuan_shot, write_tiny_hunyuan_video
from tests.workers.tiny_ltx import ltx_shot, write_tiny_ltx
from tests.workers.tiny_svd import svd_shot, write_image, write_tiny_svd
from workers.bundles import to_tensor
from workers.carrying import apart, with_memory
from workers.worker import Worker

WINDOWS = [Window(0, 0, 5), Window(1, 3, 8)]
STEPS = 8
WAN = tiny_shot(latent_frames=8, pixel_frames=15, stage_steps=(STEPS,), scheduler="unipc")
UNET = animatediff_shot(latent_frames=8, pixel_frames=8, stage_steps=(STEPS,))
#: With a scheduler that adds noise.
NOISY = cogvideox_shot(
    latent_frames=8, pixel_frames=15, stage_steps=(STEPS,), scheduler="cogvideox-dpm"
)
#: Text and video attend as one sequence.
JOINT = hunyuan_shot(latent_frames=8, pixel_frames=29, stage_steps=(STEPS,))
LTX = ltx_shot(latent_frames=8, pixel_frames=15, stage_steps=(STEPS,))
#: Two layers: the first is windowed from step 1 on and shared over branches from step 4 on.
PLAN = AttentionPlan(
    rows=(
        ("full", "full"),
        *[("window", "full")] * 3,
        *[("window+share_branches", "share_steps")] * (STEPS - 4),
    ),
    window=(1, 3, 3),
)
#: Of three layers, for rehash: the first always runs.
DEEP_PLAN = AttentionPlan(
    rows=(
        ("full",) * 3,
        *[("window", "window", "full")] * 3,
        *[("window+share_branches", "share_steps", "window")] * (STEPS - 4),
    ),
    window=(1, 3, 3),
)
ASKED = {
    "slicing": Accelerations(slicing=Slicing(slices=3)),
    "adaptive": Accelerations(adaptive=Adaptive(threshold=50.0, most_skips=2)),
    "rehash": Accelerations(rehash=Rehash(every=3)),
    "fast_attention": Accelerations(fast_attention=FastAttention(stages=(PLAN,))),
    "slicing and adaptive": Accelerations(
        slicing=Slicing(slices=3), adaptive=Adaptive(threshold=50.0, most_skips=2)
    ),
    "adaptive and fast_attention": Accelerations(
        adaptive=Adaptive(threshold=50.0, most_skips=1),
        fast_attention=FastAttention(stages=(PLAN,)),
    ),
    "slicing and rehash": Accelerations(slicing=Slicing(slices=3), rehash=Rehash(every=3)),
    "adaptive and rehash": Accelerations(
        adaptive=Adaptive(threshold=50.0, most_skips=1), rehash=Rehash(every=3)
    ),
    "rehash and fast_attention": Accelerations(
        rehash=Rehash(every=3), fast_attention=FastAttention(stages=(DEEP_PLAN,))
    ),
    "adaptive and rehash and fast_attention": Accelerations(
        adaptive=Adaptive(threshold=50.0, most_skips=1),
        rehash=Rehash(every=3),
        fast_attention=FastAttention(stages=(DEEP_PLAN,)),
    ),
}
#: The tiny transformers have two blocks, and rehash wants three.
FITS = [("wan", name) for name in ASKED if "rehash" not in name]
FITS += [("deep wan", name) for name in ASKED if "rehash" in name]
FITS += [
    (kind, name)
    for kind in ("deep ltx", "deep cogvideox", "deep hunyuan-video")
    for name in ("slicing and rehash", "rehash and fast_attention")
]
FITS += [("animatediff", name) for name in ASKED if "fast" not in name]
FITS += [("svd", name) for name in ("slicing", "slicing and rehash", "adaptive and rehash")]
FITS += [(kind, "adaptive") for kind in ("deep ltx", "cogvideox", "hunyuan-video")]
FITS += [("hunyuan-video", "slicing")]
#: Each technique, each pair on some family, and each family.
QUICK = [each for each in FITS if each[0] in ("wan", "deep wan")]
QUICK += [(kind, "slicing and rehash") for kind in ("animatediff", "svd", "deep ltx")]
QUICK += [("deep cogvideox", "rehash and fast_attention"), ("hunyuan-video", "adaptive")]


@pytest.fixture(scope="module")
def tiny(tiny_wan: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyFamily]:
    thin, deep = (tmp_path_factory.mktemp(name) for name in ("thin", "deep"))
    joint = write_tiny_hunyuan_video(deep / "hunyuan-video", guidance_embeds=False, layers=3)
    rotary = write_tiny_cogvideox(deep / "cogvideox", rotary=True, layers=3)
    image = write_image(thin / "start.png")
    small = svd_shot(image, stage_steps=(STEPS,), latent_height=8, latent_width=8)
    made = {
        "wan": (tiny_wan, WAN),
        "deep wan": (write_tiny_wan(deep / "wan", layers=3), WAN),
        "animatediff": (write_tiny_animatediff(thin / "animatediff"), UNET),
        "svd": (write_tiny_svd(thin / "svd"), small),
        "cogvideox": (write_tiny_cogvideox(thin / "cogvideox"), NOISY),
        "hunyuan-video": (write_tiny_hunyuan_video(thin / "hunyuan-video"), JOINT),
        "deep ltx": (write_tiny_ltx(deep / "ltx", layers=3), LTX),
        "deep cogvideox": (rotary, NOISY),
        "deep hunyuan-video": (joint, JOINT),
    }
    return {kind: TinyFamily(kind.split()[-1], *each) for kind, each in made.items()}


def worker_of(tiny: TinyFamily, asked: Accelerations) -> Worker:
    return tiny_worker(tiny.folder, family=tiny.name, accelerations=asked)


def render(
    tiny: TinyFamily, asked: Accelerations, workers: int = 1
) -> tuple[list[torch.Tensor], dict[str, int]]:
    """Finished latents of the windows, from stored bytes, and of what tiles remember with its own
    tile's alone. One worker gives that away after each step. Several take two steps of a tile in
    turn, and what it remembers stays with them, until another one takes the tile, or every third
    step."""
    some = [worker_of(tiny, asked) for _ in range(workers)]
    shot, engaged = tiny.shot, {}
    # Stable Video Diffusion makes a shot as one window.
    windows = [window for window in WINDOWS if window.stop <= shot.latent_frames]
    embeddings = encode(some[0], shot)
    done: dict[tuple[int, int], Bundle] = {}
    memories: dict[tuple[int, int], Bundle | Stayed | None] = {}
    for step in range(STEPS + 1):
        for window in windows:
            task = step_task(shot, windows, window.index, step)
            before = [done[w.index, step - 1] for w in task.covering] if step else []
            inputs = [embeddings, *before] if step < STEPS else before
            worker, holder = (some[(s // 2 + window.index) % len(some)] for s in (step, step - 1))
            own = memories[window.index, step - 1] if step else None
            if isinstance(own, Stayed) and holder is not worker:
                own = stored(holder.shelf.hand_over(own))
                assert own is not None
            stayed = own if isinstance(own, Stayed) else None
            lies = (worker.shelf.get(stayed) if stayed else None) or {}
            were = {name: tensor.clone() for name, tensor in lies.items()}
            report, output = worker.run(
                task,
                with_memory(task, inputs, None if isinstance(own, Stayed) else own),
                stayed=stayed,
                may_stay=workers > 1 and step % 3 < 2,
            )
            assert all(torch.equal(lies[name], were[name]) for name in were), "a retry needs it"
            done[window.index, step], memories[window.index, step] = apart(stored(output))
            if report.stays:
                memories[window.index, step] = Stayed(task.unit, task.attempt)
            for name, count in report.engaged.items():
                engaged[name] = engaged.get(name, 0) + count
    return [to_tensor(done[w.index, STEPS], "latents") for w in windows], engaged


def stored(bundle: Bundle) -> Bundle:
    return decode_bundle(encode_bundle(bundle))


@pytest.mark.parametrize(("kind", "name"), few(FITS, *QUICK))
def test_whoever_computes_it_has_the_same_bits(
    tiny: dict[str, TinyFamily], kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.carrying.MUCH_MEMORY", 1)
    asked = ASKED[name]
    alone, engaged = render(tiny[kind], asked)
    together, _ = render(tiny[kind], asked, workers=2)
    for ours, theirs in zip(alone, together, strict=True):
        assert torch.equal(ours, theirs)
    for part in name.split(" and "):
        told = ("key", "ted", ".layers")  # of all layers and steps, whatever it does in them
        did = [key for key in engaged if key.startswith(part) and not key.endswith(told)]
        assert sum(engaged[key] for key in did), f"{part} did nothing: {engaged}"


@pytest.mark.parametrize(
    ("kind", "name"), few([each for each in FITS if each[1] == "slicing"], ("svd", "slicing"))
)
def test_slicing_changes_no_more_than_rounding(
    tiny: dict[str, TinyFamily], kind: str, name: str
) -> None:
    sliced, _ = render(tiny[kind], ASKED[name])
    plain, engaged = render(tiny[kind], Accelerations())
    assert not engaged
    for ours, theirs in zip(sliced, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_tile_looks_at_its_latents_without_the_noise(
    tiny: dict[str, TinyFamily], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the very frames and steps: what is left of a change has nothing of the noise."""
    seen: list[tuple[float, float]] = []

    def look(config: Adaptive, latents: list[torch.Tensor], added: list[adaptive.Noise]) -> bool:
        for newer, older, noise in zip(latents, latents[1:], added, strict=False):
            changes = newer - older, newer - older - noise.scale * noise.drawn
            rows = torch.stack([each.flatten() for each in (noise.drawn, *changes)])
            _, noisy, quiet = rows.corrcoef()[0].tolist()
            seen.append((noisy, quiet))
        return False

    monkeypatch.setattr(adaptive, "changes_evenly", look)
    render(tiny["cogvideox"], ASKED["adaptive"])
    assert len(seen) == len(WINDOWS) * 3 * (STEPS - 4)
    assert all(noisy > 0.4 and abs(quiet) < 0.2 for noisy, quiet in seen), seen


def test_a_skipped_step_hands_on_what_others_remember(tiny: dict[str, TinyFamily]) -> None:
    """Else the step after a skipped one would be a key step, whatever the job says."""
    _, engaged = render(tiny["animatediff"], ASKED["adaptive and rehash"])
    ran = engaged["adaptive.computed"]
    assert engaged["adaptive.skipped"] + ran == len(WINDOWS) * STEPS
    assert engaged["rehash.key"] + engaged["rehash.reused"] == ran
    keys = sum(step in (0, 3, 6, 7) for step in range(STEPS)) * len(WINDOWS)
    assert engaged["rehash.key"] <= keys


def test_a_skipped_step_leaves_attention_of_the_one_before_to_those_after(
    tiny: dict[str, TinyFamily],
) -> None:
    """Step 3 is skipped, and is the only one that would make what step 4 reads anew."""
    rows = (("full", "full"), *[("full", "full")] * 3, *[("window", "share_steps")] * 4)
    plans = FastAttention(stages=(AttentionPlan(rows, (1, 3, 3)),))
    asked = Accelerations(adaptive=Adaptive(threshold=50.0, most_skips=1), fast_attention=plans)
    alone, engaged = render(tiny["wan"], asked)
    together, _ = render(tiny["wan"], asked, workers=3)
    assert all(map(torch.equal, alone, together))
    # Skipped are steps 3 and 5; the others run, two branches and layers in each.
    assert engaged["adaptive.skipped"] == 2 * len(WINDOWS)
    assert engaged["fast_attention.layers"] == 6 * 4 * len(WINDOWS)
    assert engaged["fast_attention.window"] == 3 * 2 * len(WINDOWS)


@pytest.mark.parametrize(
    "kind",
    few(
        ["wan", "animatediff", "svd", "deep ltx", "deep cogvideox", "deep hunyuan-video"],
        "wan",
        "svd",
        "deep ltx",
    ),
)
def test_the_planned_memory_of_what_is_kept_is_what_is_kept(
    tiny: dict[str, TinyFamily], kind: str
) -> None:
    asked = ASKED["fast_attention" if kind == "wan" else "rehash"]
    worker, shot, window = worker_of(tiny[kind], asked), tiny[kind].shot, WINDOWS[:1]
    embeddings, done, most = encode(worker, shot), {}, 0
    for step in range(STEPS):
        task = step_task(shot, window, 0, step)
        before = [done[0, step - 1]] if step else []
        _, done[0, step] = worker.run(task, [embeddings, *before])
        arrays = done[0, step].arrays
        most = max(most, sum(arrays[name].nbytes for name in arrays if name.startswith("accel.")))
    config = dict(worker._family.denoiser.config)
    one = feature_bytes(config, (5, shot.latent_height, shot.latent_width), "float32")
    branches = branches_of(guided=True)
    counts = [len(PLAN.carried_after(step, branches)) for step in range(STEPS)]
    if asked.rehash:
        assert most == 2 * one, "of the video, whatever text attends with it"
    else:
        assert 0.75 * max(counts) * one <= most <= max(counts) * one
