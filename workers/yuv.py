"""RGB to YUV as BT.709 says, in integers: the same bits on every machine."""

from __future__ import annotations

import numpy as np


def _fixed_matrix() -> np.ndarray:
    """BT.709 RGB to limited-range Y, Cb, Cr; 16 fractional bits, rows that sum exactly."""
    red, blue = 0.2126, 0.0722
    luma = np.array([red, 1 - red - blue, blue])
    cb = (np.array([0.0, 0.0, 1.0]) - luma) / (2 * (1 - blue))
    cr = (np.array([1.0, 0.0, 0.0]) - luma) / (2 * (1 - red))
    rows = np.stack([luma * 219, cb * 224, cr * 224]) / 255 * 65536
    fixed = np.rint(rows).astype(np.int32)
    fixed[1:, 1] -= fixed[1:].sum(axis=1)  # grey has no colour
    return fixed


_MATRIX = _fixed_matrix()


def rgb_to_yuv420(frame_HWC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RGB uint8 [H, W, 3] to Y [H, W] and Cb, Cr [H/2, W/2], BT.709 in limited range.

    Chroma is sited as H.264 assumes when nothing is said: on the left luma column, between rows.
    """
    rgb = frame_HWC.astype(np.int32)
    y = _mix(rgb, _MATRIX[0], 16, 16)
    left = np.concatenate([rgb[:, :1], rgb[:, 1:-1:2]], axis=1)
    across = left + 2 * rgb[:, 0::2] + rgb[:, 1::2]
    chroma = across[0::2] + across[1::2]  # eight times the mean
    return y, _mix(chroma, _MATRIX[1], 128, 19), _mix(chroma, _MATRIX[2], 128, 19)


def _mix(rgb: np.ndarray, row: np.ndarray, offset: int, bits: int) -> np.ndarray:
    total = rgb[..., 0] * row[0] + rgb[..., 1] * row[1] + rgb[..., 2] * row[2]
    rounded: np.ndarray = ((total + (1 << (bits - 1))) >> bits) + offset
    return rounded.clip(0, 255).astype(np.uint8)
