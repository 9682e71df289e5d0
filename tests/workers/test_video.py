"""Real video files, written and read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from jobs.errors import BadJob, CannotRunHere, DamagedRecord
from workers.films import iter_frames, read_film
from workers.parts import keep_other
from workers.video import CONTAINERS, encode_segment, stitch
from workers.yuv import rgb_to_yuv420

pytestmark = pytest.mark.slow

CODECS = list(CONTAINERS)


def picture(frames: int, start: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """A disc that moves over a gradient; smooth, so that chroma subsampling costs little."""
    t, y, x = np.ogrid[start : start + frames, 0:height, 0:width]
    disc = 1 / (1 + ((x - 8 - 2 * t) ** 2 + (y - 24) ** 2) / 100)
    channels = [disc * 200 + x * 0.5, y * 3 + 0 * disc, 255 - x * 2 - 20 * disc]
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


def encode(frames, codec, fps=24, quality=18, **kwargs) -> bytes:
    return encode_segment(frames, fps=fps, codec=codec, quality=quality, **kwargs)


def decoded(segment: bytes, folder: Path) -> np.ndarray:
    path = folder / "segment"
    path.write_bytes(segment)
    return np.stack(list(iter_frames(path)))


def ending(codec: str) -> str:
    return CONTAINERS[codec][1]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("frames", [1, 2, 3, 17])
def test_a_segment_reads_back(codec, frames, tmp_path):
    path = tmp_path / f"segment{ending(codec)}"
    path.write_bytes(encode(picture(frames), codec, fps=12, metadata={"title": "a kite"}))
    film = read_film(path)
    assert (film.codec, film.pixel_frames, film.fps) == (codec, frames, Fraction(12))
    assert (film.width_px, film.height_px, film.duration_s) == (64, 48, Fraction(frames, 12))
    assert film.metadata["title"] == "a kite"


def test_h264_is_tagged_and_plays_at_once(tmp_path):
    path = tmp_path / "segment.mp4"
    path.write_bytes(encode(picture(5), "h264"))
    film = read_film(path)
    assert (film.primaries, film.transfer, film.matrix, film.full_range) == (1, 1, 1, False)
    assert (film.pix_fmt, film.faststart) == ("yuv420p", True)


@pytest.mark.parametrize("codec", CODECS)
def test_equal_frames_give_equal_bytes(codec):
    frames = np.random.default_rng(0).integers(0, 256, (30, 64, 96, 3), np.uint8)
    first = encode(frames, codec)
    assert encode(frames, codec) == first
    assert encode(np.asfortranarray(frames), codec) == first
    assert b"Lavf6" not in first and b"Lavc6" not in first


def test_a_file_holds_no_date(tmp_path):
    path = tmp_path / "segment.mp4"
    path.write_bytes(encode(picture(2), "h264"))
    assert "creation_time" not in read_film(path).metadata


def test_lossless_is_bit_exact(tmp_path):
    frames = np.random.default_rng(1).integers(0, 256, (7, 48, 80, 3), np.uint8)
    assert np.array_equal(decoded(encode(frames, "ffv1"), tmp_path), frames)


COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)]
COLOURS += [(0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 30, 90)]


@pytest.mark.parametrize("colour", COLOURS)
def test_saturated_colours_survive(colour, tmp_path):
    """With the matrix of BT.601, green would be off by tens."""
    frames = np.empty((2, 32, 32, 3), np.uint8)
    frames[:] = colour
    error = np.abs(decoded(encode(frames, "h264", quality=1), tmp_path).astype(int) - frames)
    assert error.max() <= 3


def test_the_conversion_is_that_of_bt709():
    rgb = np.random.default_rng(2).integers(0, 256, (1, 2, 3)).repeat(2, 0).astype(np.uint8)
    rgb[:, 1] = rgb[:, 0]
    y, cb, cr = rgb_to_yuv420(rgb)
    red, green, blue = rgb[0, 0] / 255
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    assert abs(y[0, 0] - (16 + 219 * luma)) <= 0.51
    assert abs(cb[0, 0] - (128 + 224 * (blue - luma) / 1.8556)) <= 0.51
    assert abs(cr[0, 0] - (128 + 224 * (red - luma) / 1.5748)) <= 0.51


def test_black_white_and_grey_have_no_colour():
    grey = np.arange(256, dtype=np.uint8)[None, :, None].repeat(2, 0).repeat(3, 2)
    y, cb, cr = rgb_to_yuv420(grey)
    assert (y[0, 0], y[0, 255]) == (16, 235)
    assert set(np.unique(cb)) == set(np.unique(cr)) == {128}


def test_chroma_is_sited_on_the_left_column():
    """A red column at x = 2 gives half to chroma column 1; one at x = 3 a quarter to each side."""
    rgb = np.zeros((2, 8, 3), np.uint8)
    rgb[:, 2, 0] = 255
    centre = rgb_to_yuv420(rgb)[2][0].astype(int) - 128
    assert centre.tolist() == [0, 56, 0, 0]
    rgb = np.zeros((2, 8, 3), np.uint8)
    rgb[:, 3, 0] = 255
    assert (rgb_to_yuv420(rgb)[2][0].astype(int) - 128).tolist() == [0, 28, 28, 0]


def test_a_lower_crf_is_closer(tmp_path):
    frames = picture(9)

    def error(quality):
        got = decoded(encode(frames, "h264", quality=quality), tmp_path)
        return np.abs(got.astype(int) - frames).mean()

    assert error(5) < error(35) < 30


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("fps", [7, 24, 60])
@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [9, 1, 2, 30, 3], [40, 40]])
def test_a_film_is_its_segments_in_order(codec, fps, lengths, tmp_path):
    starts = np.cumsum([0, *lengths])[:-1]
    pairs = zip(lengths, starts, strict=True)
    segments = [encode(picture(n, start), codec, fps=fps) for n, start in pairs]
    out = tmp_path / f"film{ending(codec)}"
    film = stitch(segments, out, fps=fps, codec=codec, metadata={"title": "T", "job": "j1"})
    expected = np.concatenate([decoded(segment, tmp_path) for segment in segments])
    assert np.array_equal(np.stack(list(iter_frames(out))), expected)
    assert read_film(out) == film
    assert (film.pixel_frames, film.fps) == (sum(lengths), fps)
    assert film.faststart == (codec == "h264")
    assert film.metadata["title"] == "T" and json.loads(film.metadata["comment"]) == {"job": "j1"}
    assert_times(out, sum(lengths), fps)


def assert_times(path: Path, pixel_frames: int, fps: int) -> None:
    """Frames are shown one after another without gaps; packets' decoding times rise."""
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        tick = stream.time_base
        packets = [packet for packet in film.demux(stream) if packet.size]
        slack = 0 if path.suffix == ".mp4" else Fraction(1, 1000)  # mkv counts milliseconds
        shown = sorted(packet.pts * tick for packet in packets)
        assert all(abs(at - Fraction(i, fps)) <= slack for i, at in enumerate(shown))
        decoding = [packet.dts for packet in packets]
        assert decoding == sorted(set(decoding))
        if path.suffix == ".mp4":
            assert (stream.frames, stream.start_time) == (pixel_frames, 0)
            assert stream.duration * tick == Fraction(pixel_frames, fps)
        assert abs(Fraction(film.duration, 1_000_000) - Fraction(pixel_frames, fps)) < Fraction(
            1, 500
        )


@pytest.mark.parametrize("codec", CODECS)
def test_equal_segments_give_equal_films(codec, tmp_path):
    segments = [encode(picture(5), codec), encode(picture(4), codec)]
    for name in "ab":
        stitch(
            segments, tmp_path / f"{name}{ending(codec)}", fps=24, codec=codec, metadata={"j": 1}
        )
    first, second = (tmp_path / f"{name}{ending(codec)}" for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_segments_come_from_files_too_and_one_at_a_time(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(encode(picture(3), "h264"))
    film = stitch((path for _ in range(3)), tmp_path / "f.mp4", fps=24, codec="h264", metadata={})
    assert film.pixel_frames == 9


def test_a_long_film_needs_no_more_memory(tmp_path):
    """Packets are written as they come: 300 segments cost no more than a few."""
    script = (
        "import resource, sys; from pathlib import Path; from workers.video import stitch\n"
        "segment, out = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "def stitched(n): stitch([segment] * n, out, fps=24, codec='h264', metadata={})\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "stitched(3); before = peak(); stitched(300); print(peak() - before)\n"
    )
    noise = np.random.default_rng(3).integers(0, 256, (4, 128, 128, 3), np.uint8)
    (tmp_path / "a.mp4").write_bytes(encode(noise, "h264", quality=5))
    arguments = [sys.executable, "-c", script, str(tmp_path / "a.mp4"), str(tmp_path / "f.mp4")]
    grown = int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    assert (tmp_path / "f.mp4").stat().st_size > 15_000_000
    assert grown < 8_000_000


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"height": 64}, "size"),
        ({"fps": 25}, "frame rate"),
    ],
)
def test_segments_of_other_settings_are_refused(other, what, tmp_path):
    fps = other.pop("fps", 24)
    segments = [encode(picture(3), "h264"), encode(picture(3, **other), "h264", fps=fps)]
    with pytest.raises(CannotRunHere, match=f"segment 2 cannot be joined.*{what}"):
        stitch(segments, tmp_path / "f.mp4", fps=24, codec="h264", metadata={})
    assert os.listdir(tmp_path) == []


def test_segments_of_another_codec_or_rate_than_the_film_are_refused(tmp_path):
    with pytest.raises(CannotRunHere, match="segment 1 is encoded with ffv1"):
        stitch([encode(picture(2), "ffv1")], tmp_path / "f.mp4", fps=24, codec="h264", metadata={})
    with pytest.raises(CannotRunHere, match="segment 1 has 12 fps"):
        segment = encode(picture(3), "h264", fps=12)
        stitch([segment], tmp_path / "f.mp4", fps=24, codec="h264", metadata={})


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.6, 0.97])
def test_a_segment_that_is_cut_short_is_refused(codec, keep, tmp_path):
    whole = encode(np.random.default_rng(4).integers(0, 256, (20, 48, 64, 3), np.uint8), codec)
    cut = whole[: int(len(whole) * keep)]
    with pytest.raises(DamagedRecord, match="segment 2"):
        out = tmp_path / f"f{ending(codec)}"
        stitch([whole, cut], out, fps=24, codec=codec, metadata={})
    assert os.listdir(tmp_path) == []


def test_a_missing_segment_is_named_and_the_old_film_is_kept(tmp_path):
    out = tmp_path / "f.mp4"
    stitch([encode(picture(2), "h264")], out, fps=24, codec="h264", metadata={})
    before = out.read_bytes()
    with pytest.raises(DamagedRecord, match="segment 2"):
        segments = [encode(picture(2), "h264"), tmp_path / "gone.mp4"]
        stitch(segments, out, fps=24, codec="h264", metadata={})
    assert out.read_bytes() == before and os.listdir(tmp_path) == ["f.mp4"]
    with pytest.raises(DamagedRecord, match=r"gone\.mp4 cannot be read"):
        read_film(tmp_path / "gone.mp4")


def test_another_file_of_the_films_name_is_kept(tmp_path):
    def film(name, count=2):
        return stitch(
            [encode(picture(count), "h264")], out, fps=24, codec="h264", metadata={"film": name}
        )

    out = tmp_path / "f.mp4"
    assert film("one").kept == ""
    assert film("one").kept == "", "the same film, made again"
    assert film("two", 3).kept == str(tmp_path / "f.1.mp4")
    assert read_film(tmp_path / "f.1.mp4").pixel_frames == 2
    out.write_bytes(b"no film at all")
    assert film("two").kept == str(tmp_path / "f.2.mp4")
    assert (tmp_path / "f.2.mp4").read_bytes() == b"no film at all"
    assert read_film(out).pixel_frames == 2


def test_one_that_was_killed_before_it_moved_its_film_leaves_one_copy(tmp_path):
    out = tmp_path / "f.mp4"
    out.write_bytes(b"another")
    assert keep_other(out) == keep_other(out) == tmp_path / "f.1.mp4"
    assert out.read_bytes() == (tmp_path / "f.1.mp4").read_bytes() == b"another"


def test_who_watches_the_old_film_goes_on_watching_it(tmp_path):
    """The new film takes the name in one move; the old one's content is never written over."""
    out = tmp_path / "f.mp4"
    stitch([encode(picture(2), "h264")], out, fps=24, codec="h264", metadata={})
    before = out.read_bytes()
    with out.open("rb") as watched:
        stitch([encode(picture(9), "h264")], out, fps=24, codec="h264", metadata={})
        assert watched.read() == before != out.read_bytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/f.mp4", "does not exist; create it first"),
        ("folder.mp4", "is a folder"),
        ("f.mkv", "must end in .mp4; name it f.mp4"),
        ("f", "must end in .mp4; name it f.mp4"),
        ("x" * 252 + ".mp4", "cannot be written"),
    ],
)
def test_a_place_that_cannot_be_written_is_the_persons_mistake(name, message, tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(BadJob, match=message):
        segment = encode(picture(2), "h264")
        stitch([segment], tmp_path / name, fps=24, codec="h264", metadata={})


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from jobs.errors import StoreFull; from workers.video import stitch\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "segments, out = [Path(sys.argv[1])] * 9, Path(sys.argv[2])\n"
        "try: stitch(segments, out, fps=24, codec='h264', metadata={})\n"
        "except StoreFull as error: print(error)\n"
    )
    noise = np.random.default_rng(3).integers(0, 256, (4, 96, 96, 3), np.uint8)
    (tmp_path / "a.mp4").write_bytes(encode(noise, "h264"))
    arguments = [sys.executable, "-c", script, str(tmp_path / "a.mp4"), str(tmp_path / "f.mp4")]
    said = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    assert "free some space" in said
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize(
    ("frames", "codec", "message"),
    [
        (np.zeros((1, 16, 16, 3), np.float32), "h264", "uint8"),
        (np.zeros((16, 16, 3), np.uint8), "h264", "uint8"),
        (np.zeros((0, 16, 16, 3), np.uint8), "h264", "uint8"),
        (np.zeros((1, 15, 16, 3), np.uint8), "h264", "even width"),
        (np.zeros((1, 16, 16, 3), np.uint8), "vp9", "valid: h264, ffv1"),
    ],
)
def test_frames_that_cannot_be_encoded(frames, codec, message):
    with pytest.raises(ValueError, match=message):
        encode(frames, codec)


def test_a_film_needs_a_segment(tmp_path):
    with pytest.raises(ValueError, match="at least one segment"):
        stitch([], tmp_path / "f.mp4", fps=24, codec="h264", metadata={})
    assert os.listdir(tmp_path) == []
