"""Bytes in channel 0 in place of a descriptor: the spool of a request, certificates, the file of an answer."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Awaitable, Callable
from typing import Any

from atoll.wire import sealed_file
from atoll.wire.websocket import PIECE, LineError

MOST_BYTES = 256 << 20
"""The most beside one message: it is memory until the node has written it to the disk."""
_ADD_SEALS, _SEALS = 1033, 0b1111


class Spool:
    """A file in memory that is filled by the client and then sealed.

    Args:
        header: the message that it belongs to.
        size: of the bytes that come.

    Raises:
        LineError: they are no number, or too many.
    """

    def __init__(self, header: dict[str, Any], size: object) -> None:
        if type(size) is not int or not 0 < size <= MOST_BYTES:
            raise LineError(f"beside a message there may be {MOST_BYTES} bytes at most")
        self.header = header
        self._lacks = size
        self._descriptor = os.memfd_create("atoll-spool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)

    def take(self, piece: Any) -> bool:
        """Write the next bytes; return whether all have come.

        Raises:
            LineError: more came than were announced.
        """
        if len(piece) > self._lacks:
            raise LineError("more bytes came than the message has announced")
        view = memoryview(piece)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self._lacks -= len(piece)
        return not self._lacks

    def seal(self) -> int:
        """Return the sealed file's descriptor; the caller owns it."""
        descriptor, self._descriptor = self._descriptor, -1
        fcntl.fcntl(descriptor, _ADD_SEALS, _SEALS)
        return descriptor

    def close(self) -> None:
        """Forget what has come."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def take_certificates(header: dict[str, Any]) -> list[int]:
    """Take the certificates' text out of an opening message; return the descriptor of a file with it, if there is one.

    Without a text the message names no certificates: the node would wait for their descriptor.
    """
    text = header.pop("certificates_text", None)
    if isinstance(text, str) and "certificates" in header:
        return [sealed_file.make(text.encode("utf-8", "surrogatepass"))]
    header.pop("certificates", None)
    return []


def read_size(size: object) -> tuple[int, int] | None:
    """Return rows and columns of a terminal; None where a header has no such size."""
    if not isinstance(size, list) or len(size) != 2 or not all(type(one) is int and 0 <= one < 1 << 16 for one in size):
        return None
    return size[0], size[1]


async def send_file(
    header: dict[str, Any],
    descriptor: int,
    say: Callable[[dict[str, Any]], None],
    send: Callable[[bytes], None],
    room: Callable[[], Awaitable[None]],
) -> None:
    """Send a message with the bytes of the file that came with it; the file is closed afterwards.

    A file that grows meanwhile is sent as long as it was; one that shrinks is filled up with zeros.

    Args:
        room: waits until the client takes more.
    """
    try:
        size = os.fstat(descriptor).st_size
        say({**header, "bytes": size})
        at = 0
        while at < size:
            await room()
            wanted = min(PIECE, size - at)
            data = await asyncio.to_thread(os.pread, descriptor, wanted, at)
            data = data or bytes(wanted)
            send(data)
            at += len(data)
    finally:
        os.close(descriptor)
