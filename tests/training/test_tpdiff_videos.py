"""Folders of captioned videos: what is found, what is refused, and what is cut from them."""

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.errors import BadJob
from training.tpdiff.videos import Video, read_clip, scan
from workers.video import encode_segment


def write_video(path: Path, frames: int = 24, fps: int = 12, caption: str | None = "a sea") -> Path:
    """Frames that get brighter by 8 levels each, 64x48."""
    levels = (np.arange(frames) * 8 + 16).astype(np.uint8)
    film = np.broadcast_to(levels[:, None, None, None], (frames, 48, 64, 3))
    path.write_bytes(encode_segment(np.ascontiguousarray(film), fps=fps, codec="h264", quality=10))
    if caption is not None:
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
    assert "cannot be read" in said["torn.mp4"] and "cannot be read" in said["text.mp4"]


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadJob, match=r"holds no video; known endings: \.mp4"):
        scan(tmp_path, 1.0)
    with pytest.raises(BadJob, match="is no folder"):
        scan(tmp_path / "missing", 1.0)
    write_video(tmp_path / "a.mp4")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4"}')
    with pytest.raises(BadJob, match="line 1: each line must be"):
        scan(tmp_path, 1.0)


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
