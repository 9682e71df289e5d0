"""Images that shots start from: found, checked and named by their content.

A plan keeps where an image lies and what it holds. Each host that works on the film reads its own
copy, which must be the same to the last byte.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.errors import BadJob
from jobs.spec_checks import MAX_SIZE_PX

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_IMAGE_BYTES = 100_000_000
MIN_SIDE_PX = 16

_VALID = "give a PNG, JPEG or WebP image"


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image as a plan keeps it: the file, the hash of its bytes, and its size when upright."""

    path: str  # absolute
    sha256: str
    width_px: int
    height_px: int

    def is_stretched_to(self, width_px: int, height_px: int) -> bool:
        """Whether it has another shape than a film of this size: by more than a hundredth."""
        shape, film = self.width_px / self.height_px, width_px / height_px
        return not 0.99 < shape / film < 1.01


def find_image(path: str) -> ImageFile:
    """The image at ``path``. Raises BadJob unless it can be used."""
    there = Path(path).expanduser().absolute()
    content = _read(there)
    width, height = decode_image(content, str(there)).size
    return ImageFile(str(there), hashlib.sha256(content).hexdigest(), width, height)


def read_image(image: ImageFile) -> bytes:
    """The file as it was when the film was planned. Raises BadJob if this host has no such one."""
    content = _read(Path(image.path))
    found = hashlib.sha256(content).hexdigest()
    if found != image.sha256:
        raise BadJob(
            f"{image.path} is another image than the film was planned with ({found[:12]} here, "
            f"{image.sha256[:12]} planned)"
        )
    return content


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise BadJob(f"{path} is no file here; {_VALID}")
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise BadJob(f"{path} is larger than {MAX_IMAGE_BYTES // 10**6} MB; {_VALID}")
        return path.read_bytes()
    except OSError as error:
        raise BadJob(f"{path} cannot be read: {error.strerror or error}") from error


def decode_image(content: bytes, name: str) -> Image:
    """The picture, upright and in RGB, as ``diffusers.utils.load_image`` has it. Raises BadJob."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_kind(image, name)
            image.load()
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        raise BadJob(f"{name} is no picture that can be read; {_VALID}") from None
    except Image.DecompressionBombError:
        raise BadJob(f"{name} has more than {MAX_SIZE_PX} px a side; make it smaller") from None
    except (OSError, SyntaxError, ValueError) as error:  # whatever is wrong inside the file
        raise BadJob(f"{name} is damaged or not copied whole: {error}; copy it again") from error


def _check_kind(image: Image, name: str) -> None:
    width, height = image.size
    if not MIN_SIDE_PX <= min(image.size) <= max(image.size) <= MAX_SIZE_PX:
        sides = f"{MIN_SIDE_PX} to {MAX_SIZE_PX} px a side"
        raise BadJob(f"{name} has {width}x{height} px; give an image of {sides}")
    if getattr(image, "n_frames", 1) > 1:
        raise BadJob(f"{name} holds several pictures; give one")
    if image.mode.startswith(("I", "F")):  # a plain conversion would cut its values off
        raise BadJob(f"{name} has more than 8 bits per colour; save it with 8")
