"""Files of a volume as Python's file objects.

The storage peer holds the file open; a file object requests ranges, and reads ahead while it is read in order. Modes
`w` and `x` write a new file in staging, which takes its name when it is closed; modes `a` and `r+` change the file in
place, as a function does.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from atoll.storage.protocol.connection import absolute, volume_path

if TYPE_CHECKING:
    from atoll.sdk.data.connections import Borrowed, VolumeConnections
    from atoll.storage.client.contents import OpenFile

_MODES = {"r": "read", "w": "create", "x": "exclusive", "a": "append"}
FIRST_READ_BYTES = 128 << 10
MOST_READ_BYTES = 8 << 20
"""Bytes of one request: the first after a seek, then twice as many for each read in order, up to the second."""
WRITE_BYTES = 1 << 20


def open_file(
    connections: VolumeConnections,
    path: str,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    held: bool = False,
) -> Any:
    """Open a file of the volume; see `Volume.open`.

    Args:
        held: a file in mode `wb` or `xb` takes its name when `commit` is called after `close`.
    """
    kinds, plus, binary, text = (set(mode) & set("rwxa"), "+" in mode, "b" in mode, "t" in mode)
    if len(kinds) != 1 or set(mode) - set("rwxab+t") or len(set(mode)) != len(mode) or (binary and text):
        raise ValueError(f"invalid mode: {mode!r}")
    if binary and (encoding, errors, newline) != (None, None, None):
        raise ValueError("binary mode doesn't take an encoding, errors or newline argument")
    if buffering == 0 and not binary:
        raise ValueError("can't have unbuffered text I/O")
    (kind,) = kinds
    raw = RawVolumeFile(connections, path, "update" if kind == "r" and plus else _MODES[kind], mode, held=held)
    try:
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else WRITE_BYTES
        buffered: io.BufferedReader | io.BufferedWriter | io.BufferedRandom
        if plus:
            buffered = _Random(raw, min(size, FIRST_READ_BYTES))
        elif kind == "r":
            buffered = io.BufferedReader(raw, min(size, FIRST_READ_BYTES))
        else:
            buffered = _Writer(raw, size)
        if binary:
            return buffered
        wrapped = _Text(buffered, encoding or "utf-8", errors, newline, line_buffering=buffering == 1)
        wrapped.mode = mode
        return wrapped
    except BaseException:
        raw.discard()
        raw.close()
        raise


class _Dropping:
    """A mixin: a `with` block that an exception leaves drops the file."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def discard(self) -> None:
        """Have `close` drop the new content of a file that takes its name only then."""
        buffered = getattr(self, "buffer", self)
        if isinstance(raw := getattr(buffered, "raw", None), RawVolumeFile):
            raw.discard()

    def commit(self) -> None:
        """Give a file that was held when it was closed its name."""
        raw = getattr(getattr(self, "buffer", self), "raw", None)
        if isinstance(raw, RawVolumeFile):
            raw.commit()

    def close(self) -> None:
        super().close()  # type: ignore[misc]


class RawVolumeFile(_Dropping, io.RawIOBase):
    """An open file of a volume, without a buffer for writes.

    Args:
        connections: give out the connection that holds the file open.
        path: of the file.
        opened: the mode of the peer's `OpenFile`.
        mode: the mode given to `open`.
        held: whether a new file waits for `commit` when it is closed.
    """

    def __init__(
        self, connections: VolumeConnections, path: str, opened: str, mode: str, *, held: bool = False
    ) -> None:
        self.name = absolute(volume_path(path))
        self.mode = mode
        self._connections = connections
        self._borrowed: Borrowed | None = None
        self._position = 0
        self._start, self._ahead = 0, b""
        self._expected = -1
        self._window = FIRST_READ_BYTES
        self._reads = "r" in mode or "+" in mode
        self._writes = mode.strip("bt") != "r"
        self._staged = opened in ("create", "exclusive")
        self._held = held and self._staged
        self._commits = True
        from atoll.storage.client.contents import OpenFile

        with connections.borrow() as borrowed:
            self._file = OpenFile(borrowed.connection, path, opened)
            self._borrowed = borrowed
            if opened == "append":
                self._position = self._file.found.size

    def __repr__(self) -> str:
        return f"<{'closed' if self.closed else 'open'} file of a volume `{self.name}` mode={self.mode!r}>"

    def readable(self) -> bool:
        return self._reads

    def writable(self) -> bool:
        return self._writes

    def seekable(self) -> bool:
        return True

    def stat(self) -> os.stat_result:
        """Return the status of the open file, without content that is still in buffers."""
        with self._opened() as file:
            return file.status().as_stat()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._check()
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += self.stat().st_size
        elif whence != os.SEEK_SET:
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        if offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if offset >= 1 << 63:
            raise OverflowError(f"no file is so large: {offset}")
        self._position = offset
        return offset

    def tell(self) -> int:
        self._check()
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(-1 if size is None else size) or b""

    def readinto(self, buffer: Any, /) -> int:
        self._check()
        if not self._reads:
            raise io.UnsupportedOperation("not readable")
        view = memoryview(buffer).cast("B")
        if not view.nbytes:
            return 0
        if not self._start <= self._position < self._start + len(self._ahead):
            in_order = self._position == self._expected
            self._window = min(self._window * 2, MOST_READ_BYTES) if in_order else FIRST_READ_BYTES
            content = self._fetch(self._position, max(self._window, view.nbytes))
            self._expected = self._position + len(content)
            self._start, self._ahead = self._position, content
        begin = self._position - self._start
        return self._take(view, memoryview(self._ahead)[begin : begin + view.nbytes])

    def _take(self, view: memoryview, content: bytes | memoryview) -> int:
        view[: len(content)] = content
        self._position += len(content)
        return len(content)

    def readall(self) -> bytes:
        self._check()
        if not self._reads:
            raise io.UnsupportedOperation("not readable")
        content = self._fetch(self._position, None)
        self._position += len(content)
        return content

    def _fetch(self, offset: int, length: int | None) -> bytes:
        with self._opened() as file:
            return file.read_ranges([(offset, length)])[0]

    def write(self, content: Any, /) -> int:
        self._check()
        if not self._writes:
            raise io.UnsupportedOperation("not writable")
        view = memoryview(content).cast("B")
        self._ahead = b""
        if self._commits:
            try:
                with self._opened() as file:
                    self._position = file.write(self._position, view)
            except BaseException:
                self.discard()  # a part of the content is no file
                raise
        return view.nbytes

    def truncate(self, size: int | None = None, /) -> int:
        self._check()
        if not self._writes:
            raise io.UnsupportedOperation("not writable")
        size = self._position if size is None else size
        self._ahead = b""
        with self._opened() as file:
            file.truncate(size)
        return size

    def discard(self) -> None:
        """Have `close` drop the new content of a file that takes its name only then."""
        self._commits = not self._staged
        if self.closed:
            self._finish()

    def close(self) -> None:
        """Close the file; a new one takes its name now, durably.

        Raises:
            OSError: it cannot, and is gone.
        """
        if self.closed:
            return
        super().close()
        if not self._held or not self._commits:
            self._finish()

    def commit(self) -> None:
        """Give a file that was held its name.

        Raises:
            OSError: it cannot, and is gone.
        """
        self._finish()

    def _finish(self) -> None:
        borrowed, self._borrowed = self._borrowed, None
        if borrowed is not None:
            self._connections.close_file(borrowed, self._file, commit=self._commits and self._writes)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[OpenFile]:
        """Give the file to this thread, with the connection that holds the file open."""
        if self._borrowed is None:
            raise ValueError("I/O operation on closed file.")
        with self._connections.use(self._borrowed):
            yield self._file

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")


class _Writer(_Dropping, io.BufferedWriter):
    pass


class _Random(_Dropping, io.BufferedRandom):
    pass


class _Text(_Dropping, io.TextIOWrapper):
    mode: str
