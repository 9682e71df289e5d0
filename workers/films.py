"""Video files read: what they are, and their frames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace

from jobs.errors import BadJob, DamagedRecord
from jobs.files import file_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmFacts:
    """What a video file is. ``pixel_frames`` is counted, never taken from a header."""

    codec: str
    pix_fmt: str
    fps: Fraction
    pixel_frames: int
    width_px: int
    height_px: int
    primaries: int  # 1: BT.709, 2: not said
    transfer: int
    matrix: int
    full_range: bool
    faststart: bool  # mp4: the index comes before the frames
    sha256: str  # of the file
    kept: str = ""  # where another film is now that stood under this name
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def duration_s(self) -> Fraction:
        return self.pixel_frames / self.fps


@contextmanager
def open_video(video: Path | str | bytes, name: str) -> Iterator[Any]:
    source: Any = BytesIO(video) if isinstance(video, bytes) else str(video)
    try:
        container = av.open(source)
    except (OSError, av.error.FFmpegError) as error:
        raise DamagedRecord(f"{name} cannot be read: {error}") from error
    with container:
        if not container.streams.video:
            raise DamagedRecord(f"{name} holds no video")
        yield container


def why_no_film(path: Path) -> str:
    """What a file is instead of a film; empty if it is one. A still picture has a single frame and
    says nothing of how long that lasts."""
    try:
        with open_video(path, str(path)) as video:
            if video.format.name == "tty":
                return "is a text"  # of which FFmpeg would make pictures
            if video.streams.video[0].disposition & Disposition.attached_pic:
                return "is a sound with a picture"
            frames = sum(1 for _ in islice(video.decode(video=0), 2))
            return "is a still picture" if video.duration is None and frames < 2 else ""
    except (DamagedRecord, av.error.FFmpegError):
        return "is no video that can be read"


def read_film(path: Path) -> FilmFacts:
    """The facts of a video file; decodes every frame to count them. Raises DamagedRecord."""
    return film_facts(path, sum(1 for _ in _decoded(path)))


def iter_frames(path: Path) -> Iterator[np.ndarray]:
    """The film's frames in order, RGB uint8 [H, W, 3]. Raises DamagedRecord, and BadJob for a film
    whose frames have several sizes."""
    size = None
    for number, frame in enumerate(_decoded(path)):
        now = f"{frame.width}x{frame.height}"
        if now != (size := size or now):
            raise BadJob(
                f"{path} changes its size from {size} to {now} at frame {number}; convert it to "
                "one size first"
            )
        if frame.format.is_rgb:
            yield frame.to_ndarray(format="rgb24")
        else:
            yield frame.to_ndarray(
                format="rgb24",
                src_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.MPEG,
                dst_color_range=ColorRange.JPEG,
            )


def _decoded(path: Path) -> Iterator[av.VideoFrame]:
    with open_video(path, str(path)) as container:
        try:
            yield from container.decode(video=0)
        except av.error.FFmpegError as error:
            raise DamagedRecord(f"{path} cannot be decoded: {error}") from error


def film_facts(path: Path, pixel_frames: int) -> FilmFacts:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        return FilmFacts(
            codec=context.name,
            pix_fmt=str(context.pix_fmt),
            fps=Fraction(stream.average_rate or 0),
            pixel_frames=pixel_frames,
            width_px=context.width,
            height_px=context.height,
            primaries=int(context.color_primaries),
            transfer=int(context.color_trc),
            matrix=int(context.colorspace),
            full_range=int(context.color_range) == 2,
            faststart=_index_first(path),
            sha256=file_sha256(path),
            metadata={key.lower(): value for key, value in container.metadata.items()},
        )


def _index_first(path: Path) -> bool:
    """Whether an mp4's ``moov`` box comes before its ``mdat`` box; False for other files."""
    with path.open("rb") as file:
        while len(head := file.read(8)) == 8:
            size, name = int.from_bytes(head[:4], "big"), head[4:]
            if name in (b"moov", b"mdat"):
                return name == b"moov"
            if size == 1:
                size = int.from_bytes(file.read(8), "big") - 8
            if size < 8:
                return False
            file.seek(size - 8, os.SEEK_CUR)
    return False
