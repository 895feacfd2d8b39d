"""Files that arrive in several requests: what has come stays in staging, and a later request goes on there. Linux only.

    upload(path, upload, first, total)   data... commit | abort    done(received[, status])
    upload_state(path, upload)                                     done(received)
    upload_drop(path, upload)                                      done

The client names its upload; a name is one for each path. `first` is the number of bytes that have come before. The
bytes of a connection that breaks stay. When `total` bytes are there, the file gets its path in one step.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from atoll import linux
from atoll.storage.files.tree import check_path
from atoll.storage.peer.replacing import Replacing
from atoll.storage.protocol.replies import Conversation
from atoll.storage.volume.locks import RestoreLock
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import leftovers, name_of
from atoll.wire.channel import Channel

MOST_UPLOADS = 200
"""Unfinished uploads of one volume."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Uploads:
    """Answer one client's requests about uploads.

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
        return {"upload": self._upload, "upload_state": self._state, "upload_drop": self._drop}

    def _upload(self, header: dict[str, Any], _: list[bytearray]) -> None:
        with Conversation(self._channel, "upload") as conversation, self._opened(header) as (name, descriptor):
            first, total = int(header["first"]), int(header["total"])
            if first != os.fstat(descriptor).st_size:
                raise OSError(errno.EINVAL, "the upload does not go on at that byte")
            received = os.lseek(descriptor, 0, os.SEEK_END)
            while (message := self._channel.receive()).type == "data":
                for content in message.buffers:
                    received += len(content)
                    if received > total:
                        raise OSError(errno.EINVAL, "more bytes came than were announced")
                    linux.write_all(descriptor, content)
            conversation.finished()
            if message.type != "commit":
                return
            conversation.facts["received"] = received
            if received == total:
                status = self._replacing.replace(header["path"], name, descriptor, header)
                conversation.facts["status"] = ["", *status]
            else:
                os.fsync(descriptor)

    def _state(self, header: dict[str, Any], _: list[bytearray]) -> None:
        received = None
        with contextlib.suppress(FileNotFoundError):
            received = os.stat(
                name_in_staging("upload", header), dir_fd=self._volume.staging, follow_symlinks=False
            ).st_size
        self._channel.send({"type": "done", "received": received})

    def _drop(self, header: dict[str, Any], _: list[bytearray]) -> None:
        os.unlink(name_in_staging("upload", header), dir_fd=self._volume.staging)
        self._channel.send({"type": "done"})

    @contextlib.contextmanager
    def _opened(self, header: dict[str, Any]) -> Iterator[tuple[str, int]]:
        """Open the file of an upload, made if nothing has come yet; one request at a time has it."""
        name = name_in_staging("upload", header)
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, dir_fd=self._volume.staging)
        except FileNotFoundError:
            if sum(1 for _ in leftovers(self._volume.staging, "upload")) >= MOST_UPLOADS:
                raise OSError(errno.EMFILE, "too many uploads to this volume are unfinished") from None
            descriptor = os.open(name, flags | os.O_CREAT, 0o600, dir_fd=self._volume.staging)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(errno.EBUSY, "another request sends to this upload") from None
            yield name, descriptor
        finally:
            os.close(descriptor)


def name_in_staging(kind: str, header: dict[str, Any]) -> str:
    """Return the name of an upload's file in staging.

    Raises:
        OSError: an upload cannot have that name.
    """
    path, upload = check_path(header["path"]), header["upload"]
    if not isinstance(upload, str) or not _NAME.fullmatch(upload):
        raise OSError(errno.EINVAL, "an upload's name has letters, digits, `_` and `-`, at most 64")
    key = hashlib.sha256(f"{path}\0{upload}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return name_of(kind, key)
