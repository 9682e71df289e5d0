"""Folders of captioned videos: what is found, what is refused, and what is cut from them."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from jobs.errors import BadJob
from training.tpdiff.videos import Damaged, Video, read_clip, scan
from workers.video import encode_segment


def write_video(path: Path, frames: int = 24, fps: int = 12, caption: str | None = "a sea") -> Path:
    """Frames that get brighter by 8 levels each, 64x48."""
    levels = (np.arange(frames) * 8 + 16).astype(np.uint8)
    film = np.broadcast_to(levels[:, None, None, None], (frames, 48, 64, 3))
    path.write_bytes(encode_segment(np.ascontiguousarray(film), fps=fps, codec="h264", quality=10))
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


def write_torn(path: Path, caption: str = "a storm") -> Path:
    """Its first frames can be read, and its packets counted; in its middle there is nothing."""
    film = np.random.default_rng(0).integers(0, 255, (24, 48, 64, 3), dtype=np.uint8)
    data = bytearray(encode_segment(film, fps=12, codec="h264", quality=10))
    start, stop = round(0.45 * len(data)), round(0.75 * len(data))
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)
    path.with_suffix(".txt").write_text(caption)
    return path


def test_captions_stand_beside_their_videos_or_in_metadata(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", caption=" a grey\n sea ")
    (tmp_path / "more").mkdir()
    write_video(tmp_path / "more" / "b.mp4", caption=None)
    (tmp_path / "metadata.jsonl").write_text(
        json.dumps({"file_name": "more/b.mp4", "text": "a boat"}) + "\n"
    )
    good, bad = scan(tmp_path, least_s=1.0)
    assert [(v.path.name, v.caption) for v in good] == [
        ("a.mp4", "a grey sea"),
        ("b.mp4", "a boat"),
    ]
    assert [v.seconds for v in good] == pytest.approx([2.0, 2.0], abs=0.01)
    assert bad == []


def test_bad_videos_are_named_with_their_reason(tmp_path: Path) -> None:
    write_video(tmp_path / "good.mp4")
    write_video(tmp_path / "mute.mp4", caption=None)
    write_video(tmp_path / "empty.mp4", caption="  \n")
    write_video(tmp_path / "short.mp4", frames=6)
    whole = write_video(tmp_path / "torn.mp4").read_bytes()
    (tmp_path / "torn.mp4").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "text.txt").write_text("a caption")
    good, bad = scan(tmp_path, least_s=1.0)
    assert [video.path.name for video in good] == ["good.mp4"]
    said = {each.path.name: each.reason for each in bad}
    assert said["mute.mp4"] == said["empty.mp4"].replace("empty", "mute")
    assert "neither mute.txt nor a line in metadata.jsonl" in said["mute.mp4"]
    assert said["short.mp4"] == "lasts 0.50 s, and a clip 1.00 s"
    assert "cannot be read" in said["torn.mp4"]
    assert said["text.mp4"] == "cannot be read: Invalid data found when processing input"


def test_rows_without_a_video_are_named(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", caption=None)
    (tmp_path / "._a.mp4").write_bytes(b"Mac OS X")
    rows = [{"file_name": name, "text": "a sea \u2028 at night"} for name in ("./a.mp4", "b.mp4")]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "metadata.jsonl").write_text(text, encoding="utf-8-sig")
    good, bad = scan(tmp_path, least_s=1.0)
    assert [(video.path.name, video.caption) for video in good] == [("a.mp4", "a sea at night")]
    (missing,) = bad
    assert str(missing).endswith("b.mp4: is no video there, but line 2 of metadata.jsonl names it")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4")
    video.with_suffix(".txt").write_bytes("une forêt".encode("latin-1"))
    _, (bad,) = scan(tmp_path, least_s=1.0)
    assert str(bad).endswith("a.mp4: a.txt is not UTF-8; save it as UTF-8")
    row = json.dumps({"file_name": "a.mp4", "text": "forêt"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_bytes(row.encode("latin-1"))
    with pytest.raises(BadJob, match=r"metadata\.jsonl, line 1: byte 36 is not UTF-8; save"):
        scan(tmp_path, 1.0)


@pytest.mark.parametrize("left", [0.6, 0.9, 0.97])
def test_a_video_that_is_torn_behind_its_header(tmp_path: Path, left: float) -> None:
    """Its header, which comes first, says nothing of it."""
    whole = write_video(tmp_path / "whole.mp4")
    first = {"movflags": "faststart"}
    with av.open(str(whole)) as of, av.open(str(tmp_path / "a.mp4"), "w", options=first) as to:
        stream = to.add_stream_from_template(of.streams.video[0])
        for packet in of.demux(video=0):
            if packet.size:
                packet.stream = stream
                to.mux(packet)
    torn = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(torn[: int(len(torn) * left)])
    (tmp_path / "a.txt").write_text("a sea")
    (good,), (bad,) = scan(tmp_path, least_s=0.1)
    assert good.path == whole and "a.mp4: cannot be read" in str(bad)


def test_every_format_lasts_as_long_as_it_is_shown(tmp_path: Path) -> None:
    """By its packets, as by all of its frames."""
    for ending, codec in ((".mkv", "ffv1"), (".avi", "mpeg4"), (".webm", "libvpx-vp9"),
                          (".gif", "gif"), (".mov", "libx264")):  # fmt: skip
        path = tmp_path / f"a{ending}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height = 64, 48
            stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
            for n in range(25):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 8 * n, np.uint8))
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        path.with_suffix(".txt").write_text("a sea")
    good, bad = scan(tmp_path, least_s=1.0)
    assert bad == [] and len(good) == 5
    for video in good:
        assert video.seconds == pytest.approx(2.5, abs=0.01), video.path.name


def test_a_video_that_is_damaged_inside_is_named(tmp_path: Path) -> None:
    torn = write_torn(tmp_path / "a.mp4")
    (video,), bad = scan(tmp_path, 1.0)
    assert bad == []
    assert read_clip(video, 0.0, 5, fps=12, size=(64, 48)).std() > 10
    with pytest.raises(Damaged, match=r"a\.mp4 cannot be read at 1\.00 s: ") as met:
        read_clip(video, 1.0, 5, fps=12, size=(64, 48))
    assert met.value.path == torn


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_telephones_video_is_turned(tmp_path: Path, quarters: int) -> None:
    """By the matrix that stands in its track's header, as players turn it."""
    film = np.zeros((12, 32, 64, 3), np.uint8)
    film[:, :16, :32] = 200  # bright at its left top
    data = encode_segment(film, fps=12, codec="h264", quality=10)
    one, no = (0x10000).to_bytes(4, "big"), bytes(4)
    less = (-0x10000).to_bytes(4, "big", signed=True)
    upright, rest = one + no + no + no + one, no + no + no + (0x40000000).to_bytes(4, "big")
    turned = {
        1: no + less + no + one + no,  # by a quarter against the clock
        2: less + no + no + no + less,
        3: no + one + no + less + no,
    }[quarters]
    at = data.index(b"tkhd")
    head, track = data[:at], data[at:]
    assert upright + rest in track
    (tmp_path / "a.mp4").write_bytes(head + track.replace(upright + rest, turned + rest, 1))
    (tmp_path / "a.txt").write_text("a wall")
    (video,), _ = scan(tmp_path, 0.5)
    size = (32, 64) if quarters % 2 else (64, 32)
    clip = read_clip(video, 0.0, 1, fps=12, size=size)
    assert clip.shape == (1, size[1], size[0], 3)
    whole = np.rot90(film[0], quarters)
    assert np.abs(clip[0].astype(int) - whole).mean() < 4


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadJob, match=r"holds no video; known endings: \.mp4"):
        scan(tmp_path, 1.0)
    with pytest.raises(BadJob, match="is no folder"):
        scan(tmp_path / "missing", 1.0)
    write_video(tmp_path / "a.mp4")
    for line in ('{"text": "a sea"}', '["a.mp4", "a sea"]', "{"):
        (tmp_path / "metadata.jsonl").write_text(line)
        with pytest.raises(BadJob, match="line 1: each line must be"):
            scan(tmp_path, 1.0)


def test_a_line_without_a_caption(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", caption="a sea")
    write_video(tmp_path / "b.mp4", caption=None)
    rows = [{"file_name": "a.mp4"}, {"file_name": "b.mp4", "text": None}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (good,), (bad,) = scan(tmp_path, 1.0)
    assert (good.path.name, good.caption) == ("a.mp4", "a sea"), "of the file beside it"
    assert str(bad).endswith("b.mp4: has no caption: neither b.txt nor a line in metadata.jsonl")


@pytest.mark.parametrize(("ending", "codec"), [(".mkv", "ffv1"), (".mov", "libx264")])
@pytest.mark.parametrize("first", [0, 300])
def test_a_clock_that_begins_late_and_rounds(
    tmp_path: Path, ending: str, codec: str, first: int
) -> None:
    """As recorded streams have it; Matroska's times are whole thousandths of a second."""
    path = tmp_path / f"a{ending}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(24):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 16 + 8 * n, np.uint8))
            frame.pts, frame.time_base = first + n, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path.with_suffix(".txt").write_text("a sea")
    (video,), _ = scan(tmp_path, 1.0)
    assert video.seconds == pytest.approx(2.0, abs=0.01)
    for start in (0, 7):
        clip = read_clip(video, start / 12, 12, fps=12, size=(64, 48))
        want = 16 + 8 * np.arange(start, start + 12)
        assert clip.mean(axis=(1, 2, 3)) == pytest.approx(want, abs=2)


@pytest.mark.parametrize("start", [0, 5, 17])
def test_a_clip_has_the_frames_that_are_shown_at_its_times(tmp_path: Path, start: int) -> None:
    write_video(tmp_path / "a.mp4")
    (video,), _ = scan(tmp_path, 1.0)
    clip = read_clip(video, start / 12, 5, fps=12, size=(64, 48))
    assert clip.shape == (5, 48, 64, 3) and clip.dtype == np.uint8
    levels = clip.mean(axis=(1, 2, 3))
    assert levels == pytest.approx(16 + 8 * np.arange(start, start + 5), abs=2)


def test_other_frame_rates_and_sizes(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    (video,), _ = scan(tmp_path, 1.0)
    assert isinstance(video, Video)
    slow = read_clip(video, 0.0, 4, fps=6, size=(32, 32))
    assert slow.shape == (4, 32, 32, 3)
    assert slow.mean(axis=(1, 2, 3)) == pytest.approx([16, 32, 48, 64], abs=2)
    fast = read_clip(video, 0.0, 4, fps=24, size=(96, 48))
    assert fast.mean(axis=(1, 2, 3)) == pytest.approx([16, 16, 24, 24], abs=2)


def test_the_middle_is_kept(tmp_path: Path) -> None:
    film = np.zeros((12, 48, 64, 3), np.uint8)
    film[:, :, 16:48] = 200  # a square in the middle
    (tmp_path / "a.mp4").write_bytes(encode_segment(film, fps=12, codec="h264", quality=10))
    (tmp_path / "a.txt").write_text("a wall")
    (video,), _ = scan(tmp_path, 0.5)
    clip = read_clip(video, 0.0, 1, fps=12, size=(20, 36))
    assert clip.mean() == pytest.approx(200, abs=3)
