"""A folder of captioned videos: what is in it, what is wrong with it, and clips cut from it.

A video's caption stands beside it in a text file of the same name, `sea.mp4` and `sea.txt`, or in
`metadata.jsonl` as Hugging Face datasets have it: lines of {"file_name": ..., "text": ...}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from jobs.errors import BadJob

VIDEO_ENDINGS = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif")
METADATA = "metadata.jsonl"


@dataclass(frozen=True, slots=True)
class Video:
    """A video that can be trained on."""

    path: Path
    caption: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Bad:
    """A video that cannot be trained on, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def scan(folder: Path, least_s: float) -> tuple[list[Video], list[Bad]]:
    """The videos of a folder that can be trained on, and those that cannot: a good one lasts
    ``least_s`` seconds or more. Raises BadJob if it is no folder, or holds no video at all."""
    if not folder.is_dir():
        raise BadJob(f"--data: {folder} is no folder; give one with videos and captions")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_ENDINGS)
    if not paths:
        raise BadJob(f"--data: {folder} holds no video; known endings: {', '.join(VIDEO_ENDINGS)}")
    told = _metadata(folder)
    good, bad = [], []
    for path in paths:
        found = _look(path, told.get(path.relative_to(folder).as_posix()), least_s)
        (good if isinstance(found, Video) else bad).append(found)
    return good, bad


def _metadata(folder: Path) -> dict[str, str]:
    path = folder / METADATA
    if not path.is_file():
        return {}
    told = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            told[str(row["file_name"])] = row["text"].strip()
        except (ValueError, KeyError, TypeError, AttributeError):
            want = '{"file_name": ..., "text": ...}'
            raise BadJob(f"{path}, line {number}: each line must be {want}") from None
    return told


def _look(path: Path, caption: str | None, least_s: float) -> Video | Bad:
    beside = path.with_suffix(".txt")
    if caption is None and beside.is_file():
        caption = beside.read_text(errors="replace")
    if not caption or not caption.strip():
        return Bad(path, f"has no caption: neither {beside.name} nor a line in {METADATA}")
    try:
        seconds = _seconds(path)
    except (av.FFmpegError, OSError, ValueError) as error:
        return Bad(path, f"cannot be read: {error}")
    if seconds < least_s:
        return Bad(path, f"lasts {seconds:.2f} s, and a clip {least_s:.2f} s")
    return Video(path, " ".join(caption.split()), seconds)


def _seconds(path: Path) -> float:
    """How long a video's frames last, by the time of the last one; raises if any cannot be read."""
    last = step = 0.0
    count = 0
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it has no picture")
        rate = container.streams.video[0].average_rate
        for frame in container.decode(video=0):
            count += 1
            last = frame.time if frame.time is not None else last + 1 / float(rate or 24)
        step = 1 / float(rate or 24)
    if not count:
        raise ValueError("it has no frames")
    return last + step


def read_clip(
    video: Video, start_s: float, pixel_frames: int, fps: float, size: tuple[int, int]
) -> np.ndarray:
    """Frames FHWC, RGB uint8, at ``fps`` from ``start_s`` on: of the video's own frames the one
    that is shown at each time, scaled to cover ``size`` (width, height) and cut to its middle."""
    times = [start_s + n / fps for n in range(pixel_frames)]
    frames: list[np.ndarray] = []
    shown: np.ndarray | None = None
    for time_s, picture in _pictures(video.path, start_s):
        # A frame is shown until the next one comes.
        while len(frames) < len(times) and shown is not None and times[len(frames)] < time_s - 1e-4:
            frames.append(shown)
        if len(frames) == len(times):
            break
        shown = _cover(picture, size)
    assert shown is not None, "the video was read to its end before"
    frames += [shown] * (len(times) - len(frames))
    return np.stack(frames)


def _pictures(path: Path, start_s: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """Time and picture of each frame, from the last key frame before ``start_s`` on."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if start_s > 0 and stream.time_base is not None:
            container.seek(int(start_s / stream.time_base), stream=stream)
        rate = float(stream.average_rate or 24)
        for number, frame in enumerate(container.decode(stream)):
            yield (number / rate if frame.time is None else float(frame.time)), frame


def _cover(picture: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    scale = max(width / picture.width, height / picture.height)
    wide = max(width, round(picture.width * scale))
    high = max(height, round(picture.height * scale))
    whole = picture.reformat(wide, high, format="rgb24").to_ndarray()
    top, left = (high - height) // 2, (wide - width) // 2
    return whole[top : top + height, left : left + width]
