"""The output of a lease's worker in the server: two pipes without waiting, and the tape for `atoll logs`.

The worker writes its answer after the function's output. So the pipes are emptied before bytes of the worker are passed
on: what was printed before an answer reaches the client before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import struct
import termios
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from atoll.host.pseudo_terminal import PseudoTerminal
from atoll.wire.line import STDOUT
from atoll.wire.output_tape import TapeWriter

TERMINAL = 3
"""The place of a pseudo terminal among the pipes; its text goes to the channel of stdout."""
READ_BYTES = 64 << 10
DRAIN_ROUNDS = 512
"""Reads that empty a pipe of 1 MiB, or a terminal (640 KiB, 4 KiB at a time); who prints on is not waited for."""

MOST_CALLS = 20_000
"""Calls without an answer whose output is told apart: clients send a few hundred ahead."""


class Outputs:
    """The pipes of one worker.

    Args:
        pipes: stdout and stderr by their channels, 1 and 2, and a terminal; owned from here on.
        send: takes the channel, 1 or 2, and bytes that were printed.
        give_tape: hands a tape's descriptor to the node; None for a command, whose output is no call's.
    """

    def __init__(
        self, pipes: Mapping[int, int], send: Callable[[int, bytes], None], give_tape: Callable[[int], None] | None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.pipes = dict(pipes)
        self._send = send
        self._give_tape = give_tape
        self._tape: TapeWriter | None = None
        self._can_keep = give_tape is not None
        self._shown = TERMINAL in self.pipes or give_tape is None
        self.tape_descriptor = -1
        """Of the tape's memory, for a handover."""
        self._reads = False
        self.calls: deque[str] = deque()
        """Calls that were sent and have no answer; what is printed belongs to the first."""
        self._poll = select.poll()
        for descriptor in self.pipes.values():
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)

    def hold(self, *, hold: bool) -> None:
        """Stop reading, or go on."""
        if hold != self._reads:
            return
        self._reads = not hold
        for channel, descriptor in self.pipes.items():
            if hold:
                self._loop.remove_reader(descriptor)
            else:
                self._loop.add_reader(descriptor, self._read, channel)

    def drain(self) -> None:
        """Pass on all that has been printed."""
        for _ in range(DRAIN_ROUNDS):
            ready = self._poll.poll(0)
            if not ready:
                return
            named = {descriptor for descriptor, _ in ready}
            for channel in [channel for channel, descriptor in self.pipes.items() if descriptor in named]:
                self._read(channel)

    def _read(self, channel: int) -> None:
        """Pass on one piece, if there is one."""
        descriptor = self.pipes.get(channel)
        if descriptor is None:
            return
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(channel)
            return
        self._keep(data)
        self._send(STDOUT if channel == TERMINAL else channel, data)

    def _keep(self, data: bytes) -> None:
        if self._tape is None and self._can_keep and self._give_tape is not None:
            self._can_keep = False
            with contextlib.suppress(OSError):
                tape = TapeWriter()
                try:
                    self._give_tape(tape.descriptor)
                    self._tape, self.tape_descriptor = tape, os.dup(tape.descriptor)
                finally:
                    tape.close()
        if self._tape is not None:
            self._tape.write(self.calls[0] if self.calls else "", data)

    def show(self, rows: int, columns: int) -> int:
        """Give the terminal a size; return the end for the worker where it is a new one, else -1.

        Raises:
            OSError: there is none.
        """
        if TERMINAL in self.pipes:
            self._resize(rows, columns)
            return -1
        if self._shown or not self.pipes:  # the worker may have closed either of them, or both
            return -1
        self._shown = True
        made = PseudoTerminal(os.fstat(next(iter(self.pipes.values()))).st_uid)
        self.pipes[TERMINAL] = made.descriptor
        self._poll.register(made.descriptor, select.POLLIN)
        self._resize(rows, columns)
        if self._reads:
            self._loop.add_reader(made.descriptor, self._read, TERMINAL)
        return made.take_inner()

    def _resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.pipes[TERMINAL], termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def begun(self, call: str) -> None:
        """Note a call that was passed on; beyond `MOST_CALLS` without an answer, none."""
        if len(self.calls) < MOST_CALLS:
            self.calls.append(call)

    def answered(self) -> None:
        """Note that the first call has its answer: its output is over."""
        if self.calls:
            self.calls.popleft()
        if self._tape is not None:
            self._tape.end()

    def end(self, channel: int) -> None:
        """Read one of the pipes no further."""
        if channel in self.pipes:
            self._close(channel)

    def _close(self, channel: int) -> None:
        descriptor = self.pipes.pop(channel)
        self._poll.unregister(descriptor)
        if self._reads:
            self._loop.remove_reader(descriptor)
        os.close(descriptor)

    def close(self) -> None:
        """Close the pipes."""
        for channel in tuple(self.pipes):
            self._close(channel)
        if self.tape_descriptor >= 0:
            os.close(self.tape_descriptor)
            self.tape_descriptor = -1

    def tape_state(self) -> list[Any]:
        """Return the place on the tape; empty without one."""
        return self._tape.state() if self._tape is not None else []

    def restore_tape(self, descriptor: int, state: list[Any]) -> None:
        """Go on with a tape of another process; the descriptor is owned from here on."""
        self._can_keep = False
        self.tape_descriptor = descriptor
        with contextlib.suppress(OSError, ValueError):
            self._tape = TapeWriter.restore(descriptor, state)
