"""Exceptions that a worker sent, rebuilt here with the frames where they were raised.

Theory of operation. The frames are real. For each one, a piece of code that only raises gets the remote file, line,
columns and name, and runs once. So debuggers, loggers and `traceback` show it without knowing of Atoll. `linecache`
gets the source lines of files that this machine lacks.
"""

from __future__ import annotations

import builtins
import linecache
import os
import traceback
from collections.abc import Sequence
from functools import cache
from types import CodeType, TracebackType
from typing import Any

from atoll.errors import RemoteError, SerializationError
from atoll.payload.functions import loads_by_value

_MOST_LINES = 200_000
_MOST_GIVEN = 4_000_000
"""Lines that `linecache` holds for remote files; 8 bytes each."""
_given = 0


def loads(header: dict[str, Any], buffers: Sequence[Any]) -> BaseException:
    """Return the exception that `payload.exceptions_dump.dumps` described, ready to be raised.

    A type that cannot be imported here gives a `RemoteError` with its name, message and traceback text; one that
    could not be pickled a `SerializationError` whose `__cause__` is that `RemoteError`.
    """
    nodes = header["exceptions"]
    rebuilt: list[BaseException | None] = [None] * len(nodes)
    for number in reversed(range(len(nodes))):
        _rebuild(number, nodes, buffers, rebuilt)
    return linked(nodes, rebuilt)


def linked(nodes: list[dict[str, Any]], rebuilt: Sequence[BaseException | None]) -> BaseException:
    """Give the exceptions their frames, and the links between them that the nodes describe; return the raised one."""
    for node, exc in zip(nodes, rebuilt, strict=True):
        assert exc is not None
        frames = _traceback(node["frames"])
        exc.__traceback__ = frames
        if isinstance(exc.__cause__, RemoteError) and isinstance(exc, SerializationError) and node["refused"]:
            exc.__cause__.__traceback__ = frames
            exc = exc.__cause__
        exc.__cause__ = _linked(rebuilt, node["cause"], exc)
        exc.__context__ = _linked(rebuilt, node["context"], exc)
        exc.__suppress_context__ = bool(node["suppress"])
    assert rebuilt[0] is not None
    return rebuilt[0]


def _linked(rebuilt: Sequence[BaseException | None], number: int, exc: BaseException) -> BaseException | None:
    found = rebuilt[number] if 0 <= number < len(rebuilt) else None
    return None if found is exc else found


def _rebuild(
    number: int, nodes: list[dict[str, Any]], buffers: Sequence[Any], rebuilt: list[BaseException | None]
) -> BaseException:
    done = rebuilt[number]
    if done is not None:
        return done
    node = nodes[number]
    exc: BaseException
    if node["pickle"] < 0:
        exc = stand_in(number, nodes)
        if number == 0:  # causes and contexts stay plain stand-ins
            refused = SerializationError(
                f"the function raised an exception that cannot be sent: a `{node['type']}`: {node['refused']}",
                hint="let its arguments and attributes be plain data",
            )
            refused.__cause__ = exc
            exc = refused
    else:
        first = node["pickle"]
        try:
            exc = _unpickle(
                number, nodes, buffers[first], buffers[first + 1 : first + node["buffers"]], rebuilt, buffers
            )
        except Exception as error:
            exc = stand_in(number, nodes, error)
        if node["notes"] and not hasattr(exc, "__notes__"):  # its own `__reduce__` leaves them out
            for note in node["notes"]:
                exc.add_note(note)
    rebuilt[number] = exc
    return exc


def _unpickle(
    number: int,
    nodes: list[dict[str, Any]],
    data: Any,
    pieces: Sequence[Any],
    rebuilt: list[BaseException | None],
    buffers: Sequence[Any],
) -> BaseException:
    members = nodes[number]["members"]
    if members is None:
        exc = loads_by_value(data, pieces)
    else:
        cls, message, state = loads_by_value(data, pieces)
        inner = [_rebuild(member, nodes, buffers, rebuilt) for member in members if member > number]
        base: Any = ExceptionGroup if issubclass(cls, ExceptionGroup) else BaseExceptionGroup
        exc = base.__new__(cls, message, inner)
        vars(exc).update(state)
    if not isinstance(exc, BaseException):
        raise TypeError("the pickle holds no exception")
    return exc


def stand_in(number: int, nodes: list[dict[str, Any]], error: Exception | None = None) -> RemoteError:
    """Return a `RemoteError` in place of an exception that cannot be made here."""
    node = nodes[number]
    name = node["type"]
    hint = f"install what defines `{name}` here to catch it by its type" if node["pickle"] >= 0 else ""
    exc = RemoteError(
        f"{name}: {node['text']}" if node["text"] else name,
        hint=hint,
        type_name=name,
        text=node["text"],
        traceback_text="".join(_format(number, nodes, set())),
        reason=node["refused"] or f"{type(error).__name__}: {error}",
    )
    for note in node["notes"]:
        exc.add_note(note)
    return exc


# --- text -------------------------------------------------------------------------------------------------------


def _format(number: int, nodes: list[dict[str, Any]], seen: set[int]) -> list[str]:
    """Format a node with its causes and contexts, as the interpreter would."""
    lines: list[str] = []
    chain: list[tuple[int, str]] = [(number, "")]
    while True:  # from the raised one down to its first cause; printed in the opposite order
        current = chain[-1][0]
        seen.add(current)
        node = nodes[current]
        if 0 <= node["cause"] < len(nodes) and node["cause"] not in seen:
            chain.append((node["cause"], _CAUSE))
        elif 0 <= node["context"] < len(nodes) and not node["suppress"] and node["context"] not in seen:
            chain.append((node["context"], _CONTEXT))
        else:
            break
    for current, link in reversed(chain):
        node = nodes[current]
        if node["frames"]:
            lines.append("Traceback (most recent call last):\n")
            lines.extend(traceback.StackSummary.from_list([_summary(frame) for frame in node["frames"]]).format())
        lines.append(f"{node['type']}: {node['text']}\n" if node["text"] else f"{node['type']}\n")
        lines.extend(f"{note}\n" for note in node["notes"])
        for member in node["members"] or ():
            if member not in seen:
                lines.extend("  | " + line for line in "".join(_format(member, nodes, seen)).splitlines(keepends=True))
        lines.append(link)
    return lines


_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"


def _summary(frame: list[Any]) -> traceback.FrameSummary:
    file, line, name, source, *_ = frame
    return traceback.FrameSummary(file, line, name, line=source or None)


# --- frames -----------------------------------------------------------------------------------------------------


@cache
def _stub() -> CodeType:
    return compile("raise stop", "<atoll>", "exec")


class _Stop(Exception):
    """Raised by the stub and caught at once; only its frame is kept."""


def _traceback(frames: list[list[Any]]) -> TracebackType | None:
    below: TracebackType | None = None
    for frame in reversed(frames):
        below = _entry(frame, below)
    return below


def _entry(frame: list[Any], below: TracebackType | None) -> TracebackType | None:
    file, line, name, source, end, start, stop = frame
    line = line if isinstance(line, int) and line > 0 else 1
    if source:
        _give_line(file, line, source)
    stub = _stub()
    code = stub.replace(
        co_filename=file,
        co_name=name,
        co_qualname=name,
        co_firstlineno=line,
        co_linetable=_positions(len(stub.co_code) // 2, line, end, start, stop),
    )
    space = {"__name__": "", "__file__": file, "__builtins__": builtins, "stop": _Stop()}
    try:
        exec(code, space)  # noqa: S102 - our own stub, under a remote frame's name
    except _Stop as error:
        entry = error.__traceback__
        made = entry.tb_next if entry is not None else None
        assert made is not None
        space.pop("stop")  # it would hold this frame, and this frame it
        return TracebackType(below, made.tb_frame, made.tb_lasti, line)
    return below


def _positions(units: int, line: int, end: int | None, start: int | None, stop: int | None) -> bytes:
    """Return a line table that gives the whole code one position (CPython's `Objects/locations.md`)."""
    position = (end, start, stop) if end is not None and start is not None and stop is not None else None
    if position is not None and position[0] < line:
        position = None
    table = bytearray()
    while units > 0:
        length = min(units, 8)
        units -= length
        table.append(0x80 | ((13 if position is None else 14) << 3) | (length - 1))
        table += _varint(0)  # signed: no step from the first line
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
