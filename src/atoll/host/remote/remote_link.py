"""A link to a worker of a server: one line, whose channels are the worker's socket and output."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from atoll import errors
from atoll.host.contract import Output
from atoll.host.remote.line_client import LineClient
from atoll.host.remote.server import Server
from atoll.wire import repeats
from atoll.wire.channel import ChannelClosed
from atoll.wire.frames import MAX_BUFFER_BYTES, Decoder, FrameError, Header, Message, encode
from atoll.wire.line import STDOUT
from atoll.wire.payload_channel import free_bytes

if TYPE_CHECKING:
    from atoll.model.terminal import Terminal
    from atoll.wire.call_protocol import Frame

_sent = repeats.Sent()
RESTED_SECONDS = 5.0
"""Seconds of rest after which a connection may have been lost without a sign: it is tried before its next call."""
ANSWER_SECONDS = 3.0
"""Seconds for that trial."""


class RemoteLink:
    """See `link.Link` and `link.Asking`; the line that asks for the worker becomes the link.

    What is printed is kept with the number of the message that comes after it, so that it reaches its own call.

    Args:
        server: see `LineClient`.
        opening: the message that asks.
    """

    def __init__(self, server: Server, opening: dict[str, Any]) -> None:
        self.drained = False
        self._decoder = decoder = Decoder(MAX_BUFFER_BYTES, free_bytes=free_bytes)
        self.messages: list[Message] = decoder.messages
        self._decoded = 0
        self._printed: deque[tuple[int, int, bytes]] = deque()
        self._fault: FrameError | None = None
        self._call = ""
        self._rests = False
        self._followed = -1
        self._size: tuple[int, ...] = ()
        self._keeps = 0
        self._line = LineClient(
            server, opening, self._take, space=decoder.space, wrote=self._wrote, printed=self._keep_printed
        )

    # --- what the line brings ----------------------------------------------------------------------------------------

    def _take(self, piece: Any) -> None:
        decoder = self._decoder
        view = piece if type(piece) is memoryview else memoryview(piece)
        while view.nbytes and self._fault is None:
            with decoder.space() as space:
                count = min(view.nbytes, space.nbytes)
                space[:count] = view[:count]
            self._wrote(count)
            view = view[count:]

    def _wrote(self, count: int) -> None:
        before = len(self.messages)
        try:
            self._decoder.wrote(count)
        except FrameError as error:
            self._fault = error
        self._decoded += len(self.messages) - before

    def _keep_printed(self, channel: int, data: bytes) -> None:
        self._printed.append((self._decoded, channel, data))

    # --- Asking ------------------------------------------------------------------------------------------------------

    def receive(self, milliseconds: float | None) -> dict[str, Any] | None:
        """See `Asking.receive`."""
        found = self._line.header(milliseconds)
        if found is not None and type(keeps := found.get("keeps")) is int:
            self._keeps = keeps
        return found

    def withdraw(self, *, for_another: bool) -> None:
        """See `Asking.withdraw`."""
        self._line.withdraw({"type": "withdrawn"} if for_another else None)

    def grant(self) -> RemoteLink:
        """See `Asking.grant`."""
        return self

    # --- Link --------------------------------------------------------------------------------------------------------

    @property
    def spent(self) -> bool:
        """See `Link.spent`."""
        line = self._line
        with contextlib.suppress(ChannelClosed):
            while line.pump(0, mends=False):
                pass
        return line.closed or line.over or line.data_over or bool(self.messages or line.control)

    @property
    def usable(self) -> bool:
        """See `Link.usable`; a connection that was lost is mended."""
        line = self._line
        try:
            while line.pump(0):
                pass
        except ChannelClosed:
            return False
        if line.closed or line.over or line.data_over or self.messages or self._fault or line.control:
            return False
        rested, self._rests = self._rests, False
        if rested and time.monotonic() - line.heard > RESTED_SECONDS:
            return line.alive(ANSWER_SECONDS) and self.usable
        return True

    def send(self, header: Header, buffers: Sequence[Any] = ()) -> None:
        """See `Link.send`."""
        pieces = encode(header, buffers)
        if self._keeps and len(pieces) > 1:
            pieces = self._name(pieces)
        self._line.send(pieces)

    def _name(self, pieces: list[Any]) -> list[Any]:
        """Return the pieces of a message without the bytes that the node has."""
        pieces = repeats.joined(pieces)
        named = repeats.find(pieces, self._keeps, _sent)
        if not named:
            return pieces
        kept: set[str] = set()
        if asked := [[one.digest, one.size, one.hint] for one in named if one.digest]:
            kept.update(self._ask({"type": "have", "pieces": asked}).get("kept", ()))
        return repeats.marked(pieces, named, kept)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the node's answer about pieces; raises `ChannelClosed` where the worker has gone."""
        line = self._line
        line.send([question])
        while not line.data_over:
            for found in line.control:
                if found["type"] == "has":
                    line.control.remove(found)
                    return found
            line.pump(None)
        raise ChannelClosed("the worker has closed its channel")  # what would be sent is read by nobody

    def send_many(self, messages: Sequence[Frame]) -> None:
        """See `Link.send_many`."""
        self._line.send([b"".join(piece for header, buffers in messages for piece in encode(header, buffers))])

    def show(self, terminal: Terminal) -> None:
        """See `Link.show`; the server opens the terminal, of the size of the caller's."""
        self._followed = terminal.descriptor
        self._follow()

    def _follow(self) -> None:
        """Give the server's terminal the size of the caller's."""
        with contextlib.suppress(OSError, ValueError, AttributeError, ChannelClosed):
            found = os.get_terminal_size(self._followed)
            size = (found.lines, found.columns)
            if size != self._size:
                self._size = size
                self._line.tell({"type": "terminal", "size": size})

    def look(self, milliseconds: float | None, output: Output, call: str) -> None:
        """See `Link.look`."""
        self._call = call
        line = self._line
        if not line.data_over and self._fault is None:
            line.pump(milliseconds)
        if self._printed:
            self._pass_on(output, self._decoded - len(self.messages) + 1)
        if self._fault is not None:
            raise self._fault
        if line.data_over and not self.messages:
            raise ChannelClosed("the worker has closed its channel")

    def drain(self, output: Output, call: str) -> None:
        """See `Link.drain`; of what came before the answer that was taken, and all where nothing follows."""
        self._call = call
        if self._printed:
            ended = self._line.data_over or self._line.over
            self._pass_on(output, self._decoded + 1 if ended else self._decoded - len(self.messages))

    def _pass_on(self, output: Output, before: int) -> None:
        printed = self._printed
        if self._followed >= 0:  # a bar that is drawn on and on fits a window that has changed
            self._follow()
        while printed and printed[0][0] < before:
            _, channel, data = printed.popleft()
            (output.stdout if channel == STDOUT else output.stderr)(data)

    def end_call(self) -> None:
        """See `Link.end_call`; the server marks it."""
        self._line.settle()
        self._rests = True

    def hear(self, seconds: float) -> dict[str, Any] | None:
        """See `Link.hear`."""
        return self._line.header(1000 * seconds)

    def tell(self, header: dict[str, Any]) -> None:
        """See `Link.tell`."""
        self._line.tell(header)

    @property
    def whole(self) -> bool:
        """See `Link.whole`; a line that was cut off may lack the answer."""
        return self._line.whole

    def lost(self) -> errors.AtollError:
        """See `Link.lost`."""
        found = self._line.lost()
        if isinstance(found, errors.NotAuthorized):
            return errors.NotAuthorized(
                f"{found.message}; call {self._call} has ended", hint=found.hint, **found.details, call=self._call
            )
        if self._line.reason is not None:
            return found
        return type(found)(
            f"{found.message}: call {self._call} may have run, and is not made again by itself",
            hint=f"`atoll calls show {self._call}` says what became of it; call again",
            call=self._call,
        )

    def close(self) -> None:
        """See `Link.close`."""
        self._line.close()

    def forget(self) -> None:
        """See `Link.forget`."""
        self._line.forget()
