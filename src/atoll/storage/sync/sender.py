"""The sender of contents, in the client: small files many in a message, large ones in pieces, and of changed large
files only the parts that the target does not have. Only those need round trips.

    batch(items [[number, mode, mtime_ns, size], ...])    the digests, the contents
    piece(number, offset)                                 content; with `zstd`, its size, compressed, as in a batch
    copy(number, offset, from, length)                    a part of the file at the target
    whole(number, size, mode, mtime_ns)                   the digest: the file ends here
    blocks(number), chunks(number, start, end)            questions about the file at the target

A file that changed since the scan is read again (`content.transfer`). Contents are hashed as they are read. A file that
vanished since is `gone`; after one that exists and cannot be read, the rest is only looked at, so that all are named.

Others than its owner may change the local directory meanwhile. So, where the platform can, each component of a path is
opened by itself without following symlinks: a directory that becomes a symlink does not lead to files elsewhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from atoll.errors import AtollError
from atoll.file_stamp import settled, stamp_of
from atoll.storage.content.compression import Compressor
from atoll.storage.content.delta import DELTA_BYTES, Comparison
from atoll.storage.content.digest import BLOCK_BYTES, Hasher, digest_of, maker
from atoll.storage.content.transfer import BATCH_BYTES, BATCH_FILES, SMALL_FILE_BYTES, grew
from atoll.storage.files.scan import Row, Scan, clamp, row_of
from atoll.storage.files.tree import FILE, MODE_BITS, Entry, parent_of
from atoll.storage.sync.index import Index
from atoll.storage.sync.source_files import FileFailed, SourceFiles, file_errors
from atoll.storage.sync.unchanged import TargetReport
from atoll.wire.frames import Rope

PIECE_BYTES = 4 << 20
_ATTEMPTS = 5
_WORTH_COMPARING = 4
"""A file at most this many times as large as its new content is compared with it."""
_OPEN = os.O_RDONLY
for _flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY"):
    _OPEN |= getattr(os, _flag, 0)


class Old(NamedTuple):
    """The file at the target that a large one replaces; `blocks` where they are known here."""

    size: int
    blocks: bytes | None


@dataclass
class Sent:
    """The contents that were sent.

    Args:
        rows: the row of each file as it was read, where that is not the scan's.
        digests, blocks: by path; blocks of large files only.
        bytes: how much content travelled.
        gone: the paths that have vanished since the scan, the topmost of each.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    digests: dict[str, bytes] = field(default_factory=dict)
    blocks: dict[str, bytes] = field(default_factory=dict)
    bytes: int = 0
    gone: set[str] = field(default_factory=set)

    def is_gone(self, path: str) -> bool:
        """Return whether a path has vanished since the scan, or one above it."""
        while path and path not in self.gone:
            path = parent_of(path)
        return path in self.gone


@dataclass
class SourceSync:
    """One sync of a local directory, as the client's modules share it.

    Args:
        files: the local files.
        scan: their tree.
        index: the client's index of its last sync.
        target: the peer's report of the target.
        damaged: paths whose delta arrived damaged: they are sent whole.
    """

    files: SourceFiles
    scan: Scan
    index: Index
    target: TargetReport
    damaged: Container[str] = ()

    def old(self, path: str, size: int) -> Old | None:
        """Return the file at the target that a file of this size replaces; None where it is of no use."""
        entry = self.target.tree.get(path)
        if path in self.damaged or entry is None or entry.kind != FILE or entry.size < BLOCK_BYTES:
            return None
        # A function can make a huge file for free; to compare one takes longer than to replace it.
        if not entry.mode & 0o400 or entry.size > _WORTH_COMPARING * max(size, BLOCK_BYTES):
            return None
        return Old(entry.size, self.index.blocks.get(path) if self.target.as_known(path) else None)


class Sender:
    """Sends files to one peer.

    Args:
        sync: the sync.
        send: sends a message.
        ask: sends a question and returns the buffer of its answer.
        progress: is called with the files and bytes that were sent.
        received: how much of a file an interrupted sync has left at the peer, and the digest of that, by its number.
        compressor: compresses contents; None for none.
    """

    def __init__(
        self,
        sync: SourceSync,
        send: Callable[[dict[str, Any], list[Any]], None],
        ask: Callable[[dict[str, Any]], Any],
        progress: Callable[[int, int], None],
        received: Mapping[int, tuple[int, bytes]],
        compressor: Compressor | None = None,
    ) -> None:
        self._sync = sync
        self._open, self._reader = sync.files.open, sync.files.reader
        self._scan = sync.scan
        self._make = maker(sync.target.algorithm)
        self._send = send
        self._ask = ask
        self._progress = progress
        self._received = received
        self._compressor = compressor
        self._items: list[list[int]] = []
        self._contents: list[Any] = []
        self._digests: list[bytes] = []
        self._pending = 0
        self._moment_ns = time.time_ns()
        self._buffer: Any = None
        self.sent = Sent()

    def run(self, paths: list[str], entries: Mapping[str, Entry]) -> Sent:
        """Send all files; their numbers are their places in `paths`.

        Raises:
            SyncError: files cannot be read, or something became of another kind (`retry` in its details).
        """
        files = self._sync.files
        for number, path in enumerate(paths):
            if self.sent.gone and self.sent.is_gone(path):
                continue
            small = number not in self._received and entries[path].size <= SMALL_FILE_BYTES
            if not small:
                self._flush()
            for _ in range(_ATTEMPTS):
                try:
                    if files.unreadable:
                        files.probe(path)
                    elif small:
                        self._small(number, path)
                    else:
                        self._large(number, path)
                except FileFailed as failed:
                    if files.exists(path, failed):  # it was put back meanwhile
                        self._received = {key: value for key, value in self._received.items() if key != number}
                        continue
                    if path not in files.unreadable:
                        self.sent.gone.add(files.topmost_gone(path))
                break
            else:
                files.unreadable.add(path, "comes and goes while it is read")
        if files.unreadable:
            raise files.unreadable.error()
        self._flush()
        return self.sent

    def _small(self, number: int, path: str) -> None:
        mode, size, mtime_ns, ctime_ns, inode = self._scan.row(self._scan.positions[path])
        content = b""
        try:
            descriptor = self._open(path, _OPEN)
            try:
                content = os.read(descriptor, size + 1)
                info = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise FileFailed(error) from error
        # Settled before it was opened and the same afterwards: no change came in between.
        if not (
            len(content) == size == info.st_size
            and clamp(info.st_ctime_ns) == ctime_ns
            and clamp(info.st_mtime_ns) == mtime_ns
            and clamp(info.st_ino) == inode
            and info.st_mode == mode
            and settled(ctime_ns, self._moment_ns)
        ):
            with file_errors():
                content, info = self._reader.small(path, size)
            self.sent.rows[path] = row_of(info)
            mode, size, mtime_ns = info.st_mode, len(content), clamp(info.st_mtime_ns)
        digest = digest_of(self._make, content)
        self.sent.digests[path] = digest
        self._items.append([number, mode & MODE_BITS, mtime_ns, size])
        self._contents.append(content)
        self._digests.append(digest)
        self._pending += size
        if self._pending >= BATCH_BYTES or len(self._items) >= BATCH_FILES:
            self._flush()

    def _flush(self) -> None:
        if self._items:
            header = {"type": "batch", "items": self._items}
            self._send_content(header, [b"".join(self._digests), Rope(self._contents)])
            self._progress(len(self._items), self._pending)
            self.sent.bytes += self._pending
            self._items, self._contents, self._digests, self._pending = [], [], [], 0
        self._moment_ns = time.time_ns()

    def _send_content(self, header: dict[str, Any], buffers: list[Any]) -> None:
        """Send a message whose last buffer is content."""
        if self._compressor is not None and (small := self._compressor.compress(buffers[-1])) is not None:
            header["zstd"] = len(buffers[-1])
            buffers[-1] = small
        self._send(header, buffers)

    # --- large files --------------------------------------------------------------------------------------------

    def _large(self, number: int, path: str) -> None:
        for _ in range(_ATTEMPTS):
            with file_errors():
                descriptor, before = self._reader.opened(path)
            try:
                hasher = self._content(number, path, descriptor, before.st_size)
                after = os.fstat(descriptor)
                if hasher is not None and grew(before, after) and self._is_same(descriptor, before.st_size, hasher):
                    after = before
            except OSError as error:
                if isinstance(error, (AtollError, ConnectionError)):  # the channel's, not the file's
                    raise
                raise FileFailed(error) from error
            finally:
                os.close(descriptor)
            if stamp_of(before) == stamp_of(after) and hasher is not None:
                break
            self._received = {key: value for key, value in self._received.items() if key != number}
            self._send({"type": "piece", "number": number, "offset": 0}, [b""])
        else:
            raise FileFailed(None)
        digest = hasher.digest()
        self._send(
            {
                "type": "whole",
                "number": number,
                "size": after.st_size,
                "mode": after.st_mode & MODE_BITS,
                "mtime_ns": clamp(after.st_mtime_ns),
            },
            [digest],
        )
        self._progress(1, 0)
        self.sent.digests[path] = digest
        if after.st_size >= DELTA_BYTES:
            self.sent.blocks[path] = hasher.blocks
        row = row_of(after)
        if row != tuple(self._scan.row(self._scan.positions[path])):
            self.sent.rows[path] = row

    def _content(self, number: int, path: str, descriptor: int, size: int) -> Hasher | None:
        """Send a file's content; return its hasher, or None where the file ended too early."""
        position, hasher = 0, Hasher(self._make)
        old = self._sync.old(path, size) if size >= DELTA_BYTES else None
        if number in self._received and (old is None or 2 * self._received[number][0] >= size):
            length, digest = self._received[number]
            while position < min(length, size) and (piece := self._read(descriptor, position, length - position)):
                hasher.update(piece)
                position += len(piece)
            if position != length or hasher.digest() != digest:
                position, hasher = 0, Hasher(self._make)
            else:
                self._progress(0, length)
        if old is not None and not position:
            return self._changed(number, descriptor, size, old)
        if not position:
            self._piece(number, 0, b"")
        while position < size and (piece := self._read(descriptor, position, size - position)):
            hasher.update(piece)
            self._piece(number, position, piece)
            position += len(piece)
        return hasher if position == size else None

    def _changed(self, number: int, descriptor: int, size: int, old: Old) -> Hasher | None:
        """Send the changed parts of a file."""
        blocks = old.blocks
        if blocks is None:
            blocks = bytes(self._ask({"type": "blocks", "number": number}))
        self._piece(number, 0, b"")
        comparison = Comparison(
            lambda offset, length: self._read(descriptor, offset, length),
            size,
            blocks,
            old.size,
            lambda start, end: bytes(self._ask({"type": "chunks", "number": number, "start": start, "end": end})),
            self._make,
        )
        position = 0
        for part, content in comparison.parts():
            if content is None:
                header = {"type": "copy", "number": number, "offset": position, "from": part.start}
                self._send({**header, "length": part.length}, [])
                self._progress(0, part.length)
            else:
                self._piece(number, position, content)
            position += part.length
        return comparison.hasher if position == size else None

    def _is_same(self, descriptor: int, size: int, hasher: Hasher) -> bool:
        """Return whether the start of a file still has the content that was sent."""
        position, again = 0, Hasher(self._make)
        while position < size and (piece := self._read(descriptor, position, size - position)):
            again.update(piece)
            position += len(piece)
        return again.digest() == hasher.digest()

    def _piece(self, number: int, offset: int, content: Any) -> None:
        self._send_content({"type": "piece", "number": number, "offset": offset}, [content])
        self._progress(0, len(content))
        self.sent.bytes += len(content)

    def _read(self, descriptor: int, offset: int, length: int) -> Any:
        """Read a part of a file into the one buffer that is used again and again."""
        if not hasattr(os, "preadv"):
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, min(length, PIECE_BYTES))
        if self._buffer is None:
            self._buffer = memoryview(bytearray(PIECE_BYTES))
        wanted, filled = self._buffer[: min(length, PIECE_BYTES)], 0
        while filled < len(wanted) and (count := os.preadv(descriptor, [wanted[filled:]], offset + filled)):
            filled += count
        return wanted[:filled]
