"""Bytes as a person reads them."""

from __future__ import annotations


def gb(size_bytes: float) -> str:
    """In 10^9 bytes, with two decimals; less than one, with three digits."""
    size = size_bytes / 1e9
    return f"{size:,.2f} GB" if size >= 1 else f"{size:.3g} GB"
