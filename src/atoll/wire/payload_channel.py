"""The channel between a caller and its worker: one that also carries payloads of any size, quickly."""

from __future__ import annotations

import _socket
import array
import errno
import os
from collections.abc import Callable, Sequence
from typing import Any

from atoll.wire.channel import Channel, ChannelClosed, Socket
from atoll.wire.frames import BESIDE, LARGE_BYTES, MAX_BUFFER_BYTES, NEW_RING, Decoder, FrameError, Header, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.wire.shared_ring import Inlet, Outlet

BESIDE_BYTES = LARGE_BYTES
"""Frames with buffers of this size together send them beside the stream."""


class PayloadChannel(Channel):
    """A channel whose frames carry their buffers through shared memory where these are large.

    Args:
        sock: a Unix socket between two processes of this machine, or anything else that carries frames: then they
            all travel in the stream.
        free_bytes: returns the memory for a received message; called for large ones only.
        beside: False where a relay is between the two ends, which passes bytes on and no memory.
    """

    max_pending_descriptors = 4
    """A peer that is not trusted must not use up this process's descriptors."""

    def __init__(self, sock: Socket, *, free_bytes: Callable[[], int] | None = None, beside: bool = True) -> None:
        super().__init__(sock)
        self._decoder = Decoder(MAX_BUFFER_BYTES, payloads=True, free_bytes=free_bytes)
        self._outlet: Outlet | None = None
        self._inlet: Inlet | None = None
        self._rings = 0
        self._beside = beside and sock.family == getattr(_socket, "AF_UNIX", -1)

    def send(self, header: Header, buffers: Sequence[Any] = (), descriptors: Sequence[int] = ()) -> None:
        """See `Channel.send`; the buffers' memory must not change meanwhile."""
        pieces = encode(header, buffers)
        if len(pieces) > 1 and self._beside and not descriptors and sum(map(_size, buffers)) >= BESIDE_BYTES:
            with self._sending:
                if self._send_beside(header, buffers):
                    return
        self._write(pieces, descriptors)

    def _send_beside(self, header: Header, buffers: Sequence[Any]) -> bool:
        """Send a frame whose buffers go through the ring; return False where there can be none now."""
        from atoll.wire.shared_ring import Outlet

        flags = BESIDE
        if self._outlet is None:
            try:
                self._outlet = Outlet()
            except OSError:
                self._beside = False
                return False
            flags |= NEW_RING
        outlet = self._outlet
        head, *views = encode(header, buffers, flags)
        try:
            if flags & NEW_RING:
                rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", outlet.descriptors))
                try:
                    sent = self.socket.sendmsg([head], [rights])
                except OSError as error:
                    if error.errno != errno.ETOOMANYREFS:  # this user's descriptors that wait in sockets are too many
                        raise
                    self._outlet = None
                    outlet.close()
                    return False
                head = memoryview(head)[sent:]
                outlet.given()
            self.socket.sendall(head)
            outlet.write(self.socket, views)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed("the peer has closed the channel") from error
        return True

    def _received(self) -> None:
        """Fetch the chunks that the stream announces."""
        decoder = self._decoder
        while True:
            if decoder.new_rings != self._rings:
                from atoll.wire.shared_ring import Inlet

                self._rings = decoder.new_rings
                if self._inlet is not None:
                    raise FrameError("a second ring came")
                file, returns = self.take_descriptors(2)
                self._inlet = Inlet(file, returns)
            if not decoder.beside:
                return
            inlet = self._inlet
            if inlet is None:
                raise FrameError("a chunk came without a ring")
            while left := decoder.beside:
                count = inlet.read(decoder.space())
                if count == left:  # before the decoder reads on, and may find the next chunk
                    inlet.done()
                decoder.wrote(count)
                if count == left:
                    break

    def close(self) -> None:
        super().close()
        outlet, self._outlet = self._outlet, None
        inlet, self._inlet = self._inlet, None
        for ring in (outlet, inlet):
            if ring is not None:
                ring.close()


def free_bytes() -> int:
    """Return the memory that a message may use in this process without the machine running out of it."""
    try:
        with open("/proc/meminfo", "rb") as file:
            fields = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(b":") for line in file)}
        reserve = min(fields[b"MemTotal"] // 32, 512 << 20)
        return max(0, fields[b"MemAvailable"] + fields.get(b"SwapFree", 0) - reserve)
    except (OSError, KeyError, ValueError, IndexError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else MAX_BUFFER_BYTES


def _size(buffer: Any) -> int:
    return buffer.nbytes if hasattr(buffer, "nbytes") else len(buffer)
