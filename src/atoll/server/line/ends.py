"""The ends that a session relays to: a worker's socket with its output, a peer's or port's socket, or a command's streams.

Payloads are not copied, and nothing is unpickled: of a worker's stream, headers are followed for the records of calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, Protocol

from atoll.server.line.frames import Follower, answers, call_of
from atoll.server.line.outputs import TERMINAL, Outputs
from atoll.server.line.sender import Sender
from atoll.server.line.socket_end import SocketEnd
from atoll.server.line.streams import Input
from atoll.server.line.terms import COMMANDS
from atoll.wire.frames import encode
from atoll.wire.line import DATA, STDERR, STDOUT

FREE_FRAMES = 8
"""Frames of one piece whose price is in that of the piece: a call has one each way."""


class Owner(Protocol):
    """The session, as its ends call back."""

    kind: str

    def send(self, channel: int, piece: Any) -> None:
        """Send a piece to the client."""

    def post(self, header: dict[str, Any], descriptors: list[int] | None = None) -> None:
        """Send the node a message."""

    def taken(self) -> None:
        """Note that all bytes of the client have been taken."""

    def data_over(self, *, lost: bool) -> None:
        """Note that the socket brings nothing more; `lost` if not in order."""


class Ends:
    """The ends of one session, none at first.

    Args:
        owner: the session.
        pay: takes the price of frames that were followed; returns the seconds to wait before the next (`paces`).
    """

    def __init__(self, owner: Owner, pay: Callable[[int], float]) -> None:
        self._owner = owner
        self._pay = pay
        self._held = False
        self._resting: asyncio.TimerHandle | None = None
        self.data: Sender | None = None
        self.outputs: Outputs | None = None
        self.up, self.down = Follower(), Follower()
        self.calls = 0
        """Calls that were passed on."""

    def connect(self, data: int, pipes: dict[int, int]) -> None:
        """Relay a socket, and the pipes of a worker."""
        owner = self._owner
        sock = socket.socket(fileno=data)
        halves = owner.kind == "dial"
        self.data = SocketEnd(sock, self._from_socket, self._socket_over, owner.taken, halves=halves)
        if owner.kind == "lease":
            self.outputs = Outputs(pipes, owner.send, self._give_tape)

    def run(self, stdin: int, outputs: dict[int, int]) -> None:
        """Relay the streams of a command; no stdin if it is -1."""
        owner = self._owner
        if stdin >= 0:
            self.data = Input(stdin, owner.taken, terminal=TERMINAL in outputs)
        self.outputs = Outputs(outputs, owner.send, None)

    def restore(self, data: int, pipes: dict[int, int], unsent: list[bytes]) -> None:
        """Go on with the ends of another process.

        Args:
            data: the socket, or the end that writes to stdin; -1 where it is closed.
            unsent: bytes of the client that were not taken.
        """
        if self._owner.kind in COMMANDS:
            self.run(data, pipes)
        elif data >= 0:
            self.connect(data, pipes)
        elif self._owner.kind == "lease":
            self.outputs = Outputs(pipes, self._owner.send, self._give_tape)
        if self.data is not None:
            for piece in unsent:
                self.data.write(piece)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the client that nobody has taken."""
        return self.data.unsent_bytes if self.data is not None else 0

    def write(self, piece: Any) -> None:
        """Pass bytes of the client on."""
        assert self.data is not None
        if self.outputs is not None and self._owner.kind not in COMMANDS:
            headers = self.up.feed(piece)
            self._pay(max(len(headers) - FREE_FRAMES, 0))  # the connection waits
            for header in headers:
                if call := call_of(header):
                    self.calls += 1
                    self.outputs.begun(call)
        self.data.write(piece)

    def show(self, size: tuple[int, int] | None) -> None:
        """Give the worker a terminal, or the terminal a size; a call without one prints to its pipes."""
        if size is None or self.outputs is None:
            return
        with contextlib.suppress(OSError):
            inner = self.outputs.show(*size)
            if inner >= 0:
                assert isinstance(self.data, SocketEnd)
                self.data.hand(b"".join(encode({"type": "terminal"})), inner)

    def _give_tape(self, descriptor: int) -> None:
        self._owner.post({"type": "tape"}, [descriptor])

    def _from_socket(self, data: bytes) -> None:
        outputs = self.outputs
        if outputs is not None:
            outputs.drain()
            headers = self.down.feed(data)
            for header in headers:
                if answers(header):
                    outputs.answered()
            if (seconds := self._pay(max(len(headers) - FREE_FRAMES, 0))) and self._resting is None:
                self._resting = asyncio.get_running_loop().call_later(seconds, self._rested)
                self._read_or_hold()
        self._owner.send(DATA, data)

    def _rested(self) -> None:
        self._resting = None
        self._read_or_hold()

    def _socket_over(self) -> None:
        assert isinstance(self.data, SocketEnd)
        self.drain()
        self._owner.data_over(lost=self.data.lost)

    def drain(self) -> None:
        """Send the client all that has been printed."""
        if self.outputs is not None:
            self.outputs.drain()

    def close_output(self, channel: Any) -> None:
        """Let a command that prints on find that its reader has gone."""
        if self.outputs is not None and self._owner.kind in COMMANDS and channel in (STDOUT, STDERR):
            self.outputs.end(channel)

    def hold(self, *, hold: bool) -> None:
        """Stop reading, or go on, unless frames came faster than the user's pace."""
        self._held = hold
        self._read_or_hold()

    def _read_or_hold(self) -> None:
        hold = self._held or self._resting is not None
        if self.data is not None:
            self.data.hold(hold=hold)
        if self.outputs is not None:
            self.outputs.hold(hold=hold)

    def freeze(self) -> None:
        """Read and write no more; sockets and unsent bytes stay."""
        self._stop_resting()
        if self.data is not None:
            self.data.freeze()

    def _stop_resting(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None

    def close(self) -> None:
        """Close them."""
        self._stop_resting()
        if self.data is not None:
            self.data.close()
        if self.outputs is not None:
            self.outputs.close()
