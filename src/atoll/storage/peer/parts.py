"""Files that arrive in parts, several at a time and in any order: one file in staging has them all. Linux only.

    parts_begin(path, upload)                                  done
    parts_write(path, upload, offset) with content             done
    parts_end(path, upload, size[, sum, suffix, wanted])       done(sum[, status])
    parts_drop(path, upload)                                   done

The client knows which parts have come; here they are bytes at offsets. Only `parts_end` gives the file its path, in one
step, and whatever was written beyond `size` is cut off. An upload to which nobody writes is removed a day later.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from atoll import linux
from atoll.storage.peer.replacing import Replacing
from atoll.storage.peer.uploads import name_in_staging
from atoll.storage.volume.locks import RestoreLock
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import has_name, leftovers
from atoll.wire.channel import Channel

MOST_UPLOADS = 200
"""Unfinished uploads of one volume."""
SUMS = frozenset({"md5", "sha256"})
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE_BYTES = 1 << 20


class Parts:
    """Answer one client's requests about uploads in parts.

    Args:
        volume: the volume's directories.
        channel: the client.
        lock: excludes restores while the volume changes.
    """

    def __init__(self, volume: VolumeRoot, channel: Channel, lock: RestoreLock) -> None:
        self._volume = volume
        self._channel = channel
        self._replacing = Replacing(volume, channel, lock)

    def requests(self) -> dict[str, Callable[[dict[str, Any], list[bytearray]], None]]:
        """Return the handlers of requests, by the type of their message."""
        return {
            "parts_begin": self._begin,
            "parts_write": self._write,
            "parts_end": self._end,
            "parts_drop": self._drop,
        }

    def _begin(self, header: dict[str, Any], _: list[bytearray]) -> None:
        if sum(1 for _ in leftovers(self._volume.staging, "parts")) >= MOST_UPLOADS:
            raise OSError(errno.EMFILE, "too many uploads to this volume are unfinished")
        os.close(os.open(self._name(header), _FLAGS | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._volume.staging))
        self._channel.send({"type": "done"})

    def _write(self, header: dict[str, Any], buffers: list[bytearray]) -> None:
        with self._opened(header, fcntl.LOCK_SH) as (_, descriptor):
            os.lseek(descriptor, int(header["offset"]), os.SEEK_SET)
            for content in buffers:
                linux.write_all(descriptor, content)
        self._channel.send({"type": "done"})

    def _end(self, header: dict[str, Any], _: list[bytearray]) -> None:
        size, wanted = int(header["size"]), header.get("wanted")
        with self._opened(header, fcntl.LOCK_EX) as (name, descriptor):
            if os.fstat(descriptor).st_size < size:
                raise OSError(errno.EINVAL, "bytes of the upload are missing")
            os.ftruncate(descriptor, size)
            found = _sum(descriptor, header)
            answer: dict[str, Any] = {"type": "done", "sum": found}
            if wanted is None or found == wanted:
                answer["status"] = ["", *self._replacing.replace(header["path"], name, descriptor, header)]
        self._channel.send(answer)

    def _drop(self, header: dict[str, Any], _: list[bytearray]) -> None:
        os.unlink(self._name(header), dir_fd=self._volume.staging)
        self._channel.send({"type": "done"})

    def _name(self, header: dict[str, Any]) -> str:
        return name_in_staging("parts", header)

    @contextlib.contextmanager
    def _opened(self, header: dict[str, Any], lock: int) -> Iterator[tuple[str, int]]:
        """Open the file of an upload that is not complete: requests that write share it, the last one has it alone."""
        name = self._name(header)
        descriptor = os.open(name, _FLAGS, dir_fd=self._volume.staging)
        try:
            fcntl.flock(descriptor, lock)
            if not has_name(self._volume.staging, name, descriptor):  # it has got its path meanwhile
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            yield name, descriptor
        finally:
            os.close(descriptor)


def _sum(descriptor: int, header: dict[str, Any]) -> str | None:
    """Return the digest of a file, and of a text behind it, in hexadecimal digits; None where none is asked for."""
    kind = header.get("sum")
    if kind is None:
        return None
    if kind not in SUMS:
        raise ValueError(f"unknown sum `{kind}`")
    found, offset = hashlib.new(kind, usedforsecurity=False), 0
    while content := os.pread(descriptor, _PIECE_BYTES, offset):
        found.update(content)
        offset += len(content)
    found.update(str(header.get("suffix") or "").encode())
    return found.hexdigest()
