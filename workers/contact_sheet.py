"""A contact sheet: a film at a glance, one row of frames per shot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from workers.films import iter_frames

_MARGIN_PX = 6
_TEXT_PX = 16
_INK, _PAPER = (235, 235, 235), (24, 24, 28)


@dataclass(frozen=True, slots=True)
class Row:
    """A shot: its caption and its pixel frames ``[start, stop)`` of the film."""

    caption: str
    start: int
    stop: int


def contact_sheet(film: Path, rows: Sequence[Row], out: Path, *, columns: int = 8) -> None:
    """Write a PNG with ``columns`` frames of every row, evenly spread over it."""
    sheet = sheet_of(iter_frames(film), rows, columns=columns)
    if sheet is not None:
        sheet.save(out)


def sheet_of(
    frames: Iterable[np.ndarray],
    rows: Sequence[Row],
    *,
    columns: int = 8,
    most_px: int | None = None,
) -> Image.Image | None:
    """The picture itself, of frames that are uint8 [H, W, 3], each side of at most ``most_px``;
    None if there are none."""
    wanted = {
        row.start + (2 * i + 1) * (row.stop - row.start) // (2 * columns): (number, i)
        for number, row in enumerate(rows)
        for i in range(columns)
    }
    sheet: Image.Image | None = None
    for index, frame in enumerate(frames):
        if index not in wanted:
            continue
        picture = no_larger(frame, most_px)
        width, height = picture.size
        if sheet is None:
            sheet = _blank(rows, columns, width, height)
        number, column = wanted[index]
        left = _MARGIN_PX + column * (width + _MARGIN_PX)
        sheet.paste(picture, (left, _top(number, height) + _TEXT_PX))
    return sheet


def no_larger(frame: np.ndarray, most_px: int | None) -> Image.Image:
    """A frame as a picture, each side of at most ``most_px``."""
    picture = Image.fromarray(frame)
    if most_px is not None:
        picture.thumbnail((most_px, most_px))
    return picture


def _top(number: int, height: int) -> int:
    return _MARGIN_PX + number * (height + _TEXT_PX + _MARGIN_PX)


def _blank(rows: Sequence[Row], columns: int, width: int, height: int) -> Image.Image:
    size = (_MARGIN_PX + columns * (width + _MARGIN_PX), _top(len(rows), height))
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        pen.text((_MARGIN_PX, _top(number, height) + 1), row.caption, fill=_INK)
    return sheet
