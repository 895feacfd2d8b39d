"""Guard of a volume's quota in a storage peer: what adds is refused once nothing more fits, what removes never is.

Theory of operation. The node keeps a user's limits in a file without a name, which all peers of the user have open: they
read it again before each request that adds. Where the kernel enforces the quota, the guard only names its refusals. Else
the peer, which works for the volume's owner alone, walks through the volume before such a request, if the last walk is
old, and counts the bytes that come after that. A request that would pass the limit fails where it is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from dataclasses import replace

from atoll.errors import QuotaExceeded
from atoll.model.quota import Quota
from atoll.storage.files.usage_walk import measure
from atoll.wire.channel import Channel
from atoll.wire.frames import Message

ADDING = frozenset(
    {"mkdir", "open", "pwrite", "write", "copy", "sync", "snapshot", "upload", "parts_begin", "parts_write"}
)
"""Requests that add bytes or names."""

MOST_SHEET_BYTES = 4096
MEASURE_SECONDS = 5.0
FRESH_SECONDS = 5.0
REST = 20.0


class QuotaGuard:
    """The quota of one peer's volume.

    Args:
        root: the volume.
        sheet: a descriptor of the file with the limits, and who enforces them.
    """

    def __init__(self, root: str, sheet: int) -> None:
        self._root = root
        self._sheet = sheet
        self._text = b""
        self._quota = Quota()
        self._due = 0.0
        self._adding = False

    def before(self, message: Message) -> None:
        """Look before a request.

        Raises:
            QuotaExceeded: it adds, and nothing more fits.
        """
        self._adding = False
        if message.type not in ADDING or (message.type == "open" and message.header.get("mode") == "read"):
            return
        self._look()
        if self._quota.kind != "measured":
            return
        if time.monotonic() >= self._due:
            found = measure(self._root, MEASURE_SECONDS)
            self._due = time.monotonic() + max(FRESH_SECONDS, REST * found.seconds)
            self._quota = replace(
                self._quota,
                used_bytes=found.bytes,
                used_files=found.files,
                complete=found.complete,
                measured_at=time.time(),
            )
        if self._quota.exceeded:
            self._due = 0.0  # something may be removed before the next one
            raise self._quota.error()
        self._adding = True
        self.came(sum(len(one) for one in message.buffers))

    def _look(self) -> None:
        """Read the limits again."""
        text = os.pread(self._sheet, MOST_SHEET_BYTES, 0).rstrip(b"\0 \n")
        if text != self._text:
            with contextlib.suppress(ValueError, TypeError):  # it is just being written
                self._quota = Quota.from_data(json.loads(text or b"{}"))
                self._text, self._due = text, 0.0

    def over(self) -> None:
        """Count nothing more: the request has been answered."""
        self._adding = False

    def came(self, size: int) -> None:
        """Count bytes that have come for a request that adds.

        Raises:
            QuotaExceeded: they do not fit; once for each request.
        """
        if not self._adding:
            return
        self._quota = replace(self._quota, used_bytes=self._quota.used_bytes + size)
        if self._quota.exceeded:
            self._adding, self._due = False, 0.0
            raise self._quota.error("the rest does not fit")

    def named(self, error: Exception) -> Exception:
        """Return an error of the file system, by the quota's name where that is its cause.

        ext4 says that the quota is used up, and XFS that a project's disk is full.
        """
        if isinstance(error, QuotaExceeded) or not isinstance(error, OSError):
            return error
        quota = self._quota
        if error.errno == errno.EDQUOT or (error.errno == errno.ENOSPC and quota.kind == "project" and self._is_full()):
            found = os.statvfs(self._root)
            used = (found.f_blocks - found.f_bavail) * found.f_frsize if quota.kind == "project" else quota.used_bytes
            return replace(quota, used_bytes=used or quota.bytes).error()
        return error

    def _is_full(self) -> bool:
        """Return whether the project is full, and not the disk: `statvfs` in a project tells of its limits."""
        found = os.statvfs(self._root)
        limited = self._quota.bytes and found.f_blocks * found.f_frsize <= self._quota.bytes + (1 << 20)
        return bool(limited) or bool(self._quota.files and found.f_files <= self._quota.files)


class CountedChannel(Channel):
    """A channel whose received buffers count for a quota."""

    guard: QuotaGuard | None = None

    def named_error(self, error: Exception) -> Exception:
        """Return an error as the client gets it; what comes after it does not count."""
        if self.guard is None:
            return error
        self.guard.over()
        return self.guard.named(error)

    def receive(self) -> Message:
        """See `Channel.receive`.

        Raises:
            QuotaExceeded: what has come does not fit.
        """
        message = super().receive()
        if self.guard is not None and message.buffers:
            self.guard.came(sum(len(one) for one in message.buffers))
        return message
