"""One line's session: the server's end of a line, and the connection of the node that it is relayed to.

Theory of operation. A session outlives its WebSockets. Towards the node it is an ordinary client that asks in the name
of a user: it sends the line's first header as its opening message, and gets for a lease the worker's socket and pipes. For
a shell or command it gives the node one end of each stream, and keeps the other. Towards the client it keeps what is not
acknowledged (`wire.line`). Past the window it stops reading worker and pipes, so that the function waits; it acknowledges
nothing while the worker does not take what has come, so that the client waits. Nothing is unpickled, nothing copied.

A WebSocket that is lost without `close` leaves the session to its grace; then the lease ends as with a client that died.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any

from atoll import errors
from atoll.server.line import terms
from atoll.server.line.beside import Spool, read_size, send_file, take_certificates
from atoll.server.line.early import Early
from atoll.server.line.ends import Ends
from atoll.server.line.failures import failure_of
from atoll.server.line.keeping import HEADERS, Keeping
from atoll.server.line.shares import Bounds
from atoll.server.line.socket_end import SocketEnd
from atoll.server.line.streams import open_streams
from atoll.server.node import Node
from atoll.server.principal import Principal
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import ChannelClosed
from atoll.wire.frames import FrameError, Message
from atoll.wire.line import DATA, Line
from atoll.wire.websocket import CLOSE, CONTROL, PING, LineError

OnEnd = Callable[["Session"], None]


class Session:
    """The server's end of one line.

    Args:
        id: a secret that the client resumes by.
        principal: the user in whose name it asks, with the key that the line was opened with.
        on_end: is told once, when the session is over.
        bounds: of its user's bytes and messages.
    """

    def __init__(self, id: str, principal: Principal, node: Node, on_end: OnEnd, bounds: Bounds) -> None:  # noqa: A002 - as in the header
        self.id = id
        self.principal = principal
        self.line = Line(client=False, control_parts=terms.MOST_PARTS)
        self.kind = ""
        self.control: AsyncChannel | None = None
        self.ends = Ends(self, lambda count: bounds.paces.pay(principal.user, count))
        self.bytes_up = self.bytes_down = 0
        self._node, self._on_end, self._suffix = node, on_end, bounds.suffix
        self.keeping = Keeping(bounds.kept, principal, self.ends, self._say, self.acknowledge)
        self._loop = asyncio.get_running_loop()
        self._wire: terms.Wire | None = None
        self._room: asyncio.Event | None = None
        self.early = Early(bounds.shares, principal.user)
        self.input_over = False
        """The client sends no more data."""
        self._congested = self._held = self.control_over = self.over = self.ended = self.expired = False
        self._timer: asyncio.TimerHandle | None = None
        self._last: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.busy = False
        """A step is half done that cannot go on in another process."""
        self.unread = 0
        """Bytes of its connection that wait for the user's pace."""

    # --- the client's side -------------------------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """True while there is a connection."""
        return self._wire is not None

    def attach(self, wire: terms.Wire, count: int | None) -> None:
        """Go on over a new connection; an older one is cut off.

        Args:
            count: the bytes that the client has received; None where it has all, or they are on their way.

        Raises:
            LineError: it cannot have.
        """
        first = () if count is None else self.line.resume(count)
        old, self._wire = self._wire, wire
        if old is not None:
            old.end(0)
        self._stop_timer()
        self._congested = False
        for pieces in first:
            wire.write(pieces)
        self.acknowledge()
        self._balance()
        if self.over:
            self._timer = self._loop.call_later(terms.OVER_SECONDS, self.end)

    def detach(self, wire: terms.Wire) -> None:
        """Note that a connection was lost without `close`."""
        if self._wire is not wire or self.ended:
            return
        self._wire = None
        self._congested = False
        self._stop_timer()
        if self.over and not self.line.unacknowledged:
            self.end()
            return
        self._timer = self._loop.call_later(terms.GRACE_SECONDS, self._expire)
        self._balance()

    def congest(self, *, congested: bool) -> None:
        """Note that the connection takes no more at present, or does again."""
        self._congested = congested
        self._balance()

    def feed(self, wire: terms.Wire, data: bytes) -> None:
        """Take bytes of the connection.

        Raises:
            LineError: the client does not speak the line's protocol.
        """
        if wire is not self._wire:
            return
        self.bytes_up += len(data)
        for kind, value in self.line.feed(data):
            if kind == DATA:
                self.take_data(value)
            elif kind == CONTROL:
                self.take_header(value)
            elif kind == PING:
                wire.write([self.line.pong(value)])
            elif kind == CLOSE:
                wire.end(value if 1000 <= value < 1004 else 1000)
                self.end()
                return
            else:
                raise LineError("a client has nothing to send on this channel")
        self.early.gather(self.line.gathering_bytes)
        self.acknowledge(terms.UNACKNOWLEDGED_BYTES)
        if self._held:
            self._balance()

    def acknowledge(self, least: int = 0) -> None:
        """Acknowledge bytes that the worker takes, if there are more than `least`."""
        waiting = self.ends.waiting_bytes + self.early.size + self.keeping.behind_bytes
        if self._wire is not None and waiting <= terms.BUSY_BYTES and (text := self.line.acknowledgement(least)):
            self._wire.write([text])

    def take_header(self, header: dict[str, Any]) -> None:
        size = header.pop("bytes", 0)
        if self.kind:
            if header["type"] == "terminal":
                self.ends.show(read_size(header.get("size")))
            elif header["type"] == "closed" and self.kind in terms.HALVES:
                self._close_half(header.get("channel", DATA))
            elif header["type"] in terms.LATER and self.kind == "lease":
                self.post({"type": header["type"]})
            elif header["type"] in HEADERS and self.kind == "lease" and self.ends.data is not None:
                self.keeping.take(header)
            return
        self.kind = kind = header["type"]
        self.line.control_bytes = terms.LATER_BYTES
        if kind not in terms.KINDS:
            self.kind = "refused"
            self._fail(errors.ProtocolMismatch(f"a line cannot carry `{kind[:40]}`", hint="upgrade the server"))
            return
        if size and kind != "request":
            raise LineError("a request alone has bytes beside it")
        if size:
            self.early.spool = Spool(header, size)
        else:
            self.task = self._loop.create_task(self._run(header, []))

    def _close_half(self, channel: Any) -> None:
        """Note that the client sends no more, or takes no more of an output."""
        if channel != DATA:
            self.ends.close_output(channel)
            return
        self.input_over = True
        if self.ends.data is not None:
            self.ends.data.finish()

    def take_data(self, piece: Any) -> None:
        if self.ends.data is not None:
            self.keeping.pass_on(piece)
        elif self.over or self.input_over:
            return
        elif not self.kind:
            raise LineError("a line begins with a header")
        else:
            try:
                spool = self.early.take(piece)
            except errors.ResourcesUnavailable as error:
                self._fail(error)
                return
            if spool is not None:
                self.task = self._loop.create_task(self._run(spool.header, [spool.seal()]))

    # --- the node's side ---------------------------------------------------------------------------------------------

    async def _run(self, opening: dict[str, Any], descriptors: list[int]) -> None:
        """Ask the node, and pass its messages on until there are no more."""
        self.busy = True
        descriptors = [*take_certificates(opening), *descriptors]
        try:
            try:
                if self.kind in terms.COMMANDS:
                    streams = open_streams(opening)
                    descriptors += streams.theirs
                    self.relay(lambda: self.ends.run(streams.input, streams.outputs))
                self.control = await self._node.connect(self.principal, opening, descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            self.busy = False
            await self.listen()
        except Exception as error:
            self._fail(failure_of(error))

    async def listen(self) -> None:
        """Pass the node's messages on until there are no more."""
        control = self.control
        assert control is not None
        try:
            while True:
                await self._handle(await control.receive())
        except (ChannelClosed, FrameError):
            pass
        control.close()
        self.control_over = True
        if self.ends.data is None or self.ends.data.closed or self.kind in terms.COMMANDS:
            self._finish()
        elif self.kind != "dial":  # the worker's last bytes may still come
            self._last = self._loop.call_later(terms.LAST_SECONDS, self._finish)

    async def _handle(self, message: Message) -> None:
        header, control = message.header, self.control
        assert control is not None
        if message.type == "granted" and (count := terms.KINDS.get(self.kind, 0)):
            data, *pipes = control.take_descriptors(count)
            header = {**header, "worker": f"{header['worker']}{self._suffix}"} if "worker" in header else header
            self._say(self.keeping.offer(header) if self.kind == "lease" else header)
            self.relay(lambda: self.ends.connect(data, dict(enumerate(pipes, 1))))
        elif message.type == "answer" and header.get("descriptors"):
            (descriptor,) = control.take_descriptors(1)
            self.busy = True
            await send_file(header, descriptor, self._say, lambda piece: self.send(DATA, piece), self._wait_room)
            self.busy = False
        elif self.expired and message.type == "ended":
            self.end()
        else:
            if self.kind in terms.COMMANDS:  # what it has printed comes before its status
                self.ends.drain()
            self._say(header)

    def relay(self, begin: Callable[[], None]) -> None:
        """Begin to relay to ends, with what has come before them."""
        begin()
        for piece in self.early.release():
            self.ends.write(piece)
        if self.input_over and self.ends.data is not None:
            self.ends.data.finish()
        self._held = True
        self._balance()

    def post(self, header: dict[str, Any], descriptors: list[int] | None = None) -> None:
        """Send the node a message; a node that is gone gets none."""
        if self.control is not None:
            with contextlib.suppress(ChannelClosed):
                self.control.post(header, descriptors or ())

    def taken(self) -> None:
        """See `ends.Owner.taken`."""
        self.keeping.go_on()
        self.acknowledge()
        self._finish_dial()

    def data_over(self, *, lost: bool) -> None:
        """See `ends.Owner.data_over`; a stream that was cut off has no `closed`."""
        if not (lost and self.kind == "dial"):
            self._say({"type": "closed"})
        if self.kind != "dial" and self.control_over:
            self._finish()
        self._finish_dial()

    def _finish_dial(self) -> None:
        """End the line of a port's socket over which nothing goes any more in either direction."""
        data = self.ends.data
        if isinstance(data, SocketEnd) and self.kind == "dial" and (data.closed or (data.read_over and data.written)):
            self._finish()

    # --- to the client -----------------------------------------------------------------------------------------------

    def send(self, channel: int, piece: Any) -> None:
        """Send a piece, or keep it until there is a connection."""
        self.bytes_down += len(piece)
        pieces = self.line.send(channel, piece)
        if self._wire is not None:
            self._wire.write(pieces)
        if self.line.full is not self._held:
            self._balance()

    def _say(self, header: dict[str, Any]) -> None:
        pieces = self.line.say(header)
        if self._wire is not None:
            self._wire.write(pieces)

    def _fail(self, error: errors.AtollError) -> None:
        self._say({"type": "failed", "error": error.to_data()})
        self._finish()

    def _finish(self) -> None:
        """Tell the client that nothing more comes."""
        if self.over or self.ended:
            return
        if self._last is not None:
            self._last.cancel()
        self.ends.drain()
        self._say({"type": "over"})
        self.over = True
        self._close_ends()
        if self._wire is not None:
            self._timer = self._loop.call_later(terms.OVER_SECONDS, self.end)

    def _balance(self) -> None:
        """Read worker and pipes only while the client takes what comes."""
        held = self._congested or self.line.full
        if held == self._held:
            return
        self._held = held
        self.ends.hold(hold=held)
        if self._room is not None and not held:
            self._room.set()

    async def _wait_room(self) -> None:
        if self._held:
            self._room = asyncio.Event()
            await self._room.wait()

    # --- another process ---------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Begin in this process, with the ends that another one had; the client has its grace to come."""
        if self.control is not None:
            self.task = self._loop.create_task(self.listen())
        if self.expired:  # its call is being ended, and its client hears so until it has
            self._timer = self._loop.call_later(terms.EXPIRED_SECONDS, self.end)
        else:
            self._timer = self._loop.call_later(terms.ADOPTED_SECONDS, self._expire)

    # --- the end -----------------------------------------------------------------------------------------------------

    def end(self, code: int = 1000) -> None:
        """Release the lease or peer, and everything that belongs to the line; the client gets the code."""
        if self.ended:
            return
        self.ended = True
        self.stop_timers()
        if self.task is not None:
            self.task.cancel()
        if self.control is not None:
            self.control.close()
        self._close_ends()
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.end(code)
        self._on_end(self)

    def _expire(self) -> None:
        """End a line whose client has not come back; nobody hears so before its call is over, which could be made again."""
        if self.kind != "lease" or self.control_over or self.ends.outputs is None or not self.ends.outputs.calls:
            self.end()
            return
        self.expired = True
        for channel in tuple(self.ends.outputs.pipes):  # a function that prints finds that its reader has gone
            self.ends.outputs.end(channel)
        self.post({"type": "cancel"})
        self._timer = self._loop.call_later(terms.EXPIRED_SECONDS, self.end)

    def stop_timers(self) -> None:
        """Have nothing end by the passing of time."""
        self._stop_timer()
        if self._last is not None:
            self._last.cancel()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _close_ends(self) -> None:
        self.keeping.close()
        self.ends.close()
        self.early.drop()
