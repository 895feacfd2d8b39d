"""The same channel for an event loop: frames and descriptors over a non-blocking Unix socket.

No call waits in the kernel. Non-blocking mode belongs to the open socket, which the peer may share and change, so each
call passes the flag again.

Unsent bytes wait in a queue of bounded size, in order, with their descriptors. A peer whose queue is full counts as
gone. A task that receives leaves the loop to others between two messages that came together, and does not read a peer
that is ahead of its pace.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from atoll.wire.bounds import CLIENT, TOKEN_BYTES, Bounds, Pace
from atoll.wire.channel import Channel, ChannelClosed, Socket
from atoll.wire.frames import Decoder, Message, encode

SCRATCH_BYTES = 4 << 10
"""Memory of an idle channel; the messages in it are decoded in one turn of the loop."""


class _ControlChannel(Channel):
    """A channel without payloads: a message has no buffers, and a bounded header."""

    def __init__(self, sock: Socket, bounds: Bounds) -> None:
        super().__init__(sock)
        self.receive_flags |= socket.MSG_DONTWAIT
        self._decoder = Decoder(
            0, max_header_bytes=bounds.header_bytes, max_header_parts=bounds.header_parts, scratch_bytes=SCRATCH_BYTES
        )

    def reserve(self, take: Callable[[int], bool]) -> None:
        self._decoder.reserve = take


class AsyncChannel:
    """One end of a stream of frames, served by the running event loop; one task receives, any may send.

    Args:
        bounds: of the peer; its pace is `pace`, which peers may share.
    """

    def __init__(self, sock: Socket, bounds: Bounds = CLIENT, pace: Pace | None = None) -> None:
        sock.setblocking(False)
        self._channel = _ControlChannel(sock, bounds)
        self._bounds = bounds
        self._pace = pace if pace is not None or not bounds.rate else bounds.pace()
        self._had_turn = True
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._readable: asyncio.Future[None] | None = None
        self._queue: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._queued_bytes = 0
        self._sent: list[asyncio.Future[None]] = []
        self._release: Callable[[], object] = lambda: None

    async def receive(self) -> Message:
        """Wait for the next message.

        Raises:
            ChannelClosed: the stream has ended, or was closed here.
            FrameError: the peer sent something else than frames.
        """
        pace = self._pace
        while pace is not None and (seconds := pace.seconds()) > 0:
            await self._wait_seconds(seconds)
        while not self._channel.pending:
            if self._closed:
                raise ChannelClosed("the channel was closed")
            try:
                count = self._channel.read()
            except BlockingIOError:
                await self._wait_readable()
                self._had_turn = True
            except ChannelClosed:
                raise
            except OSError as error:  # no socket that frames could come from, such as one that is not connected
                raise ChannelClosed("the peer has closed the channel") from error
            else:
                if pace is not None and count > SCRATCH_BYTES // 2:
                    pace.take(count / TOKEN_BYTES)
        if not self._had_turn:  # a peer that never stops sending leaves the loop to others between messages
            await asyncio.sleep(0)
        self._had_turn = False
        if pace is not None:
            pace.take(1)
        return self._channel.receive()

    async def _wait_seconds(self, seconds: float) -> None:
        """Wait without reading; `close` ends the wait."""
        ready: asyncio.Future[None] = self._loop.create_future()
        self._readable = ready
        timer = self._loop.call_later(seconds, _wake, ready)
        try:
            await ready
        finally:
            timer.cancel()
            if self._readable is ready:
                self._readable = None

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
        if self._queued_bytes + len(data) > self._bounds.queue_bytes:
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

    def pay(self, tokens: float) -> None:
        """Charge the peer's pace for a message that has cost more than others."""
        if self._pace is not None:
            self._pace.take(tokens)

    async def afford(self, tokens: float) -> None:
        """Wait until the peer is not ahead of its pace, and charge it for what is to be done next.

        Of peers that share a pace, one at a time goes on.
        """
        pace = self._pace
        while pace is not None and (seconds := pace.seconds()) > 0:  # noqa: ASYNC110 - tokens come with time alone
            await asyncio.sleep(seconds)
        self.pay(tokens)

    def set_pace(self, pace: Pace) -> None:
        """Read the peer at this pace from now on."""
        self._pace = pace

    @property
    def queued_bytes(self) -> int:
        """The bytes that wait for the peer to read."""
        return self._queued_bytes

    def learn_sender(self) -> None:
        """See `Channel.learn_sender`."""
        self._channel.learn_sender()

    def take_sender(self) -> tuple[int, int]:
        """Return pid and pidfd of the last sender, and learn of no further one.

        The pid is 0 where the kernel named none, and the pidfd -1; the caller owns the pidfd.
        """
        pid, pidfd = self._channel.sender_pid, self._channel.sender_pidfd
        self._channel.sender_pidfd = -1
        self._channel.forget_sender()
        return pid, pidfd

    def reserve(self, take: Callable[[int], bool]) -> None:
        """Ask `take` before memory for a large message is used, and tell it when that is free again."""
        reserved = 0

        def change(size: int) -> bool:
            nonlocal reserved
            if not take(size):
                return False
            reserved += size
            return True

        self._channel.reserve(change)
        self._release = lambda: reserved and take(-reserved)

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

    @property
    def settled(self) -> bool:
        """True if no message is under way, in or out: the socket can go on elsewhere."""
        return not self._closed and not self._queue and self._channel.between_messages and not self._channel.descriptors

    def fileno(self) -> int:
        """Return the socket's descriptor, which stays the channel's."""
        return self._channel.fileno()

    def close(self) -> None:
        """Close the channel; a task that waits for it gets `ChannelClosed`."""
        if self._closed:
            return
        self._closed = True
        closed = ChannelClosed("the channel was closed")
        if self._queue:
            self._empty_queue(closed)
        readable, self._readable = self._readable, None
        if readable is not None:  # a wait by the clock has no reader, which does not matter
            self._loop.remove_reader(self._channel.fileno())
            if not readable.done():
                readable.set_exception(closed)
        self._channel.close()
        self._release()


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _close_all(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
