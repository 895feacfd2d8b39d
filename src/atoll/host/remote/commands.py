"""Shells and commands in sandboxes of a server: the caller's own descriptors are read and written here, and never travel.

Theory of operation. The server opens pipes, or a pseudo terminal, for the command. A thread reads the caller's stdin
and offers it to the line. The thread that called writes output; while that waits, it acknowledges nothing, so that the
command waits too.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from atoll import errors
from atoll.host.remote.line_client import LineClient
from atoll.host.remote.server import Server
from atoll.model.build_progress import line_of
from atoll.wire.channel import ChannelClosed
from atoll.wire.websocket import PIECE

LOOK_MILLISECONDS = 200.0
"""Between looks at the size of the caller's terminal."""


def run(
    server: Server,
    opening: dict[str, Any],
    descriptors: tuple[int, int, int],
    *,
    terminal: bool,
    on_progress: Callable[[str], None],
    on_start: Callable[[], None],
) -> int:
    """Run a command on these descriptors; return its exit status.

    Args:
        opening: the message that asks.
        terminal: it gets a pseudo terminal, of the size of that which the first descriptor is.

    Raises:
        AtollError: as the server answers, or it was lost: the command has ended then.
    """
    size = _size(descriptors[0]) if terminal else None
    asked = {**opening, "terminal": terminal, **({"size": size} if size is not None else {})}
    printed: deque[tuple[int, bytes]] = deque()
    line = LineClient(server, asked, lambda _: None, printed=lambda channel, data: printed.append((channel, data)))
    begun = False
    try:
        while True:
            header = line.control.popleft() if line.control else {}
            _write_all(printed, descriptors, line)
            match header.get("type"):
                case "granted":
                    on_start()
                    begun = True
                    threading.Thread(target=_read, args=(descriptors[0], line), daemon=True).start()
                case "answer":
                    return int(header["value"]["status"])
                case "failed":
                    raise errors.from_data(header.get("error") or {})
                case "progress" | "notice":
                    on_progress(line_of(header))
            if terminal and (new := _size(descriptors[0])) != size:
                size = new
                line.tell({"type": "terminal", "size": size})
            if not line.control:
                if line.over:
                    raise ChannelClosed("the line is over", line.reason)
                line.pump(LOOK_MILLISECONDS if terminal else None)
    except ChannelClosed as error:
        raise _lost(line, server, begun=begun) from error
    finally:
        line.close()


def _lost(line: LineClient, server: Server, *, begun: bool) -> errors.AtollError:
    if line.reason is not None:
        return line.reason
    return errors.HostUnreachable(
        f"the connection to {server.shown} was lost" + (", and the command has ended" if begun else ""),
        hint="run it again",
    )


def _size(descriptor: int) -> tuple[int, int] | None:
    """Return rows and columns of a terminal; None where it has gone."""
    with contextlib.suppress(OSError):
        found = os.get_terminal_size(descriptor)
        return found.lines, found.columns
    return None


def _write_all(printed: deque[tuple[int, bytes]], descriptors: tuple[int, int, int], line: LineClient) -> None:
    """Write what has been printed; a command whose reader has gone is told, as by a pipe."""
    while printed:
        channel, data = printed.popleft()
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(descriptors[channel], view) :]
        except BrokenPipeError:
            line.tell({"type": "closed", "channel": channel})


def _read(descriptor: int, line: LineClient) -> None:
    """Send the caller's stdin to its end."""
    with contextlib.suppress(OSError, ChannelClosed):
        while data := os.read(descriptor, PIECE):
            line.offer(data)
        line.tell({"type": "closed"})
