"""A folder of captioned videos: what is in it, what is wrong with it, and clips cut from it.

A video's caption stands beside it in a text file of the same name, `sea.mp4` and `sea.txt`, or in
`metadata.jsonl` as Hugging Face datasets have it: lines of {"file_name": ..., "text": ...}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import av
import numpy as np

from jobs.errors import BadJob

#: What is wrong with a caption, or "".
Check = Callable[[str], str]

VIDEO_ENDINGS = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif")
METADATA = "metadata.jsonl"

#: Containers round a frame's time, to a thousandth of a second in Matroska and WebM; a frame that
#: comes so much late is still in time. Of 120 frames a second it is a quarter of one.
LATE_S = 0.002

#: Goes through items, and shows how far it is in what it is told they are.
Track = Callable[[Sequence[Any], str], Iterable[Any]]


def untracked(items: Sequence[Any], what: str) -> Iterable[Any]:
    return items


@dataclass(frozen=True, slots=True)
class Video:
    """A video that can be trained on."""

    path: Path
    caption: str
    seconds: float
    first_s: float = 0.0  # when its first frame is shown, by its own clock


@dataclass(frozen=True, slots=True)
class Bad:
    """A video that cannot be trained on, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Damaged(BadJob):
    """A video that is damaged where a clip was to be cut from it."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


def scan(
    folder: Path,
    least_s: float,
    track: Track = untracked,
    check_caption: Check = lambda caption: "",
) -> tuple[list[Video], list[Bad]]:
    """The videos of a folder that can be trained on, and those that cannot or are not there: a
    good one lasts ``least_s`` seconds or more, and nothing is wrong with its caption. Raises BadJob
    if it is no folder, or holds no video at all, or if its metadata cannot be read."""
    if not folder.is_dir():
        raise BadJob(f"--data: {folder} is no folder; give one with videos and captions")
    paths = sorted(p for p in folder.rglob("*") if _is_video(p))
    if not paths:
        raise BadJob(f"--data: {folder} holds no video; known endings: {', '.join(VIDEO_ENDINGS)}")
    told = _metadata(folder)
    good, bad = [], []
    for path in track(paths, "looking at videos"):
        _, caption = told.pop(path.relative_to(folder).as_posix(), (0, None))
        found = _look(path, caption, least_s, check_caption)
        (good if isinstance(found, Video) else bad).append(found)
    return good, bad + [_not_there(folder / name, line) for name, (line, _) in told.items()]


def _is_video(path: Path) -> bool:
    """macOS leaves a `._sea.mp4` beside `sea.mp4` where it cannot store a file's attributes."""
    return path.suffix.lower() in VIDEO_ENDINGS and not path.name.startswith("._")


def _not_there(path: Path, line: int) -> Bad:
    return Bad(path, f"is no video there, but line {line} of {METADATA} names it")


def _metadata(folder: Path) -> dict[str, tuple[int, str | None]]:
    """Of each file that it names its line, counted from 1, and caption, if it has one."""
    path = folder / METADATA
    if not path.is_file():
        return {}
    told = {}
    # By bytes: JSON may hold characters at which `splitlines` breaks a text.
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line.decode("utf-8-sig"))
            name = PurePosixPath(str(row["file_name"])).as_posix()
            text = row.get("text")
            told[name] = (number, text.strip() if isinstance(text, str) else None)
        except UnicodeDecodeError as error:
            wrong = f"byte {error.start + 1} is not UTF-8; save the file as UTF-8"
            raise BadJob(f"{path}, line {number}: {wrong}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            want = '{"file_name": ..., "text": ...}'
            raise BadJob(f"{path}, line {number}: each line must be {want}") from None
    return told


def _look(path: Path, caption: str | None, least_s: float, check_caption: Check) -> Video | Bad:
    beside = path.with_suffix(".txt")
    if caption is None and beside.is_file():
        try:
            caption = beside.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            return Bad(path, f"{beside.name} is not UTF-8; save it as UTF-8")
    if not caption or not caption.strip():
        return Bad(path, f"has no caption: neither {beside.name} nor a line in {METADATA}")
    caption = " ".join(caption.split())
    if wrong := check_caption(caption):
        return Bad(path, f"its caption {wrong}")
    try:
        first_s, seconds = _span(path)
    except (av.FFmpegError, OSError, ValueError) as error:
        return Bad(path, f"cannot be read: {_said(error)}")
    if seconds < least_s:
        return Bad(path, f"lasts {seconds:.2f} s, and a clip {least_s:.2f} s")
    return Video(path, caption, seconds, first_s)


def _said(error: Exception) -> str:
    """Without a number that says nothing, and the path once more."""
    return str(getattr(error, "strerror", None) or error)


def _span(path: Path) -> tuple[float, float]:
    """When a video's first frame is shown, by its own clock, and how long its frames last, by the
    times of its packets: those are what is there, where a header may promise more. Only the first
    frame is decoded: decoding all takes minutes an hour of film. Raises av.FFmpegError, OSError or
    ValueError if it cannot be read."""
    first: float | None = None
    last, seen = 0.0, False
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it has no picture")
        stream = container.streams.video[0]
        step = 1 / float(stream.average_rate or 24)
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise ValueError(f"it is torn after {last - (first or 0.0):.2f} s")
            if not seen:
                seen = bool(packet.decode())
            if packet.size and not packet.is_discard:  # the last one is empty
                time_s = _shown_from(packet, 0.0 if first is None else last + step)
                # Frames that are shown first may come later.
                first = time_s if first is None else min(first, time_s)
                last = max(last, time_s)
    if not seen or first is None:
        raise ValueError("it has no frames")
    return first, last - first + step


def _shown_from(packet: av.Packet, otherwise: float) -> float:
    time = packet.dts if packet.pts is None else packet.pts
    return otherwise if time is None else float(time * packet.time_base)


def read_clip(
    video: Video, start_s: float, pixel_frames: int, fps: float, size: tuple[int, int]
) -> np.ndarray:
    """Frames FHWC, RGB uint8, at ``fps``, from ``start_s`` after the first frame on: of the video's
    own frames the one that is shown at each time, scaled to cover ``size`` (width, height) and cut
    to its middle. Raises Damaged where it cannot be read."""
    times = [start_s + n / fps for n in range(pixel_frames)]
    try:
        frames = _shown_at(times, _pictures(video, start_s), size)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise Damaged(
            video.path,
            f"{video.path} cannot be read at {start_s:.2f} s: {_said(error)}",
        ) from None
    return np.stack(frames)


def _shown_at(
    times: Sequence[float], pictures: Iterable[tuple[float, av.VideoFrame]], size: tuple[int, int]
) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    shown: np.ndarray | None = None
    for time_s, picture in pictures:
        # A frame is shown until the next one comes.
        while (
            len(frames) < len(times) and shown is not None and times[len(frames)] < time_s - LATE_S
        ):
            frames.append(shown)
        if len(frames) == len(times):
            break
        shown = _cover(picture, size)
    if shown is None:
        raise ValueError("no frame comes")
    return frames + [shown] * (len(times) - len(frames))


def _pictures(video: Video, start_s: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """Seconds after the first frame, and picture, of each frame, from the last key frame before
    ``start_s`` on."""
    with av.open(str(video.path)) as container:
        if not container.streams.video:
            raise ValueError("it has no picture")
        stream = container.streams.video[0]
        if start_s > 0 and stream.time_base is not None:
            container.seek(int((video.first_s + start_s) / stream.time_base), stream=stream)
        rate = float(stream.average_rate or 24)
        for number, frame in enumerate(container.decode(stream)):
            yield (number / rate if frame.time is None else frame.time - video.first_s), frame


def _cover(picture: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """A telephone held upright writes its pictures lying, and how to turn them."""
    quarters = round(picture.rotation / 90) % 4
    width, height = size[::-1] if quarters % 2 else size
    scale = max(width / picture.width, height / picture.height)
    wide = max(width, round(picture.width * scale))
    high = max(height, round(picture.height * scale))
    whole = picture.reformat(wide, high, format="rgb24").to_ndarray()
    top, left = (high - height) // 2, (wide - width) // 2
    return np.rot90(whole[top : top + height, left : left + width], quarters)
