"""A pipe for a sandbox's stderr whose first part is kept in a log of the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from atoll.terminal_text import lines

MAX_LOGGED_BYTES = 64 << 10
"""Logged of each sandbox, at most; the rest is read and dropped, so that the sandbox's processes go on."""

PAUSE_SECONDS = 0.02
"""Pause after each read of what is dropped: a sandbox that prints without end costs the daemon 50 reads a second."""


@contextlib.contextmanager
def logged_stderr(log: Path) -> Iterator[int]:
    """Give the write end of a pipe, closed at the end; a sandbox gets it instead of a file of the host."""
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read, False)
    loop = asyncio.get_running_loop()
    left = MAX_LOGGED_BYTES

    def drain() -> None:
        nonlocal left
        try:
            data = os.read(read, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            loop.remove_reader(read)
            os.close(read)
        elif left > 0:
            data = lines(data.decode(errors="surrogateescape")).encode()[:left]  # people read the log on terminals
            left -= len(data)
            with contextlib.suppress(OSError), open(log, "ab") as file:
                file.write(data)
        else:
            loop.remove_reader(read)
            loop.call_later(PAUSE_SECONDS, loop.add_reader, read, drain)

    loop.add_reader(read, drain)
    try:
        yield write
    finally:
        os.close(write)
