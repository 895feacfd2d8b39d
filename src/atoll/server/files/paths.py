"""Paths of a volume in addresses: `/v1/files/a/b` is `/data/a/b`, each name percent-encoded by its bytes.

Read from the bytes of the request, since a server decodes them as UTF-8 and loses other names. An encoded slash or NUL,
`.`, `..` and empty names are refused rather than resolved: no two programs on the way can read them differently.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

PREFIX = "/v1/files"
MOST_NAME_BYTES = 255
MOST_PATH_BYTES = 4095
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class BadPath(ValueError):
    """An address names no path that a volume can have.

    Args:
        hint: the next step.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class FilePath(NamedTuple):
    """A path of a volume.

    Args:
        path: relative to the volume's root, which is the empty text; bytes that are not UTF-8 are surrogates.
        directory: it ends with a slash.
    """

    path: str
    directory: bool


def from_address(raw: bytes) -> FilePath:
    """Return the path in the raw path of a request.

    Raises:
        BadPath: it names none.
    """
    prefix = PREFIX.encode("ascii")
    if not raw.startswith(prefix) or raw[len(prefix) : len(prefix) + 1] not in (b"", b"/"):
        raise BadPath(f"the address is not below `{PREFIX}/`", hint=f"write `{PREFIX}/` without escapes")
    if _BROKEN_ESCAPE.search(raw):
        raise BadPath("`%` is not followed by two hexadecimal digits", hint="write `%25` for a percent sign")
    return _path([unquote_to_bytes(name) for name in raw[len(prefix) :].split(b"/")[1:]])


def from_text(text: str) -> FilePath:
    """Return the path that a decoded text names: `a/b`, `/a/b` or `/data/a/b`.

    Raises:
        BadPath: it names none.
    """
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise BadPath("a path holds a lone surrogate", hint="send the bytes of the name, percent-encoded") from error
    names = data.removeprefix(b"/data/") if data.startswith(b"/data/") else data.removeprefix(b"/")
    return _path(names.split(b"/"))


def _path(names: list[bytes]) -> FilePath:
    directory = not names or names[-1] == b""
    if directory:
        names = names[:-1]
    for name in names:
        if name in (b"", b".", b".."):
            raise BadPath("a path has an empty name, `.` or `..`", hint="write the path without them")
        if b"/" in name or b"\0" in name:
            raise BadPath("a name holds a slash or NUL", hint="no file can have that name")
        if len(name) > MOST_NAME_BYTES:
            raise BadPath(f"a name has more than {MOST_NAME_BYTES} bytes", hint="choose a shorter name")
    joined = b"/".join(names)
    if len(joined) > MOST_PATH_BYTES:
        raise BadPath(f"a path has more than {MOST_PATH_BYTES} bytes", hint="choose a shorter path")
    return FilePath(joined.decode("utf-8", "surrogateescape"), directory)


def address(path: str, *, directory: bool = False) -> str:
    """Return the address of a path, from which `from_address` finds it again."""
    data = path.encode("utf-8", "surrogateescape")
    return f"{PREFIX}/{quote(data, safe='/')}{'/' if directory and path else ''}"


def encoded(name: str) -> str:
    """Return a name as a value of a query."""
    return quote(name.encode("utf-8", "surrogateescape"), safe="")


def shown(name: str) -> str:
    """Return a name as Unicode text: bytes that are not UTF-8 become replacement characters."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
