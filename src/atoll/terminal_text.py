"""Text from elsewhere on its way to a terminal: nothing in it can act there, forge a line, or reorder its neighbours.

A name, a message or a line that Atoll did not write itself may hold escape sequences, which move the cursor, set the
window's title or write the clipboard; newlines, which make rows that nobody printed; and marks that turn the direction
of text. `printable` shows all of them as escapes. It keeps each character for which `str.isprintable` is true, thus no
control (C0, C1, DEL), no format character (bidi marks and isolates, zero width), no separator but the space, no lone
surrogate, and nothing that Unicode has not assigned.

`harmless` is for the output of a function, which has lines, tabs, progress bars and colours of its own.
"""

from __future__ import annotations

import functools
from typing import Any

MOST_CELL_CHARACTERS = 60
"""Characters that a cell of a table shows of a text on a terminal, so that one name cannot squeeze the other columns."""

RESET = "\x1b[0m"
_SAFE = r"\x1b\[[0-9;]{0,40}m|[\n\t]|\r"
"""Kept in a function's output: colours (SGR with plain numbers, bounded), newline, tab, and carriage return, by which
a progress bar overwrites its own line. None moves the cursor off its line, and none makes a terminal answer."""


def printable(text: str) -> str:
    """Return a text for one line: all that is not a printable character as an escape, newlines and tabs too."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def lines(text: str) -> str:
    """Return a text of several lines: as `printable`, but newlines and tabs stay."""
    if text.isprintable():
        return text
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def harmless(text: str) -> str:
    """Return a function's output for a terminal: colours and progress bars stay, other control is shown as escapes.

    Colours end with the text: what follows is readable.
    """
    if text.isprintable():
        return text
    pieces, end, coloured = list[str](), 0, False
    for match in _safe().finditer(text):
        pieces += (printable(text[end : match.start()]), match[0])
        coloured = coloured or match[0].startswith("\x1b")
        end = match.end()
    pieces.append(printable(text[end:]))
    return "".join(pieces) + RESET * coloured


@functools.cache
def _safe() -> Any:
    import re  # an agent does without

    return re.compile(_SAFE)


def cell(text: str, most: int = MOST_CELL_CHARACTERS) -> str:
    """Return a text for a cell of a table: as `printable`, and its end is cut."""
    shown = printable(text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 1]}\u2026"


def _escape(char: str) -> str:
    number = ord(char)
    if 0xDC80 <= number <= 0xDCFF:
        return f"\\x{number - 0xDC00:02x}"
    return repr(char)[1:-1] if number < 0x10000 and not 0xD800 <= number <= 0xDFFF else f"\\U{number:08x}"
