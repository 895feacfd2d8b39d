"""How a storage peer answers: one `done` or one error for each request."""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import Self

from atoll.errors import AtollError, VolumeBusy
from atoll.storage.files.tree import printable
from atoll.storage.volume import locate
from atoll.wire.channel import Channel, ChannelClosed

_LAST = frozenset({"commit", "abort", "end"})
_VERBS = {
    "attributes": "set mode or times",
    "close": "complete the file",
    "fetch": "read",
    "find": "walk",
    "flush": "write",
    "mkdir": "make the directory",
    "pread": "read",
    "pwrite": "write",
    "scan": "read",
    "stat": "look",
}
"""What people call requests that are not called what they do."""
_NAMED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
REPORTED = (OSError, ValueError, TypeError, KeyError, IndexError, OverflowError)
"""What a request may fail with: the file system's errors, and a malformed request."""


class Unreadable(OSError):
    """Something cannot be read below the path of a request; `filename` is relative to that."""


def fail(channel: Channel, error: Exception, request: str) -> None:
    """Report an error: those of the volume's file system by name, others with their number."""
    if isinstance(error, BlockingIOError) and not isinstance(error, AtollError):
        error = _leased(error)
    if isinstance(error, AtollError) or request == "sync" or not isinstance(error, OSError) or error.errno in _NAMED:
        named = locate.translated(error, f"cannot {_VERBS.get(request, request)}")
        channel.send({"type": "error", "error": named.to_data()})
    else:
        answer = {"type": "error", "errno": error.errno or errno.EIO, "text": error.strerror or str(error)}
        if isinstance(error, Unreadable):
            answer["below"] = error.filename
        channel.send(answer)


def _leased(error: OSError) -> VolumeBusy:
    """Return the error for a file that a process has asked to keep for itself (`F_SETLEASE`)."""
    name = f"`{printable(os.fsdecode(error.filename))}`" if isinstance(error.filename, (str, bytes)) else "a file"
    return VolumeBusy(
        f"a function holds a lease on {name}", hint="try again when its call has ended; `atoll stop` ends all calls"
    )


class Conversation:
    """A request to which the client has more to say, up to a `commit`, `abort` or `end`.

    Leaving it answers `done`; an error is reported at once, and what the client still says is thrown away.
    """

    def __init__(self, channel: Channel, request: str) -> None:
        self._channel = channel
        self._request = request
        self._finished = False

    def __enter__(self) -> Self:
        return self

    def finished(self) -> None:
        """Say that the client has said its last word."""
        self._finished = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None:
            self._channel.send({"type": "done"})
            return True
        if isinstance(error, ChannelClosed) or not isinstance(error, REPORTED):
            return False
        fail(self._channel, error, self._request)
        while not self._finished and self._channel.receive().type not in _LAST:
            pass
        return True
