"""The same channel for an event loop: frames and descriptors over a non-blocking Unix socket."""

from __future__ import annotations

import array
import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any

from atoll.wire.channel import Channel, ChannelClosed, Socket
from atoll.wire.frames import Message, encode

CONTROL_BUFFER_BYTES = 1 << 20
"""The daemon's channels carry no payloads: what is larger is refused before it is allocated."""


class AsyncChannel:
    """One end of a stream of frames, served by the running event loop; one task receives, any may send."""

    def __init__(self, sock: Socket, max_buffer_bytes: int = CONTROL_BUFFER_BYTES) -> None:
        sock.setblocking(False)
        self._channel = Channel(sock, max_buffer_bytes)
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()
        self._closed = False
        self._waiting: dict[asyncio.Future[None], Callable[[int], bool]] = {}

    async def receive(self) -> Message:
        """Wait for the next message.

        Raises:
            ChannelClosed: the stream has ended, or was closed here.
            FrameError: the peer sent something else than frames.
        """
        while not self._channel.pending:
            if self._closed:
                raise ChannelClosed("the channel was closed")
            try:
                self._channel.fill()
            except BlockingIOError:
                await self._wait(self._loop.add_reader, self._loop.remove_reader)
        return self._channel.receive()

    async def _wait(self, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
        """Wait until the socket can be read or written.

        `close` ends the wait. It takes the descriptor off the loop itself, before the number can mean another file.
        """
        descriptor = self._channel.fileno()
        ready: asyncio.Future[None] = self._loop.create_future()
        self._waiting[ready] = remove
        add(descriptor, _wake, ready)
        try:
            await ready
        finally:
            if self._waiting.pop(ready, None) is not None:
                remove(descriptor)

    async def send(self, header: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send one message, waiting while the peer does not read.

        Raises:
            ChannelClosed: the peer is gone.
        """
        async with self._sending:
            if self._closed:
                raise ChannelClosed("the channel was closed")
            data = memoryview(b"".join(encode(header)))
            try:
                while data:
                    try:
                        data = data[self._send_some(data, descriptors) :]
                        descriptors = ()
                    except BlockingIOError:
                        await self._wait(self._loop.add_writer, self._loop.remove_writer)
            except (BrokenPipeError, ConnectionResetError) as error:
                raise ChannelClosed("the peer has closed the channel") from error

    def post(self, header: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send one small message at once.

        Raises:
            ChannelClosed: the peer is gone, or has not read for so long that the message does not fit.
        """
        data = memoryview(b"".join(encode(header)))
        try:
            if self._closed or self._send_some(data, descriptors) != len(data):
                raise ChannelClosed("the peer does not read")
        except (BrokenPipeError, ConnectionResetError, BlockingIOError) as error:
            raise ChannelClosed("the peer does not take messages") from error

    def _send_some(self, data: memoryview, descriptors: Sequence[int]) -> int:
        if not descriptors:
            return self._channel.socket.send(data)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        return self._channel.socket.sendmsg([data], [rights])

    def learn_sender(self) -> None:
        """See `Channel.learn_sender`."""
        self._channel.learn_sender()

    @property
    def sender_pid(self) -> int:
        """See `Channel.sender_pid`."""
        return self._channel.sender_pid

    def take_descriptors(self, count: int) -> list[int]:
        """Return the oldest `count` received descriptors; the caller owns them."""
        return self._channel.take_descriptors(count)

    def peer_uid(self) -> int:
        """Return the uid of the process that made the other end, as the kernel knows it."""
        data = self._channel.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return array.array("i", data)[1]

    def close(self) -> None:
        """Close the channel; a task that waits in `receive` gets `ChannelClosed`."""
        if self._closed:
            return
        self._closed = True
        waiting, self._waiting = self._waiting, {}
        for future, remove in waiting.items():
            remove(self._channel.fileno())
            if not future.done():
                future.set_exception(ChannelClosed("the channel was closed"))
        self._channel.close()


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
