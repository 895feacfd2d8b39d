"""A client's requests about the contents of files; `contents` answers them."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from atoll.errors import AtollError, HostUnreachable
from atoll.storage.content.transfer import CHUNK_BYTES
from atoll.storage.files.status import Status, check_status
from atoll.storage.protocol.connection import Requests, volume_path
from atoll.wire.frames import Message

_WRITE_BYTES = 4 << 20
"""How much one request writes to an open file."""


class ContentRequests(Requests):
    """Read and write files of a volume, by path or by handle."""

    def read(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytearray]:
        """Yield the content of a file from `offset` on; who stops early closes the client."""
        for message in self._messages("read", path, {"ranges": _checked([(offset, length)])}):
            yield from message.buffers

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int | None]]) -> list[bytes]:
        """Return pieces of one state of a file, in one request.

        Args:
            ranges: offset and length in bytes of each piece; a negative offset counts from the end, no length means
                up to it. What is behind the end is left out.

        Raises:
            TypeError, ValueError: a range is no pair of whole numbers, or its length is negative.
        """
        pieces = _Pieces(len(ranges))
        for message in self._messages("read", path, {"ranges": _checked(ranges)}):
            pieces.add(message)
        return pieces.joined()

    def write(self, path: str, content: Iterable[Any], *, mode: int | None = None, mtime_ns: int | None = None) -> None:
        """Replace a file in one step; it has the old content or the new one whole, whatever happens.

        Args:
            mode: permission bits; by default those of the file that is replaced, or 0644.
            mtime_ns: modification time; by default now.
        """
        where = volume_path(path)
        finished = False
        try:
            self._request({"type": "write", "path": where, "mode": mode, "mtime_ns": mtime_ns}, [])
            for piece in content:
                view = memoryview(piece).cast("B")
                for start in range(0, view.nbytes, CHUNK_BYTES):
                    self._send({"type": "data"}, [view[start : start + CHUNK_BYTES]])
                    self._raise_early(where)
            finished = True
            self._send({"type": "commit"}, [])
            self._answer(where)
        except Exception as error:
            if not finished and not isinstance(error, HostUnreachable):
                self._abort(answered=isinstance(error, _Refused))
            if isinstance(error, _Refused):
                raise error.reason from None
            raise
        except BaseException:
            self.abandon()  # interrupted, perhaps in the middle of a message: nothing can follow it
            raise

    def open(self, path: str, mode: str) -> tuple[int, Status]:
        """Have the peer hold a file open; return the handle's number, and what it found.

        Args:
            mode: `read`, `update` (both, in place), `append` (in place, made where it is not there), `create` (a new
                file that takes the path's place when it is closed) or `exclusive` (the same, unless something is
                there).
        """
        done = self._ask("open", path, {"mode": mode})
        self.handles += 1
        return int(done.header["handle"]), status_in(done)

    def pread(self, path: str, handle: int, ranges: Sequence[tuple[int, int | None]]) -> list[bytes]:
        """Return pieces of an open file, as `read_ranges`; `path` is for errors."""
        pieces = _Pieces(len(ranges))
        for message in self._messages("pread", path, {"handle": handle, "ranges": _checked(ranges)}):
            pieces.add(message)
        return pieces.joined()

    def pwrite(self, path: str, handle: int, offset: int, content: memoryview) -> int:
        """Write to an open file; return the position behind what was written."""
        position = offset
        for begin in range(0, content.nbytes, _WRITE_BYTES):
            end = min(begin + _WRITE_BYTES, content.nbytes)
            pieces = [content[start : min(start + CHUNK_BYTES, end)] for start in range(begin, end, CHUNK_BYTES)]
            done = self._ask("pwrite", path, {"handle": handle, "offset": position}, pieces)
            position = int(done.header["position"])
        return position

    def truncate(self, path: str, handle: int, size: int) -> None:
        """Give an open file another size."""
        if operator.index(size) >= 1 << 63:
            raise OverflowError(f"no file is so large: {size}")
        self._ask("truncate", path, {"handle": handle, "size": size})

    def flush(self, path: str, handle: int, *, durable: bool = False) -> Status:
        """Return the status of an open file, made durable where that is asked for."""
        return status_in(self._ask("flush", path, {"handle": handle, "durable": durable}))

    def close_file(self, path: str, handle: int, *, commit: bool) -> None:
        """Close an open file: what was written is durable then, and a new file takes its place, or is gone."""
        self.handles -= 1
        self._ask("close", path, {"handle": handle, "commit": commit})

    def _raise_early(self, where: str) -> None:
        """Learn of an error while the content is still being sent."""
        if self._channel.readable():
            try:
                self._receive(where)
            except HostUnreachable:
                raise
            except (AtollError, OSError) as error:
                raise _Refused(error) from error

    def _abort(self, *, answered: bool) -> None:
        with contextlib.suppress(AtollError, OSError):
            self._send({"type": "abort"}, [])
            while not answered and self._channel.receive().type not in ("done", "error"):
                pass
            self._at_rest = True


class _Refused(Exception):
    """The peer has said already that the content being sent is of no use."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason


class _Pieces:
    def __init__(self, count: int) -> None:
        self._pieces: list[list[bytearray]] = [[] for _ in range(count)]

    def add(self, message: Message) -> None:
        if message.type == "data":
            self._pieces[int(message.header["range"])].extend(message.buffers)

    def joined(self) -> list[bytes]:
        return [b"".join(pieces) for pieces in self._pieces]


def _checked(ranges: Sequence[tuple[int, int | None]]) -> list[tuple[int, int | None]]:
    checked: list[tuple[int, int | None]] = []
    for offset, length in ranges:
        checked.append((operator.index(offset), None if length is None else operator.index(length)))
        if length is not None and length < 0:
            raise ValueError(f"a length cannot be negative: {length}")
    return checked


def status_in(message: Message) -> Status:
    """Return the status that an answer carries."""
    return check_status(message.header["status"])[1]
