"""A tiny folder and a short shot of every family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs.units import ShotRender
from tests.workers.tiny import tiny_shot, write_tiny_wan, write_tiny_wan_ti2v
from tests.workers.tiny_animatediff import animatediff_shot, write_tiny_animatediff
from tests.workers.tiny_cogvideox import cogvideox_shot, write_tiny_cogvideox
from tests.workers.tiny_hunyuan_video import hunyuan_shot, write_tiny_hunyuan_video
from tests.workers.tiny_ltx import ltx_shot, write_tiny_ltx, write_tiny_ltx_condition
from tests.workers.tiny_svd import svd_shot, write_image, write_tiny_svd


@dataclass(frozen=True)
class TinyFamily:
    name: str
    folder: Path
    shot: ShotRender  # of five latent frames, but for svd, which has its own


def _svd(folder: Path) -> ShotRender:
    return svd_shot(write_image(folder.with_suffix(".png")))


#: The 5b kind of CogVideoX has a scheduler that adds noise and rounds its latents.
KINDS: dict[str, tuple[str, Callable[[Path], Path], Callable[[Path], ShotRender]]] = {
    "wan": ("wan", write_tiny_wan, lambda _: tiny_shot(stage_steps=(4,))),
    "wan-ti2v": ("wan-ti2v", write_tiny_wan_ti2v, lambda _: tiny_shot(stage_steps=(4,))),
    "animatediff": ("animatediff", write_tiny_animatediff, lambda _: animatediff_shot()),
    "svd": ("svd", write_tiny_svd, _svd),
    "cogvideox-2b": ("cogvideox", write_tiny_cogvideox, lambda _: cogvideox_shot()),
    "cogvideox-5b": (
        "cogvideox",
        lambda folder: write_tiny_cogvideox(folder, rotary=True),
        lambda _: cogvideox_shot(),
    ),
    "ltx": ("ltx", write_tiny_ltx, lambda _: ltx_shot()),
    "ltx-condition": ("ltx-condition", write_tiny_ltx_condition, lambda _: ltx_shot()),
    "hunyuan-video": ("hunyuan-video", write_tiny_hunyuan_video, lambda _: hunyuan_shot()),
    "hunyuan-video-guided": (
        "hunyuan-video",
        lambda folder: write_tiny_hunyuan_video(folder, guidance_embeds=False),
        lambda _: hunyuan_shot(),
    ),
}


def tiny_family(kind: str, parent: Path) -> TinyFamily:
    """Writes a folder under ``parent``."""
    name, write, shot_of = KINDS[kind]
    folder = write(parent / kind)
    shot = shot_of(folder)
    if name != "svd":
        shot = dataclasses.replace(shot, latent_frames=5)
    return TinyFamily(name, folder, shot)
