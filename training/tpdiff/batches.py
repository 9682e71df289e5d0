"""Micro-batches of clips: which video, moment and stage, by the seed and a number alone, so that a
stopped run goes on with the same ones.

Shapes: B batch, F frames, H rows, W columns, C colours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from accel.pyramid import NoisePath, Stage, lay_stages
from jobs.geometry import ModelGeometry
from training.stages import clip_frames
from training.tpdiff.settings import Settings
from training.tpdiff.videos import Damaged, Video, read_clip

#: After so many draws in a row with a damaged video in each, there is no use in another.
MOST_DRAWS = 100


def refuse(damaged: Damaged) -> None:
    """With what to do; a video that is mended may be another to go on with."""
    raise Damaged(
        damaged.path,
        f"{damaged}; to go on without what is damaged, run this again with --bad-data skip",
    )


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Clips, their captions' numbers, and what becomes of them: a window of a stage."""

    frames_BFHWC: np.ndarray  # of the window, and of the picture before it, if it is inside
    captions: list[int]  # -1: none, for guidance
    stage: int
    frames: int  # of the window
    starts: bool  # whether the window starts a shot
    second: bool  # whether one inside begins with the second frame of a pair
    noise_seed: int


class MicroBatches:
    """Micro-batches, each drawn from the seed and its number alone; one with a damaged video in it
    is drawn again, unless ``met`` raises what it is told of that."""

    def __init__(
        self,
        videos: list[Video],
        settings: Settings,
        geometry: ModelGeometry,
        path: NoisePath,
        rank: int = 0,
        ranks: int = 1,
        met: Callable[[Damaged], None] = refuse,
    ) -> None:
        self.videos, self.settings, self.geometry, self.met = videos, settings, geometry, met
        self.rank, self.ranks = rank, ranks
        self.stages = lay_stages(path, settings.stages, settings.coarse)

    def ahead(self, numbers: range) -> Iterator[MicroBatch]:
        """These in turn, each read while the one before it is trained on. What ``draw`` raises
        comes in its turn, too."""
        with ThreadPoolExecutor(1, "clips") as reader:
            coming = None
            for number in numbers:
                due, coming = coming, reader.submit(self.draw, number)
                if due is not None:
                    yield due.result()
            if coming is not None:
                yield coming.result()

    def draw(self, number: int) -> MicroBatch:
        """Raises what ``met`` does, and Damaged where hardly a clip can be read."""
        key = (self.settings.seed, 5, number * self.ranks + self.rank)
        for again in range(MOST_DRAWS):
            try:
                return self._draw(np.random.default_rng((*key, again) if again else key))
            except Damaged as damaged:
                self.met(damaged)
                last = damaged
        raise Damaged(last.path, f"in {MOST_DRAWS} draws in a row a video was damaged: {last}")

    def _draw(self, rng: np.random.Generator) -> MicroBatch:
        settings = self.settings
        indices = [int(n) for n in rng.integers(len(self.videos), size=settings.batch)]
        stage, starts = int(rng.integers(settings.stages)), self._starts(rng)
        shortest_s = min(self.videos[index].seconds for index in indices)
        frames = self._most_frames(self.stages[stage], starts, shortest_s)
        pixel_frames = pixels_of(self.stages[stage], frames, self.geometry, starts=starts)
        clips, captions = [], []
        for index in indices:
            left_s = self.videos[index].seconds - pixel_frames / settings.fps
            start_s = float(rng.uniform(0, max(0.0, left_s)))
            video = self.videos[index]
            clips.append(read_clip(video, start_s, pixel_frames, settings.fps, settings.size))
            captions.append(-1 if rng.uniform() < settings.dropped_captions else index)
        second = bool(rng.uniform() < 0.5)
        seed = int(rng.integers(2**62))
        return MicroBatch(np.stack(clips), captions, stage, frames, starts, second, seed)

    def _starts(self, rng: np.random.Generator) -> bool:
        """Whether a window starts a shot, where that makes a difference."""
        return bool(rng.uniform() < self.settings.starts) and self.geometry.first_alone

    def _most_frames(self, stage: Stage, starts: bool, seconds: float) -> int:
        """Of a stage's window: as many as the model's, or as a video is long enough for."""
        frames = self.geometry.latent_frames(self.settings.pixel_frames)
        most = frames_in(seconds, self.settings.fps)
        while frames > 1 and pixels_of(stage, frames, self.geometry, starts=starts) > most:
            frames -= 1
        return frames


def frames_in(seconds: float, fps: float) -> int:
    """How many frames a video of so many seconds gives."""
    return int(seconds * fps + 0.5)


def pixels_of(stage: Stage, frames: int, geometry: ModelGeometry, *, starts: bool) -> int:
    """Pixel frames of a clip that a window of so many of a stage's frames is made of. A causal
    autoencoder's first latent frame is a single picture: a window inside a shot begins after it."""
    lead = geometry.first_alone and not starts
    return geometry.pixel_frames(clip_frames(stage, frames, starts=starts) + lead)


def whole_windows_s(
    settings: Settings, geometry: ModelGeometry, stages: Sequence[Stage]
) -> list[float]:
    """Seconds that a video must last for whole windows of each stage, wherever they begin."""
    starts = geometry.first_alone and settings.starts >= 1
    frames = geometry.latent_frames(settings.pixel_frames)
    every = (pixels_of(stage, frames, geometry, starts=starts) for stage in stages)
    return [pixels / settings.fps for pixels in every]


def shortest_s(settings: Settings, geometry: ModelGeometry, stages: Sequence[Stage]) -> float:
    """Seconds that a video must last to be trained on: for a clip, and for one frame of each stage,
    wherever its window begins; a coarse one may stand for more than the clip has."""
    starts = geometry.first_alone and settings.starts >= 1
    one = (pixels_of(stage, 1, geometry, starts=starts) for stage in stages)
    return max(settings.pixel_frames, *one) / settings.fps
