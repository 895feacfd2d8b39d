"""The output of a lease's worker: two pipes, and a pseudo terminal once a call wants one.

What comes from any of them is kept on a tape too, memory that the daemon reads.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import TYPE_CHECKING

from atoll.host.contract import Output
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.output_tape import TapeWriter

if TYPE_CHECKING:
    from atoll.host.pseudo_terminal import PseudoTerminal
    from atoll.model.terminal import Terminal

READ_BYTES = 1 << 16
DRAIN_ROUNDS = 512
"""Reads that empty whatever a pipe (1 MiB) or a terminal (640 KiB, 4 KiB at a time) can hold."""


class WorkerOutput:
    """What the worker of one lease prints; used by one thread at a time.

    Args:
        poll: the poll of the lease; the worker's socket is registered already, and so comes first.
        control: the connection to the daemon that carries the lease.
        descriptors: stdout and stderr of the worker; a terminal is added. The caller closes them.
    """

    def __init__(self, poll: select.poll, control: Channel, descriptors: list[int]) -> None:
        self._poll = poll
        self._control = control
        self._descriptors = descriptors
        self._err = descriptors[1]
        for descriptor in descriptors:
            os.set_blocking(descriptor, False)
            poll.register(descriptor, select.POLLIN)
        self._tape: TapeWriter | None = None
        self._can_keep = self._can_show = True
        self._terminal: PseudoTerminal | None = None
        self._followed = -1

    def show(self, terminal: Terminal, data: Channel) -> None:
        """Have the next call see a terminal as the caller's, where there can be one; else it prints to the pipes."""
        if self._can_show:
            self._can_show = False
            with contextlib.suppress(OSError, AttributeError, ImportError, ChannelClosed):
                self._open_terminal(data)
        if self._terminal is not None:
            self._followed = terminal.descriptor
            self._terminal.follow(self._followed)

    def _open_terminal(self, data: Channel) -> None:
        from atoll.host.pseudo_terminal import PseudoTerminal  # for callers on a terminal

        made = PseudoTerminal(os.fstat(self._err).st_uid)
        self._descriptors.append(made.descriptor)
        inner = made.take_inner()
        try:
            data.send({"type": "terminal"}, descriptors=[inner])
        finally:
            os.close(inner)
        self._poll.register(made.descriptor, select.POLLIN)
        self._terminal = made

    def read(self, descriptor: int, output: Output, call: str) -> None:
        """Pass on the present content of one descriptor, which the poll has named."""
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # no process has the terminal any more
            data = b""
        if not data:
            self._poll.unregister(descriptor)
            return
        if self._terminal is not None and descriptor == self._terminal.descriptor:
            self._terminal.follow(self._followed)  # a bar that is drawn on and on fits a window that has changed
        self._keep(data, call)
        (output.stderr if descriptor == self._err else output.stdout)(data)

    def drain(self, output: Output, call: str) -> None:
        """Pass on all that has come; a worker that prints on and on is not waited for."""
        for _ in range(DRAIN_ROUNDS):
            ready = [descriptor for descriptor, _ in self._poll.poll(0) if descriptor in self._descriptors]
            if not ready:
                return
            for descriptor in ready:
                self.read(descriptor, output, call)

    def _keep(self, data: bytes, call: str) -> None:
        """Keep the end of a call's output in memory that the daemon reads, for `atoll logs CALL`."""
        if self._tape is None and self._can_keep:
            self._can_keep = False
            with contextlib.suppress(OSError, AttributeError, ChannelClosed):
                tape = TapeWriter()
                try:
                    self._control.send({"type": "tape"}, descriptors=[tape.descriptor])
                    self._tape = tape
                finally:
                    tape.close()
        if self._tape is not None:
            self._tape.write(call, data)

    def end_call(self) -> None:
        """Mark the end of the call's output."""
        if self._tape is not None:
            self._tape.end()
