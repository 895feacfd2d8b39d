"""Frames of a worker, made here again with the files, lines and names that they had there.

Theory of operation. The frames are real. For each one, a piece of code that only raises gets the remote file, line,
columns and name, and runs once. So debuggers, loggers and `traceback` show it without knowing of Atoll. `linecache`
gets the source lines of files that this machine lacks.
"""

from __future__ import annotations

import builtins
import linecache
import os
from functools import cache
from types import CodeType, TracebackType
from typing import Any

_MOST_LINES = 200_000
_MOST_GIVEN = 4_000_000
"""Lines that `linecache` holds for remote files; 8 bytes each."""
_given = 0


def made(frames: list[list[Any]]) -> TracebackType | None:
    """Return the traceback of frames as `payload.exceptions_dump` describes them; None for no frames."""
    below: TracebackType | None = None
    for frame in reversed(frames):
        below = _entry(frame, below)
    return below


@cache
def _stub() -> CodeType:
    return compile("raise stop", "<atoll>", "exec")


class _Stop(Exception):
    """Raised by the stub and caught at once; only its frame is kept."""


def _entry(frame: list[Any], below: TracebackType | None) -> TracebackType | None:
    file, line, name, source, end, start, stop, *more = frame
    line = line if isinstance(line, int) and line > 0 else 1
    first = more[0] if more and isinstance(more[0], int) and 0 < more[0] <= line else line
    if source:
        _give_line(file, line, source)
    stub = _stub()
    if hasattr(stub, "co_qualname"):
        code = stub.replace(
            co_filename=file,
            co_name=name,
            co_qualname=name,
            co_firstlineno=first,  # pytest shows the function from there
            co_linetable=_positions(len(stub.co_code) // 2, line - first, line, end, start, stop),
        )
    else:  # Python 3.10: the line of the traceback's entry counts
        code = stub.replace(co_filename=file, co_name=name, co_firstlineno=line)
    space = {"__name__": "", "__file__": file, "__builtins__": builtins, "stop": _Stop()}
    try:
        exec(code, space)  # noqa: S102 - our own stub, under a remote frame's name
    except _Stop as error:
        entry = error.__traceback__
        inner = entry.tb_next if entry is not None else None
        assert inner is not None
        space.pop("stop")  # it would hold this frame, and this frame it
        return TracebackType(below, inner.tb_frame, inner.tb_lasti, line)
    return below


def _positions(units: int, step: int, line: int, end: int | None, start: int | None, stop: int | None) -> bytes:
    """Return a line table that gives the whole code one position (CPython's `Objects/locations.md`).

    Args:
        step: lines from the code's first one.
    """
    position = (end, start, stop) if end is not None and start is not None and stop is not None else None
    if position is not None and position[0] < line:
        position = None
    table = bytearray()
    while units > 0:
        length = min(units, 8)
        units -= length
        table.append(0x80 | ((13 if position is None else 14) << 3) | (length - 1))
        table += _varint(step << 1)  # signed
        step = 0
        if position is not None:
            table += _varint(position[0] - line) + _varint(position[1] + 1) + _varint(position[2] + 1)
    return bytes(table)


def _varint(value: int) -> bytes:
    pieces = bytearray()
    while value >= 64:
        pieces.append(0x40 | (value & 0x3F))
        value >>= 6
    pieces.append(value)
    return bytes(pieces)


def _give_line(file: str, line: int, source: str) -> None:
    """Give `linecache` a line of a file that is not on this machine."""
    global _given
    if line > _MOST_LINES or os.path.exists(file):
        return
    entry: Any = linecache.cache.get(file)
    if entry is not None and (len(entry) != 4 or not isinstance(entry[2], _Lines)):
        return  # a notebook's cell, or a module of an import hook
    lines = entry[2] if entry is not None else _Lines()
    _given += max(0, line - len(lines)) + len(source) // 8 + 100
    if _given > _MOST_GIVEN:
        _forget_lines()
        lines = _Lines()
    lines.extend(["\n"] * (line - len(lines)))
    lines[line - 1] = source + "\n"
    linecache.cache[file] = (sum(map(len, lines)), None, lines, file)


def _forget_lines() -> None:
    """Remove every line that was given: a worker must not fill this process's memory with them."""
    global _given
    for file, entry in list(linecache.cache.items()):
        if len(entry) == 4 and isinstance(entry[2], _Lines):
            linecache.cache.pop(file, None)
    _given = 0


class _Lines(list[str]):
    """The known lines of a remote file; the others are empty."""
