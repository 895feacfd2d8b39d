"""Requests about the contents of files: read and write by path, and files that the peer holds open."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from atoll.errors import AtollError, HostUnreachable
from atoll.storage.client.names import status_in
from atoll.storage.content.transfer import CHUNK_BYTES
from atoll.storage.files.tree import Status
from atoll.storage.protocol.connection import AnyPath, Connection, Requests, volume_path
from atoll.wire.frames import Message

Ranges = Sequence[tuple[int, int | None]]
"""Offset (negative: from the end) and length (None: up to the end) of each piece, in bytes."""

_WRITE_BYTES = 4 << 20
"""The content of one request that writes to an open file."""


class ContentRequests(Requests):
    """Requests that read or replace a file by its path."""

    def read(self, path: AnyPath, offset: int = 0, length: int | None = None) -> Iterator[bytearray]:
        """Yield the content of a file from `offset` on; a consumer that stops early closes the connection."""
        for message in self._messages("read", path, {"ranges": _checked([(offset, length)])}):
            yield from message.buffers

    def read_bytes(self, path: AnyPath, offset: int = 0, length: int | None = None) -> bytes:
        """Return the content of a file from `offset` on (negative: from the end), at most `length` bytes.

        Raises:
            ValueError: `length` is negative.
        """
        return self.read_ranges(path, [(offset, length)])[0]

    def read_ranges(self, path: AnyPath, ranges: Ranges) -> list[bytes]:
        """Return pieces of one state of a file, in one request.

        Args:
            ranges: offset (negative: from the end) and length (None: up to the end) of each piece, in bytes; a
                piece ends at the end of the file.

        Raises:
            TypeError, ValueError: a range is no pair of whole numbers, or its length is negative.
        """
        return _joined(self._messages("read", path, {"ranges": _checked(ranges)}), len(ranges))

    def write(
        self, path: AnyPath, content: Iterable[Any], *, mode: int | None = None, mtime_ns: int | None = None
    ) -> None:
        """Replace a file by pieces of content, durably and in one step; missing directories are made.

        Args:
            content: each piece gives its bytes as a buffer.
            mode: permission bits; by default those of the file that is replaced, or 0644.
            mtime_ns: modification time; by default now.
        """
        where = volume_path(path)
        with self._connected() as connection:
            _upload(connection, {"type": "write", "path": where, "mode": mode, "mtime_ns": mtime_ns}, content)

    def write_bytes(self, path: AnyPath, content: Any, *, mode: int | None = None) -> int:
        """Replace a file durably and in one step; missing directories are made.

        Args:
            content: bytes, any other object that gives its bytes as a buffer, or an iterable of such.
            mode: permission bits; by default those of the file that is replaced, or 0644.

        Returns:
            the file's size in bytes.
        """
        count = 0

        def counted(pieces: Iterable[Any]) -> Iterator[memoryview]:
            nonlocal count
            for piece in pieces:
                view = memoryview(piece).cast("B")
                count += view.nbytes
                yield view

        try:
            pieces: Iterable[Any] = [memoryview(content)]
        except TypeError:
            if isinstance(content, str):
                raise TypeError("`write_bytes` takes bytes; `write_text` writes text") from None
            pieces = content
        self.write(path, counted(pieces), mode=mode)
        return count


class _Refused(Exception):
    """The peer's error for content that is still being sent."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason


def _upload(connection: Connection, header: dict[str, Any], content: Iterable[Any]) -> None:
    """Send a request that is followed by content, and wait for its answer."""
    finished = False
    try:
        connection.request(header, [])
        for piece in content:
            view = memoryview(piece).cast("B")
            for start in range(0, view.nbytes, CHUNK_BYTES):
                connection.send({"type": "data"}, [view[start : start + CHUNK_BYTES]])
                _raise_early(connection, header["path"])
        finished = True
        connection.send({"type": "commit"}, [])
        connection.answer(header["path"])
    except Exception as error:
        if not finished and not isinstance(error, HostUnreachable):
            _abort(connection, answered=isinstance(error, _Refused))
        if isinstance(error, _Refused):
            raise error.reason from None
        raise
    except BaseException:
        connection.abandon()  # an interrupt may have cut a message: the peer could read nothing that follows
        raise


def _raise_early(connection: Connection, where: str) -> None:
    """Raise an error that the peer reports while the content is still being sent."""
    if connection.channel.readable():
        try:
            connection.receive(where)
        except HostUnreachable:
            raise
        except (AtollError, OSError) as error:
            raise _Refused(error) from error


def _abort(connection: Connection, *, answered: bool) -> None:
    """End the upload without a file, so that the connection can serve further requests."""
    with contextlib.suppress(AtollError, OSError):
        connection.send({"type": "abort"}, [])
        while not answered and connection.channel.receive().type not in ("done", "error"):
            pass
        connection.idle = True


class OpenFile:
    """A file that the peer holds open for one connection.

    Args:
        connection: idle, and the caller's during each method.
        path: of the file; later errors name it.
        mode: `read`, `update` (both, in place), `append` (in place, made if missing), `create` (a new file that takes
            the path when it is closed) or `exclusive` (the same, if the path is free).

    Attributes:
        found: the status of the file when it was opened.
    """

    def __init__(self, connection: Connection, path: AnyPath, mode: str) -> None:
        self._connection = connection
        self._path = path
        answer = connection.ask("open", path, {"mode": mode})
        connection.handles += 1
        self._handle = int(answer.header["handle"])
        self.found = status_in(answer)

    def _ask(self, kind: str, buffers: list[Any] | None = None, **arguments: Any) -> Message:
        return self._connection.ask(kind, self._path, {"handle": self._handle, **arguments}, buffers)

    def read_ranges(self, ranges: Ranges) -> list[bytes]:
        """Return pieces of the file, as `ContentRequests.read_ranges`."""
        return _joined(self.messages(ranges), len(ranges))

    def messages(self, ranges: Ranges) -> Iterator[Message]:
        """Yield the messages with pieces of the file, `done` at last; a consumer that stops early ends the connection."""
        arguments = {"handle": self._handle, "ranges": _checked(ranges)}
        return self._connection.messages("pread", self._path, arguments)

    def write(self, offset: int, content: memoryview) -> int:
        """Write at an offset, or at the end in mode `append`; return the position behind the content."""
        position = offset
        for begin in range(0, content.nbytes, _WRITE_BYTES):
            end = min(begin + _WRITE_BYTES, content.nbytes)
            pieces = [content[start : min(start + CHUNK_BYTES, end)] for start in range(begin, end, CHUNK_BYTES)]
            position = int(self._ask("pwrite", pieces, offset=position).header["position"])
        return position

    def truncate(self, size: int) -> None:
        """Change the file's size."""
        if operator.index(size) >= 1 << 63:
            raise OverflowError(f"no file is so large: {size}")
        self._ask("truncate", size=size)

    def status(self, *, durable: bool = False) -> Status:
        """Return the file's status; with `durable`, after its content is on disk."""
        return status_in(self._ask("flush", durable=durable))

    def close(self, *, commit: bool) -> None:
        """Close the file durably; a new file takes its path with `commit`, and is removed without."""
        self._connection.handles -= 1
        self._ask("close", commit=commit)


def _joined(messages: Iterator[Message], count: int) -> list[bytes]:
    pieces: list[list[bytearray]] = [[] for _ in range(count)]
    for message in messages:
        if message.type == "data":
            pieces[int(message.header["range"])].extend(message.buffers)
    return [b"".join(found) for found in pieces]


def _checked(ranges: Ranges) -> list[tuple[int, int | None]]:
    checked: list[tuple[int, int | None]] = []
    for offset, length in ranges:
        checked.append((operator.index(offset), None if length is None else operator.index(length)))
        if length is not None and length < 0:
            raise ValueError(f"a length cannot be negative: {length}")
    return checked
