"""Contents of files as messages: many small files in one, large ones in pieces, no round trips.

    {"type": "files", "items": [[number, mode, mtime_ns], ...]}  and one buffer for each
    {"type": "chunk", "number": n, "offset": o, "last": [mode, mtime_ns] or null}  and one buffer

A file is read as it was when it was scanned, or read again. Before it is read its last change must lie so far back
that a later change cannot carry the same time stamp; then equal stamps before and after mean an untorn copy, and
equal stamps at the next scan mean equal content.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from atoll.errors import SyncError
from atoll.file_stamp import COARSE_CLOCK_NS, Stamp, clock_step_ns, settled, stamp_of
from atoll.storage.files.scan import reason
from atoll.storage.files.tree import MODE_BITS
from atoll.terminal_text import printable

SMALL_FILE_BYTES = 1 << 20
BATCH_BYTES = 4 << 20
BATCH_FILES = 1000
CHUNK_BYTES = 1 << 20
"""A piece of a large file."""
_MOST_SMALL_BYTES = 64 << 20
_ATTEMPTS = 5
_OPEN = os.O_RDONLY
for _flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY"):
    _OPEN |= getattr(os, _flag, 0)

Send = Callable[[dict[str, Any], list[Any]], None]


class FileRequest(NamedTuple):
    """A file to send.

    Args:
        number: the receiver's number of the file.
        path: argument of `open_file`.
        size: its size when it was scanned.
        offset: bytes that the receiver has; only the rest is sent.
        known: stamp of the file as `offset` was sent; with another stamp it is sent from the start.
    """

    number: int
    path: str
    size: int
    offset: int = 0
    known: Stamp | None = None


class FileReader:
    """Opens and reads files for a transfer.

    Args:
        open_file: opens a path with the given flags and returns a descriptor.
        describe: how a path is called in errors.
        wait_seconds: how to wait for a file that changed a moment ago.
    """

    def __init__(
        self,
        open_file: Callable[[str, int], int],
        describe: Callable[[str], str] = printable,
        wait_seconds: Callable[[float], None] = time.sleep,
    ) -> None:
        self._open = open_file
        self._describe = describe
        self._wait = wait_seconds

    def failed(self, path: str, error: OSError) -> SyncError:
        """Return the error for a file that cannot be read."""
        return SyncError(f"cannot read `{self._describe(path)}`: {reason(error)}", hint="sync again when it is there")

    def opened(self, path: str) -> tuple[int, os.stat_result]:
        """Open a file whose state is settled; return its descriptor and that state.

        Raises:
            SyncError: it cannot be opened, or is no file.
        """
        try:
            descriptor = self._open(path, _OPEN)
        except OSError as error:
            raise self.failed(path, error) from error
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            os.close(descriptor)
            raise SyncError(f"`{self._describe(path)}` became something else than a file while it was read")
        age = time.time_ns() - info.st_ctime_ns
        if not settled(info.st_ctime_ns, info.st_ctime_ns + age) and age > -COARSE_CLOCK_NS:
            self._wait((clock_step_ns(info.st_ctime_ns) - age) / 1e9)
            info = os.fstat(descriptor)
        return descriptor, info

    def small(self, path: str, size_hint: int) -> tuple[bytes, os.stat_result]:
        """Return the whole content of a file, untorn, and its state; that of one moment if the file grows meanwhile.

        Raises:
            SyncError: it cannot be read, or does not stay the same while it is.
        """
        for _ in range(_ATTEMPTS):
            descriptor, before = self.opened(path)
            if before.st_size > _MOST_SMALL_BYTES:  # it was small a moment ago
                os.close(descriptor)
                break
            try:
                content = os.read(descriptor, max(size_hint, before.st_size) + 1)
                while len(content) < before.st_size and (more := os.read(descriptor, BATCH_BYTES)):
                    content += more
                after = os.fstat(descriptor)
                start = content[: before.st_size]
                if (
                    grew(before, after)
                    and len(start) == before.st_size
                    and _read_again(descriptor, len(start)) == start
                ):
                    return start, before
            except OSError as error:
                raise self.failed(path, error) from error
            finally:
                os.close(descriptor)
            if stamp_of(before) == stamp_of(after) and len(content) == after.st_size:
                return content, after
        raise self.restless(path)

    def chunks(
        self, path: str, offset: int = 0, known: Stamp | None = None
    ) -> Iterator[tuple[int, bytes, os.stat_result | None]]:
        """Yield offset and content of the pieces of a file, the last one with its state; begins again from 0 when
        the file changes meanwhile.

        Raises:
            SyncError: as `small`.
        """
        for _ in range(_ATTEMPTS):
            descriptor, before = self.opened(path)
            if stamp_of(before) != known:
                offset = 0
            try:
                position = os.lseek(descriptor, offset, os.SEEK_SET)
                while position < before.st_size:
                    content = os.read(descriptor, min(CHUNK_BYTES, before.st_size - position))
                    if not content:
                        break
                    yield position, content, None
                    position += len(content)
                after = os.fstat(descriptor)
            except OSError as error:
                raise self.failed(path, error) from error
            finally:
                os.close(descriptor)
            if stamp_of(before) == stamp_of(after) and position == after.st_size:
                yield position, b"", after
                return
        raise self.restless(path)

    def restless(self, path: str) -> SyncError:
        return SyncError(
            f"`{self._describe(path)}` changes all the time while it is read",
            hint="stop what writes it, or exclude it",
        )


def grew(before: os.stat_result, after: os.stat_result) -> bool:
    """Return whether a file has become longer: then its start may be that of one moment, as a second look shows."""
    return after.st_size > before.st_size and after.st_ino == before.st_ino


def _read_again(descriptor: int, length: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    content = b""
    while len(content) < length and (more := os.read(descriptor, length - len(content))):
        content += more
    return content


def send_files(
    wanted: Iterable[FileRequest],
    reader: FileReader,
    send: Send,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Stamp]:
    """Send the content of all files.

    Args:
        progress: is told how many files and bytes more have been sent.

    Returns:
        the stamp of each file, by its path, as it was read.

    Raises:
        SyncError: a file cannot be read.
    """
    stamps: dict[str, Stamp] = {}
    items: list[list[int]] = []
    contents: list[bytes] = []
    pending = 0

    def report(files: int, size: int) -> None:
        if progress is not None:
            progress(files, size)

    def flush() -> None:
        nonlocal items, contents, pending
        if items:
            send({"type": "files", "items": items}, contents)
            report(len(items), pending)
            items, contents, pending = [], [], 0

    for number, path, size, offset, known in wanted:
        if size <= SMALL_FILE_BYTES and not offset:
            content, info = reader.small(path, size)
            stamps[path] = stamp_of(info)
            items.append([number, info.st_mode & MODE_BITS, info.st_mtime_ns])
            contents.append(content)
            pending += len(content)
            if pending >= BATCH_BYTES or len(items) >= BATCH_FILES:
                flush()
            continue
        flush()
        for position, content, state in reader.chunks(path, offset, known):
            last = None
            if state is not None:
                stamps[path] = stamp_of(state)
                last = [state.st_mode & MODE_BITS, state.st_mtime_ns]
            send({"type": "chunk", "number": number, "offset": position, "last": last}, [content])
            report(int(state is not None), len(content))
    flush()
    return stamps
