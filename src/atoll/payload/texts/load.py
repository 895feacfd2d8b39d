"""Texts of the caller's files in a worker: `linecache` has them under the caller's names (see `dump`).

`linecache` drops an entry whose file is gone, unless the entry is lazy or has no time: both are used here. It reads a
lazy one when it is asked for, so a new worker pays for no text that nobody looks at.
"""

from __future__ import annotations

import functools
import json
import linecache
import sys
import threading
from collections.abc import Callable
from typing import Any

_shown: dict[str, Callable[[], str]] = {}


def show(data: Any) -> None:
    """Let `linecache`, and all that asks it, know the texts that `dump.pack` packed.

    Raises:
        ValueError: the data are not as packed.
    """
    view = memoryview(bytes(data))
    header, _, _ = view.obj.partition(b"\n")  # type: ignore[attr-defined]  # they are bytes
    place = len(header) + 1
    prepare()
    for name, size in json.loads(header):
        _shown[name] = functools.partial(_decode, view[place : place + size])
        _give(name)
        place += size


def packed() -> bytes:
    """Return the texts that were shown, as they were packed; empty for none."""
    texts = [(name, text().encode("utf-8", "surrogatepass")) for name, text in list(_shown.items())]
    if not texts:
        return b""
    header = json.dumps([[name, len(text)] for name, text in texts], separators=(",", ":")).encode()
    return b"\n".join((header, b"".join(text for _, text in texts)))


def text_of(name: str) -> str | None:
    """Return the text of a file of the caller's; None where it has not come."""
    found = _shown.get(name)
    return found() if found is not None else None


def _decode(view: memoryview) -> str:
    return bytes(view).decode("utf-8", "surrogatepass")


def _give(name: str) -> None:
    cache: dict[str, Any] = linecache.cache
    text = _shown[name]
    if name.startswith("<"):  # such a name is never looked up later
        found = text()
        cache[name] = (len(found), None, found.splitlines(keepends=True), name)
    else:
        cache[name] = (text,)


@functools.cache
def prepare() -> None:
    """Change, once, what looks texts up: before a worker's state is first looked at."""
    clear = linecache.clearcache

    @functools.wraps(clear)
    def clearcache() -> None:
        clear()
        for name in _shown:
            _give(name)

    linecache.clearcache = clearcache
    if sys.version_info < (3, 13):  # its own one reads lines of files only
        threading.excepthook = _excepthook


def _excepthook(args: Any) -> None:
    """Print the uncaught exception of a thread as `threading.excepthook` does, with the lines that `linecache` has."""
    if args.exc_type is SystemExit or sys.stderr is None:
        return
    name = args.thread.name if args.thread is not None else threading.get_ident()
    print(f"Exception in thread {name}:", file=sys.stderr)
    import traceback  # 2 ms of every sandbox's start, and only for errors

    traceback.print_exception(args.exc_type, args.exc_value, args.exc_traceback, file=sys.stderr)
