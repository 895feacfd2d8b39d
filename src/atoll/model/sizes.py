"""Sizes as text for people."""

from __future__ import annotations


def size_text(count: float) -> str:
    """Return a size for people: `687 MiB`, `1.3 GiB`."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    unit = 0
    while count >= 1000 and unit < len(units) - 1:
        count /= 1024
        unit += 1
    return f"{count:.1f} {units[unit]}" if unit and count < 9.95 else f"{count:.0f} {units[unit]}"
