"""Sizes and durations as text for people."""

from __future__ import annotations


def size_text(count: float) -> str:
    """Return a size for people: `687 MiB`, `1.3 GiB`."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    unit = 0
    while count >= 1000 and unit < len(units) - 1:
        count /= 1024
        unit += 1
    return f"{count:.1f} {units[unit]}" if unit and count < 9.95 else f"{count:.0f} {units[unit]}"


def duration_text(seconds: float) -> str:
    """Return a time for people: `8 ms`, `1.25 s`, `42 s`, `3 min 05 s`, `2 h 07 min`, `3 d 4 h`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{min(whole // 86400, 99999)} d {whole % 86400 // 3600} h"
