"""A link to a worker of this machine: its own descriptors, past the daemon, and the connection that carries the lease.

The daemon hands over a data socket to the worker and its two output pipes. The end of the data socket without `revoked`
means that the worker died, and the daemon gives the reason on the connection that carries the lease.
"""

from __future__ import annotations

import contextlib
import os
import select
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from atoll import errors
from atoll.host.contract import Output
from atoll.host.worker_output import WorkerOutput
from atoll.wire.channel import Channel
from atoll.wire.frames import Header
from atoll.wire.payload_channel import PayloadChannel, free_bytes

if TYPE_CHECKING:
    from atoll.model.terminal import Terminal


class LocalLink:
    """See `link.Link`.

    Args:
        control: the connection to the daemon that carries the lease.
        descriptors: data socket, stdout and stderr of the worker; owned from here on.
    """

    def __init__(self, control: Channel, descriptors: list[int]) -> None:
        import socket

        self._control = control
        self._data = data = PayloadChannel(socket.socket(fileno=descriptors[0]), free_bytes=free_bytes)
        self.messages = data.messages
        self.send_many = data.send_many
        self._number = data.fileno()
        self._poll = select.poll()
        self._poll.register(data, select.POLLIN)  # first: see `look`
        outputs = descriptors[1:]
        self._output = WorkerOutput(self._poll, control, outputs)
        self.drain = self._output.drain
        self.end_call = self._output.end_call
        self.drained = False
        self._close = weakref.finalize(self, _close, data, control, outputs)
        self._close.atexit = False  # the end of the process closes them

    @property
    def usable(self) -> bool:
        """See `Link.usable`."""
        if not self._close.alive:
            return False
        ready = self._poll.poll(0)
        return not ready or all(descriptor != self._number for descriptor, _ in ready)

    @property
    def spent(self) -> bool:
        """See `Link.spent`."""
        return not self.usable

    def send(self, header: Header, buffers: Sequence[Any] = ()) -> None:
        """See `Link.send`."""
        self._data.send(header, buffers)

    def show(self, terminal: Terminal) -> None:
        """See `Link.show`."""
        self._output.show(terminal, self._data)

    def look(self, milliseconds: float | None, output: Output, call: str) -> None:
        """See `Link.look`."""
        ready = self._poll.poll(milliseconds)
        # The kernel looks at the descriptors in their order of registration: pipes that it finds empty after it found
        # the answer hold nothing that was printed before the answer.
        self.drained = len(ready) == 1
        for descriptor, _ in ready:
            if descriptor == self._number:
                self._data.fill()
            else:
                self.drained = False
                self._output.read(descriptor, output, call)

    def hear(self, seconds: float) -> dict[str, Any] | None:
        """See `Link.hear`."""
        return _next(self._control, 1000 * seconds)

    def tell(self, header: dict[str, Any]) -> None:
        """See `Link.tell`."""
        self._control.send(header)

    @property
    def whole(self) -> bool:
        """See `Link.whole`."""
        return True

    def lost(self) -> errors.AtollError:
        """See `Link.lost`."""
        return errors.HostUnreachable(
            "the daemon ended while the call was running", hint="call again: a new daemon is started"
        )

    def close(self) -> None:
        """Give the worker back: an idle one stays warm, a busy one is asked to end."""
        self._close()

    forget = close  # these copies alone


class LocalAsking:
    """See `link.Asking`; over a connection to the daemon."""

    def __init__(self, control: Channel) -> None:
        self._control = control

    def receive(self, milliseconds: float | None) -> dict[str, Any] | None:
        """See `Asking.receive`."""
        return _next(self._control, milliseconds)

    def withdraw(self, *, for_another: bool) -> None:
        """See `Asking.withdraw`."""
        if for_another:
            self._control.send({"type": "withdrawn"})
        self._control.socket.shutdown(2)

    def grant(self) -> LocalLink:
        """See `Asking.grant`."""
        return LocalLink(self._control, self._control.take_descriptors(3))

    def close(self) -> None:
        """See `Asking.close`."""
        self._control.close()


def _next(control: Channel, milliseconds: float | None) -> dict[str, Any] | None:
    """Return the next header; None when the time is over."""
    if not control.pending:
        poll = select.poll()  # `select` cannot take descriptors above 1023
        poll.register(control, select.POLLIN)
        while not control.pending:
            if not poll.poll(milliseconds):
                return None
            control.fill()
    return control.receive().header


def _close(data: Channel, control: Channel, outputs: list[int]) -> None:
    data.close()
    control.close()
    for descriptor in outputs:
        with contextlib.suppress(OSError):
            os.close(descriptor)
