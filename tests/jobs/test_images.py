"""Images that shots start from: found, checked, and named by their content."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.errors import BadJob
from jobs.images import MAX_IMAGE_BYTES, ImageFile, decode_image, find_image, read_image


def picture(width: int = 32, height: int = 16, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def test_a_file_is_found_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").mkdir()
    file = tmp_path / "pictures" / "a.png"
    picture().save(file)
    monkeypatch.chdir(tmp_path)
    found = find_image("pictures/a.png")
    assert found == find_image(str(file))
    assert (found.path, found.width_px, found.height_px) == (str(file), 32, 16)
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert read_image(found) == file.read_bytes()


def test_a_shape_that_the_film_does_not_have() -> None:
    image = ImageFile("/a.png", "0" * 64, 1920, 1080)
    assert not image.is_stretched_to(1024, 576)
    assert not image.is_stretched_to(1024, 580), "less than a hundredth"
    assert image.is_stretched_to(1024, 600) and image.is_stretched_to(576, 1024)
    assert image.is_stretched_to(1024, 552)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_what_is_read(tmp_path: Path, ending: str) -> None:
    picture().save(tmp_path / f"a.{ending}")
    image = decode_image((tmp_path / f"a.{ending}").read_bytes(), "a")
    assert (image.mode, image.size) == ("RGB", (32, 16))


def test_it_is_upright_and_in_rgb(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # lies on its side
    picture().save(tmp_path / "a.jpg", exif=turned)
    assert decode_image((tmp_path / "a.jpg").read_bytes(), "a").size == (16, 32)
    picture(mode="L").save(tmp_path / "a.png")
    assert decode_image((tmp_path / "a.png").read_bytes(), "a").mode == "RGB"


def test_another_file_than_planned_is_refused(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    planned = find_image(str(tmp_path / "a.png"))
    picture(mode="L").save(tmp_path / "a.png")
    with pytest.raises(BadJob, match="another image than the film was planned with"):
        read_image(planned)
    (tmp_path / "a.png").unlink()
    with pytest.raises(BadJob, match="is no file here"):
        read_image(planned)


def write_spoiled(file: Path, kind: str) -> None:
    if kind == "folder":
        file.mkdir()
    elif kind == "text":
        file.write_text("no picture")
    elif kind == "huge file":
        with file.open("wb") as sparse:
            sparse.truncate(MAX_IMAGE_BYTES + 1)
    elif kind == "cut short":
        picture(64, 64).save(file, format="PNG")
        file.write_bytes(file.read_bytes()[:-3000])
    elif kind == "gif":
        picture().save(file, format="GIF")
    elif kind == "moving":
        more = [picture(mode="L").convert("RGB")]
        picture().save(file, format="PNG", save_all=True, append_images=more)
    elif kind == "16 bits":
        Image.fromarray(np.full((32, 32), 40000, np.uint16)).save(file, format="PNG")
    elif kind != "missing":
        width, _, height = kind.partition("x")
        Image.new("1", (int(width), int(height))).save(file, format="PNG")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "is no file here; give a PNG, JPEG or WebP image"),
        ("folder", "is no file here"),
        ("text", "is no picture that can be read; give a PNG"),
        ("gif", "is no picture that can be read; give a PNG"),
        ("huge file", "is larger than 100 MB"),
        ("cut short", "is damaged or not copied whole"),
        ("moving", "holds several pictures; give one"),
        ("16 bits", "has more than 8 bits per colour; save it with 8"),
        ("8193x16", "has 8193x16 px; give an image of 16 to 8192 px a side"),
        ("15x20", "has 15x20 px"),
        ("20000x20000", "more than 8192 px a side"),
    ],
)
def test_what_is_refused(tmp_path: Path, kind: str, says: str) -> None:
    write_spoiled(tmp_path / "a.png", kind)
    with pytest.raises(BadJob, match=f"a.png .*{says}|a.png {says}"):
        find_image(str(tmp_path / "a.png"))


def test_plans_are_made_without_a_library_of_images() -> None:
    said = "import sys, orchestrator.plan; assert 'PIL' not in sys.modules"
    subprocess.run([sys.executable, "-c", said], check=True)
