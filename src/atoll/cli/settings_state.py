"""The state of a running daemon's settings, in words, for the commands that show the daemon."""

from __future__ import annotations

from typing import Any


def settings_lines(daemon: dict[str, Any]) -> list[str]:
    """Return the state of the daemon's settings in words: empty while all of the file counts."""
    found = daemon.get("settings") or {}
    lines = []
    if found.get("error"):
        lines.append(f"settings: the file is not read, earlier values count: {found['error']}")
    if found.get("pending"):
        names = ", ".join(f"`{name}`" for name in found["pending"])
        lines.append(f"settings: {names} will count when nothing runs, or after `atoll stop`")
    return lines
