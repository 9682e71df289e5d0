"""Video files written: encode a segment, stitch segments without re-encoding.

Two codecs: ``h264`` (yuv420p, BT.709, in mp4) and ``ffv1`` (lossless RGB, in mkv). Every segment
starts with a key frame that nothing before it is needed for, so that packets can be copied one
after another. The conversion to YUV is integer arithmetic, the same on every machine.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.container import OutputContainer

from jobs.errors import BadJob, CannotRunHere, DamagedRecord
from jobs.files import file_sha256
from workers.films import FilmFacts, film_facts, open_video
from workers.parts import keep_other, whole_or_absent
from workers.yuv import rgb_to_yuv420

#: codec name -> container format, and the ending that a film of it has
CONTAINERS = {"h264": ("mp4", ".mp4"), "ffv1": ("matroska", ".mkv")}

#: Fixed, since x264's bytes depend on the number of threads.
ENCODER_THREADS = 4

#: Frames that H.264 packets may be reordered by: decoding times run this far ahead.
REORDER_FRAMES = 2

#: The tags of BT.709, limited range, as FFmpeg numbers them.
_BT709, _LIMITED = 1, 1


class SegmentsDiffer(CannotRunHere):
    """Segments are whole, but were not encoded alike: they are to be encoded again, together."""


def encode_segment(
    frames_FHWC: np.ndarray,
    *,
    fps: int,
    codec: str,
    quality: int,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Encode RGB uint8 frames [F, H, W, 3] as a playable file; equal input gives equal bytes.

    ``quality`` is the CRF of h264 (0 best, 51 worst); ffv1 is lossless and ignores it.
    Raises ValueError for an unknown codec or a wrong shape.
    """
    _check_frames(frames_FHWC, codec)
    muxer, ending = CONTAINERS[codec]
    with tempfile.TemporaryDirectory(prefix="longtake-") as folder:
        # A real file, since moving the index to the front needs to read it again.
        path = Path(folder) / f"segment{ending}"
        with av.open(str(path), "w", format=muxer, options=_muxer_options(muxer, fps)) as out:
            out.metadata.update(metadata or {})
            _encode_all(out, frames_FHWC, fps, codec, quality)
        return path.read_bytes()


def _check_frames(frames_FHWC: np.ndarray, codec: str) -> None:
    if codec not in CONTAINERS:
        raise ValueError(f"unknown codec {codec!r}; valid: {', '.join(CONTAINERS)}")
    shape, dtype = frames_FHWC.shape, frames_FHWC.dtype
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise ValueError(f"frames must be uint8 [F, H, W, 3], not {dtype} {list(shape)}")
    if codec == "h264" and (shape[1] % 2 or shape[2] % 2):
        raise ValueError(f"h264 needs an even width and height, not {shape[2]}x{shape[1]}")


def _muxer_options(muxer: str, fps: int) -> dict[str, str]:
    """``bitexact`` keeps dates, library versions and random ids out of the file; the timescale
    counts frames exactly, where mp4's own would round the film's length to milliseconds."""
    options = {"fflags": "+bitexact"}
    mp4 = {"movflags": "+faststart", "movie_timescale": str(1000 * fps)}
    return options | mp4 if muxer == "mp4" else options


def _encode_all(
    out: OutputContainer, frames_FHWC: np.ndarray, fps: int, codec: str, quality: int
) -> None:
    stream = _add_stream(out, frames_FHWC.shape, fps, codec, quality)
    for index, frame_HWC in enumerate(frames_FHWC):
        frame = _h264_frame(frame_HWC) if codec == "h264" else _rgb_frame(frame_HWC)
        frame.pts, frame.time_base = index, Fraction(1, fps)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def _add_stream(
    out: OutputContainer, shape: tuple[int, ...], fps: int, codec: str, quality: int
) -> Any:
    if codec == "h264":
        options = {
            "crf": str(quality),
            "preset": "medium",
            "x264-params": "open-gop=0:cpu-independent=1",
        }
        stream = out.add_stream("libx264", rate=fps, options=options)
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", 2 * fps
        _tag_bt709(stream.codec_context)
    else:
        options = {"level": "3", "slices": "4", "slicecrc": "1"}
        stream = out.add_stream("ffv1", rate=fps, options=options)
        stream.pix_fmt, stream.codec_context.gop_size = "bgr0", 1
    stream.height, stream.width = shape[1], shape[2]
    stream.codec_context.time_base = Fraction(1, fps)
    stream.codec_context.thread_count = ENCODER_THREADS
    stream.codec_context.flags |= av.codec.context.Flags.bitexact
    return stream


def _tag_bt709(target: Any) -> None:
    target.color_primaries = target.color_trc = target.colorspace = _BT709
    target.color_range = _LIMITED


def _rgb_frame(frame_HWC: np.ndarray) -> av.VideoFrame:
    height, width = frame_HWC.shape[:2]
    bgra_HWC = np.zeros((height, width, 4), np.uint8)
    bgra_HWC[..., :3] = frame_HWC[..., ::-1]
    return av.VideoFrame.from_ndarray(bgra_HWC, format="bgra").reformat(format="bgr0")


def _h264_frame(frame_HWC: np.ndarray) -> av.VideoFrame:
    planes = np.concatenate([plane.reshape(-1) for plane in rgb_to_yuv420(frame_HWC)])
    height, width = frame_HWC.shape[:2]
    frame = av.VideoFrame.from_ndarray(planes.reshape(height * 3 // 2, width), format="yuv420p")
    frame.colorspace, frame.color_range = _BT709, _LIMITED
    return frame


def stitch(
    segments: Iterable[Path | str | bytes],
    out: Path,
    *,
    fps: int,
    codec: str,
    metadata: Mapping[str, Any],
) -> FilmFacts:
    """Join segments into one film, copying packets: nothing is decoded or encoded again.

    ``metadata`` may hold ``title``; all the rest goes into the comment as JSON. The film appears
    under its name only when whole; what stood there is kept under another, unless it is the same
    to the byte. Raises BadJob where ``out`` cannot be written, DamagedRecord
    for a segment that cannot be read, SegmentsDiffer for segments of different settings.
    """
    check_output(out, codec)
    with whole_or_absent(out) as part:
        muxer = CONTAINERS[codec][0]
        with av.open(str(part), "w", format=muxer, options=_muxer_options(muxer, fps)) as film:
            film.metadata.update(_tags(metadata))
            count = _copy_all(segments, film, fps, codec)
        is_same = out.is_file() and file_sha256(out) == file_sha256(part)
        kept = None if is_same else keep_other(out)
    return replace(film_facts(out, count), kept=str(kept or ""))


def check_output(out: Path, codec: str) -> None:
    """Raise BadJob if a film of this codec cannot have this name or stand in this folder."""
    try:
        _check_place(out, codec)
    except OSError as error:
        reason = f"{out} cannot be written: {error.strerror}"
        raise BadJob(f"{reason}; choose another --out") from error


def _check_place(out: Path, codec: str) -> None:
    if codec not in CONTAINERS:
        raise BadJob(f"output codec {codec!r} is unknown; valid: {', '.join(CONTAINERS)}")
    ending = CONTAINERS[codec][1]
    if out.is_dir():
        raise BadJob(f"{out} is a folder; give a file name for the film")
    if out.suffix.lower() != ending:
        fix = f"name it {out.with_suffix(ending).name}"
        raise BadJob(f"{out}: a film with codec {codec} must end in {ending}; {fix}")
    if not out.parent.is_dir():
        raise BadJob(f"{out}: the folder {out.parent} does not exist; create it first")
    if not os.access(out.parent, os.W_OK):
        raise BadJob(f"{out}: no permission to write in {out.parent}; choose another --out")


def _tags(metadata: Mapping[str, Any]) -> dict[str, str]:
    rest = {key: value for key, value in metadata.items() if key != "title"}
    tags = {"comment": json.dumps(rest, sort_keys=True, ensure_ascii=False)} if rest else {}
    return tags | ({"title": str(metadata["title"])} if metadata.get("title") else {})


def _copy_all(
    segments: Iterable[Path | str | bytes], film: OutputContainer, fps: int, codec: str
) -> int:
    """Copies every packet; returns the number of frames."""
    stream, first, count = None, None, 0
    for number, segment in enumerate(segments, start=1):
        with open_video(segment, f"segment {number} of the film") as source:
            template = source.streams.video[0]
            settings = _settings(template)
            first = first or _check_first(settings, fps, codec)
            _check_same(settings, first, number)
            if stream is None:
                stream = film.add_stream_from_template(template)
                stream.time_base = Fraction(1, fps)
                stream.codec_context.framerate = fps
            count += _copy_segment(source, film, stream, count, fps, number)
    if not count:
        raise ValueError("a film needs at least one segment")
    return count


def _settings(stream: Any) -> dict[str, object]:
    context = stream.codec_context
    return {
        "codec": context.name,
        "pixel format": context.pix_fmt,
        "size": (context.width, context.height),
        "frame rate": stream.average_rate,
        "codec parameters": bytes(context.extradata or b""),
    }


def _check_first(found: dict[str, object], fps: int, codec: str) -> dict[str, object]:
    if found["codec"] != codec:
        raise CannotRunHere(f"segment 1 is encoded with {found['codec']}, the film with {codec}")
    if found["frame rate"] != fps:
        raise CannotRunHere(f"segment 1 has {found['frame rate']} fps, the film has {fps}")
    return found


def _check_same(found: dict[str, object], first: dict[str, object], number: int) -> None:
    differing = [name for name, value in found.items() if first[name] != value]
    if differing:
        raise SegmentsDiffer(
            f"segment {number} cannot be joined to segment 1: its {', '.join(differing)} differ. "
            "Pieces of one film must be encoded with the same settings and library versions"
        )


def _copy_segment(
    source: Any, film: OutputContainer, stream: Any, start: int, fps: int, number: int
) -> int:
    """Copies one segment's packets to frame ``start`` on; returns how many it held.

    Decoding times are counted, not copied: a short segment's own would run backward at the joint.
    """
    delay = REORDER_FRAMES if stream.codec_context.name in ("h264", "libx264") else 0
    seen: set[int] = set()
    for packet in _packets(source, number):
        shown = round(packet.pts * packet.time_base * fps)
        packet.stream, packet.time_base = stream, Fraction(1, fps)
        packet.pts, packet.dts = start + shown, start + len(seen) - delay
        packet.duration = 1
        if packet.dts > packet.pts:
            raise CannotRunHere(f"segment {number} reorders more than {delay} frames")
        film.mux_one(packet)
        seen.add(shown)
    promised = round(Fraction(source.duration or 0, av.time_base) * fps)
    if seen != set(range(promised)) or not seen:
        raise DamagedRecord(f"segment {number} of the film lacks frames, or is not {fps} fps")
    return len(seen)


def _packets(source: Any, number: int) -> Iterator[Any]:
    try:
        for packet in source.demux(video=0):
            if packet.is_corrupt:
                raise DamagedRecord(f"segment {number} of the film is cut short")
            if packet.size:
                yield packet
    except av.error.FFmpegError as error:
        raise DamagedRecord(f"segment {number} of the film cannot be read: {error}") from error
