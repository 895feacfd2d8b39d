"""Texts of the files that travelling code was compiled from: of the program, of notebook cells, of modules.

A worker has none of the caller's files. Without their text it can show no line in a traceback, `inspect.getsource`
fails, and compilers of Python code refuse it. So the texts travel once to each worker, ahead of the first call that
needs them, and later calls pay nothing:

    [[name, bytes], ...], JSON on one line | text | text | ...          a name is a code object's `co_filename`

A file is sent where the code says that it is the code's own: the name of each function stands on its lines. A file
that was edited since it was run is thus left out as soon as its lines have moved, and no other file is ever read into
a message. Installed packages are left out: their files are in the worker's environment.
"""

from __future__ import annotations

import importlib.util
import json
import linecache
import os
import sys
from collections.abc import Iterable, Sequence
from types import CodeType
from typing import Any, NamedTuple

from atoll import file_stamp
from atoll.blake2 import blake2b
from atoll.payload import project

MOST_BYTES = 2 << 20
"""Bytes of the texts of one call; larger files are left out."""


class Texts(NamedTuple):
    """Files' names and texts, packed.

    Args:
        digest: of `data`; empty for no text.
        names: the files that were looked for, also those without a text.
    """

    data: bytes
    digest: str
    names: frozenset[str]


NONE = Texts(b"", "", frozenset())


class _File(NamedTuple):
    stamp: file_stamp.Stamp
    young: bool
    text: str | None


_files: dict[str, _File] = {}
_MOST_FILES = 200


def pack(codes: Iterable[CodeType], own_lines: bool = False) -> Texts:
    """Return the texts of the files that code objects come from.

    Args:
        own_lines: leave all other lines of the files empty.
    """
    by_name: dict[str, list[CodeType]] = {}
    for code in codes:
        by_name.setdefault(code.co_filename, []).append(code)
    found: list[tuple[str, bytes]] = []
    room = MOST_BYTES
    for name in sorted(by_name):
        text = _text(name)
        if text is None or len(text) > room:
            continue
        lines = text.splitlines(keepends=True)
        spans = [_span(code) for code in by_name[name]]
        if not all(_is_at(code, lines, *span) for code, span in zip(by_name[name], spans, strict=True)):
            continue
        if own_lines:
            text = "".join(_only(lines, spans))
        encoded = text.encode("utf-8", "surrogatepass")
        room -= len(encoded)
        found.append((name, encoded))
    return _packed(found, frozenset(by_name))


def joined(first: Texts, *others: Texts) -> Texts:
    """Return the texts of all together; of two texts of one file the first counts."""
    others = tuple(one for one in others if one is not first and (one.digest or not one.names <= first.names))
    if not others:
        return first
    names = first.names.union(*(one.names for one in others))
    found: dict[str, bytes] = {}
    for one in (first, *others):
        for name, text in unpack(one.data):
            found.setdefault(name, text)
    return _packed(list(found.items()), names)


def unpack(data: bytes) -> list[tuple[str, bytes]]:
    """Return the names and texts that were packed.

    Raises:
        ValueError: they are no packed texts.
    """
    header, _, texts = data.partition(b"\n")
    found, place = [], 0
    for name, size in json.loads(header) if header else ():
        found.append((name, texts[place : place + size]))
        place += size
    return found


def _packed(found: list[tuple[str, bytes]], names: frozenset[str]) -> Texts:
    if not found:
        return Texts(b"", "", names)
    header = json.dumps([[name, len(text)] for name, text in found], separators=(",", ":")).encode()
    data = b"\n".join((header, b"".join(text for _, text in found)))
    return Texts(data, blake2b(data, digest_size=16).hexdigest(), names)


def _span(code: CodeType) -> tuple[int, int]:
    """Return the first and the last line of a code object, decorators included."""
    last = max((line for _, _, line in code.co_lines() if line is not None), default=code.co_firstlineno)
    nested = [_span(const)[1] for const in code.co_consts if isinstance(const, CodeType)]
    return code.co_firstlineno, max([last, *nested])


def _is_at(code: CodeType, lines: Sequence[str], first: int, last: int) -> bool:
    """Return whether the lines can be those that the code was compiled from."""
    if not 0 < first <= len(lines):
        return False
    name = code.co_name
    if name.startswith("<"):
        if name != "<lambda>":  # a comprehension has no word of its own
            return True
        name = "lambda"
    return any(name in line for line in lines[first - 1 : last])


def _only(lines: Sequence[str], spans: Iterable[tuple[int, int]]) -> Iterable[str]:
    kept = {number for first, last in spans for number in range(first, last + 1)}
    return (line if number in kept else "\n" for number, line in enumerate(lines, 1))


def _text(name: str) -> str | None:
    """Return the text of a file as Python reads it; None for one that is not sent."""
    if os.path.isabs(name) and not project.in_environment(name):
        stamp = file_stamp.take(name)
        if stamp != file_stamp.GONE:
            return None if stamp[0] > MOST_BYTES else _file_text(name, stamp)
    elif os.path.isabs(name) or name.startswith("<frozen "):
        return None
    lines = linecache.getlines(name, _globals_of(name))
    return "".join(lines) or None


def _file_text(name: str, stamp: file_stamp.Stamp) -> str | None:
    known = _files.get(name)
    if known is not None and known.stamp == stamp and not known.young:
        return known.text
    text = None
    try:
        with open(name, "rb") as file:
            text = importlib.util.decode_source(file.read(MOST_BYTES + 1))
    except (OSError, SyntaxError, ValueError):  # it may be no text at all
        text = None
    if len(_files) >= _MOST_FILES:
        _files.clear()
    _files[name] = _File(stamp, file_stamp.is_young(stamp), text)
    return text


def _globals_of(name: str) -> dict[str, Any] | None:
    """Return the namespace of the module whose loader has the text: an archive's, or that of an import hook."""
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == name:
            return vars(module)
    return None
