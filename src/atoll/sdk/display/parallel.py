"""Output of calls that run at the same time: in whole lines, on a terminal each with the call's short id."""

from __future__ import annotations

from typing import Any

MOST_HELD = 64 << 10
"""Bytes of a line without an end that are kept back."""

open_line: tuple[Any, Any] | None = None
"""Streams of the call that was the last to print, and the stream of the program, where its line has no end yet."""
active: set[Any] = set()
"""Streams of calls that a thread waits for now."""


class WholeLines:
    """The lines of one call, beside those of others.

    Args:
        call: its id, shown before each line; empty to leave the lines as they are.
        colours: whether the id is dim.
    """

    def __init__(self, call: str, *, colours: bool) -> None:
        from atoll.sdk.display.words import ID_CHARACTERS  # few programs need it

        shown = f"{call[:ID_CHARACTERS]} |"
        self._prefix = (f"\x1b[2m{shown}\x1b[22m " if colours else f"{shown} ").encode() if call else b""
        self._held: dict[str, bytes] = {}

    def take(self, name: str, data: bytes) -> bytes:
        """Return the lines that have ended; the rest is kept for later."""
        data = self._held.pop(name, b"") + data
        ended, newline, rest = data.rpartition(b"\n")
        if len(rest) > MOST_HELD:
            ended, newline, rest = data, b"\n" if self._prefix else b"", b""
        if rest:
            self._held[name] = rest
        return self._shown(ended, newline) if newline or ended else b""

    def rest(self) -> list[tuple[str, bytes]]:
        """Return the lines without an end, by the name of their stream."""
        held, self._held = self._held, {}
        return [(name, self._shown(data, b"\n" if self._prefix else b"")) for name, data in held.items()]

    def _shown(self, ended: bytes, newline: bytes) -> bytes:
        if not self._prefix:
            return ended + newline
        # of a bar that writes over its own line the last state is shown
        lines = (line.rstrip(b"\r").rpartition(b"\r")[2] for line in ended.split(b"\n"))
        return b"".join(self._prefix + line + b"\n" for line in lines)
