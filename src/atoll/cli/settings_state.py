"""The state of the settings in words: the daemon's, for commands that show it, and a mistake in the file, for all."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from atoll.cli.terminal import echo
from atoll.errors import AtollError

_told = set[str]()


def told(text: str) -> str:
    """Return the text, after a note that it was printed: `tell_mistake` does not repeat it."""
    _told.add(text)
    return text


def tell_mistake() -> None:
    """Print one line on standard error if the command has used a host whose settings have a mistake."""
    module = sys.modules.get("atoll.host.local")
    with contextlib.suppress(AtollError):
        mistake = module.local.settings.mistake if module is not None else ""
        if mistake and not any(mistake.startswith(text) for text in _told):
            echo(f"settings: the file is not read: {mistake}", error=True)


def settings_lines(daemon: dict[str, Any]) -> list[str]:
    """Return the state of the daemon's settings in words: empty while all of the file counts."""
    found = daemon.get("settings") or {}
    lines = []
    if found.get("error"):
        lines.append(f"settings: the file is not read, earlier values count: {told(found['error'])}")
    if found.get("pending"):
        names = ", ".join(f"`{name}`" for name in found["pending"])
        lines.append(f"settings: {names} will count when nothing runs, or after `atoll stop`")
    return lines
