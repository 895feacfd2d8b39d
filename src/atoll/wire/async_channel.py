"""The same channel for an event loop: frames and descriptors over a non-blocking Unix socket.

No call waits in the kernel. Non-blocking mode belongs to the open socket, which the peer may share and change, so each
call passes the flag again.

Unsent bytes wait in a queue of bounded size, in order, with their descriptors. A peer whose queue is full counts as
gone.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

from atoll.wire.channel import Channel, ChannelClosed, Socket
from atoll.wire.frames import Message, encode

CONTROL_BUFFER_BYTES = 1 << 20
"""The daemon's channels carry no payloads: larger messages are refused before allocation."""

QUEUE_BYTES = 16 << 20
"""The most that may wait for a peer that does not read."""


class AsyncChannel:
    """One end of a stream of frames, served by the running event loop; one task receives, any may send."""

    def __init__(self, sock: Socket, max_buffer_bytes: int = CONTROL_BUFFER_BYTES) -> None:
        sock.setblocking(False)
        self._channel = Channel(sock, max_buffer_bytes)
        self._channel.receive_flags |= socket.MSG_DONTWAIT
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._readable: asyncio.Future[None] | None = None
        self._queue: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._queued_bytes = 0
        self._sent: list[asyncio.Future[None]] = []

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
                await self._wait_readable()
            except ChannelClosed:
                raise
            except OSError as error:  # no socket that frames could come from, such as one that is not connected
                raise ChannelClosed("the peer has closed the channel") from error
        return self._channel.receive()

    async def _wait_readable(self) -> None:
        """Wait for bytes; `close` ends the wait, and takes the descriptor off the loop before its number is free."""
        descriptor = self._channel.fileno()
        ready: asyncio.Future[None] = self._loop.create_future()
        self._readable = ready
        self._loop.add_reader(descriptor, _wake, ready)
        try:
            await ready
        finally:
            if self._readable is ready:
                self._readable = None
                self._loop.remove_reader(descriptor)

    async def send(self, header: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send one message, and wait until the peer has room for all of it.

        Raises:
            ChannelClosed: the peer is gone.
        """
        self.post(header, descriptors)
        if self._queue:
            sent: asyncio.Future[None] = self._loop.create_future()
            self._sent.append(sent)
            await sent

    def post(self, header: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send one message without waiting; the rest is queued, with duplicates of its descriptors.

        Raises:
            ChannelClosed: the peer is gone, or has not read for so long that the queue is full.
        """
        if self._closed:
            raise ChannelClosed("the channel was closed")
        data = memoryview(b"".join(encode(header)))
        if not self._queue:
            try:
                data = data[self._write(data, descriptors) :]
                descriptors = ()
            except BlockingIOError:
                pass
            except OSError as error:
                raise ChannelClosed("the peer has closed the channel") from error
            if not data:
                return
        if self._queued_bytes + len(data) > QUEUE_BYTES:
            raise ChannelClosed("the peer does not read")
        if not self._queue:
            self._loop.add_writer(self._channel.fileno(), self._flush)
        self._queue.append((data, tuple(os.dup(descriptor) for descriptor in descriptors)))
        self._queued_bytes += len(data)

    def _write(self, data: memoryview, descriptors: Sequence[int]) -> int:
        if not descriptors:
            return self._channel.socket.send(data, socket.MSG_DONTWAIT)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        return self._channel.socket.sendmsg([data], [rights], socket.MSG_DONTWAIT)

    def _flush(self) -> None:
        """Send queued bytes, as far as the peer takes them."""
        failed: ChannelClosed | None = None
        while self._queue:
            data, descriptors = self._queue[0]
            try:
                count = self._write(data, descriptors)
            except BlockingIOError:
                return
            except OSError:
                failed = ChannelClosed("the peer has closed the channel")
                break
            _close_all(descriptors)
            self._queued_bytes -= count
            self._queue[0] = data[count:], ()
            if count == len(data):
                self._queue.popleft()
        self._empty_queue(failed)

    def _empty_queue(self, failed: ChannelClosed | None) -> None:
        """End the writing, done or given up, and wake its waiters."""
        self._loop.remove_writer(self._channel.fileno())
        for _, descriptors in self._queue:
            _close_all(descriptors)
        self._queue.clear()
        self._queued_bytes = 0
        sent, self._sent = self._sent, []
        for future in sent:
            if not future.done():
                if failed is None:
                    future.set_result(None)
                else:
                    future.set_exception(failed)

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

    def bound_descriptors(self, count: int) -> None:
        """Refuse a peer that sends more than `count` descriptors before the messages that have a use for them."""
        self._channel.max_pending_descriptors = count

    def drop_descriptors(self) -> None:
        """Close the descriptors that came and that no message has a use for, of those that have been received.

        Descriptors may come ahead of the message that they belong to: they stay until that has been taken.
        """
        if self._channel.between_messages:
            self._channel.drop_descriptors()

    def peer_uid(self) -> int:
        """Return the uid of the process that made the other end, as the kernel knows it."""
        data = self._channel.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return array.array("i", data)[1]

    def close(self) -> None:
        """Close the channel; a task that waits for it gets `ChannelClosed`."""
        if self._closed:
            return
        self._closed = True
        closed = ChannelClosed("the channel was closed")
        if self._queue:
            self._empty_queue(closed)
        readable, self._readable = self._readable, None
        if readable is not None:
            self._loop.remove_reader(self._channel.fileno())
            if not readable.done():
                readable.set_exception(closed)
        self._channel.close()


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _close_all(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
