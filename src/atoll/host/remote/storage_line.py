"""A channel to a storage peer of a server: the messages of `wire.channel.Channel`, over a line."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import Any

from atoll import errors
from atoll.host.remote.line_client import LineClient
from atoll.host.remote.server import Server
from atoll.wire.channel import ChannelClosed, take_first
from atoll.wire.frames import MAX_BUFFER_BYTES, Decoder, FrameError, Header, Message, encode


class StorageLine:
    """Offers what users of `host.storage_channels.StorageChannel` need; receiving belongs to one thread at a time.

    Raises:
        AtollError: the server opens no peer.
    """

    def __init__(self, server: Server) -> None:
        self._decoder = decoder = Decoder(MAX_BUFFER_BYTES)
        self._fault: FrameError | None = None
        self._sending = threading.Lock()
        self._pid = os.getpid()
        self._line = LineClient(server, {"type": "storage"}, self._take, space=decoder.space, wrote=self._wrote)
        try:
            header = self._line.header(None) or {}
        except ChannelClosed as error:
            self._line.close()
            raise self._line.lost() from error
        except BaseException:
            self._line.close()
            raise
        if header.get("type") == "failed":
            self._line.close()
            raise errors.from_data(header.get("error") or {})

    def _take(self, piece: Any) -> None:
        view = piece if type(piece) is memoryview else memoryview(piece)
        while view.nbytes and self._fault is None:
            with self._decoder.space() as space:
                count = min(view.nbytes, space.nbytes)
                space[:count] = view[:count]
            self._wrote(count)
            view = view[count:]

    def _wrote(self, count: int) -> None:
        try:
            self._decoder.wrote(count)
        except FrameError as error:
            self._fault = error

    @property
    def messages(self) -> list[Message]:
        """The messages that have come and that `receive` has not returned."""
        return self._decoder.messages

    def send(self, header: Header, buffers: Sequence[Any] = (), descriptors: Sequence[int] = ()) -> None:
        """See `Channel.send`; no descriptors travel."""
        if descriptors:
            raise FrameError("descriptors do not travel to a server")
        with self._sending:
            self._line.send(encode(header, buffers))

    def send_many(self, messages: Sequence[tuple[Header, Sequence[Any]]]) -> None:
        """See `Channel.send_many`."""
        with self._sending:
            self._line.send([b"".join(piece for header, buffers in messages for piece in encode(header, buffers))])

    def receive(self) -> Message:
        """See `Channel.receive`."""
        while not self._decoder.messages:
            self._look(None)
        return self._decoder.messages.pop(0)

    def _look(self, milliseconds: float | None) -> bool:
        if self._fault is not None:
            raise self._fault
        if self._line.data_over or self._line.over:
            raise ChannelClosed("the peer has closed the channel", self._line.reason)
        return self._line.pump(milliseconds)

    @property
    def local(self) -> bool:
        """See `Channel.local`."""
        return False

    @property
    def pending(self) -> bool:
        """See `Channel.pending`."""
        return bool(self._decoder.messages)

    def take(self, kind: str) -> Message | None:
        """See `Channel.take`."""
        return take_first(self._decoder.messages, kind)

    def wait(self, seconds: float) -> bool:
        """Wait until there is something to receive, or the other end has gone; return whether that is so."""
        if self.pending:
            return True
        try:
            self._look(1000 * seconds)
        except (ChannelClosed, FrameError):
            return True
        return self.pending or self._line.data_over or self._line.over

    def readable(self) -> bool:
        """See `Channel.readable`."""
        return self.wait(0)

    @property
    def between_messages(self) -> bool:
        """See `Channel.between_messages`."""
        return not self._decoder.messages and self._decoder.between_messages

    def close(self) -> None:
        """End the line, and with it the peer; in a forked child, the copy of the connection alone."""
        if os.getpid() != self._pid:
            self._line.forget()
            return
        with contextlib.suppress(OSError):
            self._line.close()

    def forget(self) -> None:
        """In a forked child: drop the parent's channel."""
        self._line.forget()
