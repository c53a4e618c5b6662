"""Numbers of bytes for people."""

from __future__ import annotations


def gib(num_bytes: float) -> str:
    """Return `1.5 GiB`, whatever the size: to compare several."""
    return f"{num_bytes / 2**30:,.1f} GiB"


def size(num_bytes: float) -> str:
    """Return bytes in the largest binary unit that leaves a number above 1."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:,.0f} {unit}" if unit == "B" or num_bytes >= 100 else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} TiB"
