"""The streams of a shell or command in a sandbox: pipes, or a pseudo terminal, whose other ends the node gets.

The client's own descriptors never leave its machine, and those of the server are in no sandbox but for these.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from typing import Any, NamedTuple

from atoll.server.line.beside import read_size
from atoll.server.line.outputs import TERMINAL
from atoll.server.line.sender import Sender
from atoll.wire.line import STDERR, STDOUT


class Input(Sender):
    """The writing end of a command's stdin.

    Args:
        descriptor: owned from here on.
        on_room: see `Sender`.
        terminal: it is a pseudo terminal, which has no end of its own.
    """

    def __init__(self, descriptor: int, on_room: Callable[[], None], *, terminal: bool) -> None:
        super().__init__(on_room)
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._terminal = terminal

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def hold(self, *, hold: bool) -> None:
        """Do nothing: this end is not read."""

    def _send(self, piece: Any) -> int:
        return os.write(self._descriptor, piece)

    def _finish(self) -> None:
        if not self._terminal:
            self.close()

    def _close(self) -> None:
        os.close(self._descriptor)


class Streams(NamedTuple):
    """Descriptors, all owned by the caller."""

    theirs: list[int]
    """stdin, stdout and stderr for the node."""
    input: int
    """The end that writes to stdin."""
    outputs: dict[int, int]
    """The ends that read stdout and stderr, or a terminal, by their places in `Outputs`."""


def open_streams(opening: dict[str, Any]) -> Streams:
    """Return the streams that an opening message asks for; its `size` is taken out of it.

    Raises:
        OSError: there are no more descriptors or terminals.
    """
    size = read_size(opening.pop("size", None))
    with contextlib.ExitStack() as undone:

        def owned(descriptor: int) -> int:
            undone.callback(os.close, descriptor)
            return descriptor

        if opening.get("terminal") is True:
            ours, theirs = map(owned, os.openpty())
            if size is not None:
                fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
            made = Streams(
                [theirs, owned(os.dup(theirs)), owned(os.dup(theirs))], owned(os.dup(ours)), {TERMINAL: ours}
            )
        else:
            pairs = [tuple(map(owned, os.pipe())) for _ in range(3)]
            (stdin, write), (read_out, stdout), (read_err, stderr) = pairs
            made = Streams([stdin, stdout, stderr], write, {STDOUT: read_out, STDERR: read_err})
        undone.pop_all()
        return made
