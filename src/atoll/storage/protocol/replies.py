"""The storage peer's end of the protocol: one `done` or one error for each request, and the rights of each client.

The process that starts a peer names its client; the client itself has no influence on that. Code inside a sandbox
talks to its peer freely, and so does a program of the volume's owner. Requests that must not run beside functions can
only be refused here: the daemon alone knows which sandboxes live, and keeps new ones from starting.
"""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import Self

from atoll.errors import AtollError, DiskFull, QuotaExceeded, StateUnusable, SyncError, VolumeBusy
from atoll.terminal_text import printable
from atoll.wire.channel import Channel, ChannelClosed

# --- rights -----------------------------------------------------------------------------------------------------------

DAEMON, PROGRAM, FUNCTION, REMOTE = "daemon", "program", "function", "remote"
"""The clients of a peer: the daemon itself; a program or command of the volume's owner; code inside a sandbox; a program
of a user of a server, elsewhere."""

_REFUSED = {
    DAEMON: frozenset[str](),
    PROGRAM: frozenset({"restore", "collect"}),  # they replace or remove trees that sandboxes may have open
    FUNCTION: frozenset({"restore", "collect", "selftest"}),  # the self-test loads the file system heavily
    REMOTE: frozenset({"restore", "collect", "selftest"}),
}

MOST_MESSAGE_BYTES = {DAEMON: 1 << 30, PROGRAM: 1 << 30, FUNCTION: 64 << 20, REMOTE: 64 << 20}
"""The most that the buffers of one message may add up to."""

MOST_MEMORY_BYTES = {FUNCTION: 512 << 20, REMOTE: 512 << 20}
"""The memory of a peer, which the memory limit of the worker that drives the peer does not cover."""

MOST_SILENT_SECONDS = {FUNCTION: 120.0, REMOTE: 120.0}
"""The longest pause of a client during a sync, which keeps other clients from its target."""


def confine(client: str) -> None:
    """Limit the memory of this process, the peer of such a client."""
    most = MOST_MEMORY_BYTES.get(client)
    if most is not None:
        import resource  # Linux only, and this module is for every platform

        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def check(client: str, request: str) -> None:
    """Refuse a request that this client has no right to.

    Raises:
        VolumeBusy: the request is a restore; the daemon serves those, and refuses them to functions.
        SyncError: any other request.
    """
    if request not in _REFUSED[client]:
        return
    if request == "restore":
        raise VolumeBusy(
            "a volume is restored by the daemon, which sees to it that no function runs meanwhile",
            hint="use `atoll data restore` or `Volume.restore`, and not inside a function",
        )
    raise SyncError(f"`{request}` is not for this client", hint="use the `atoll` command outside functions")


# --- errors -----------------------------------------------------------------------------------------------------------

_VERBS = {
    "attributes": "set mode or times",
    "close": "complete the file",
    "fetch": "read",
    "find": "walk",
    "flush": "write",
    "mkdir": "make the directory",
    "parts_begin": "write",
    "parts_end": "complete the file",
    "parts_write": "write",
    "pread": "read",
    "pwrite": "write",
    "scan": "read",
    "snapshots": "look at snapshots",
    "stat": "look",
}
"""The words for requests in messages, where these differ from the request's name."""
_NAMED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
_HINTS = {
    errno.EPERM: "choose a target that may be changed",
    errno.ENAMETOOLONG: "choose a shorter name; the file system takes 255 bytes",
    errno.ENOTDIR: "choose a target below a directory, or remove what is in its way",
}
REPORTED = (OSError, ValueError, TypeError, KeyError, IndexError, OverflowError)
"""The failures of a request: the file system's errors, and a malformed request."""


class Unreadable(OSError):
    """A path below that of a request cannot be read; `filename` is relative to the request's path."""


def fail(channel: Channel, error: Exception, request: str) -> None:
    """Report an error: those of the volume's file system by name, others with their number."""
    name_error = getattr(channel, "named_error", None)  # of a volume with a quota
    if name_error is not None:
        error = name_error(error)
    if isinstance(error, BlockingIOError) and not isinstance(error, AtollError):
        error = _leased(error)
    if isinstance(error, AtollError) or request == "sync" or not isinstance(error, OSError) or error.errno in _NAMED:
        named = translated(error, f"cannot {_VERBS.get(request, request)}")
        channel.send({"type": "error", "error": named.to_data()})
    else:
        answer = {"type": "error", "errno": error.errno or errno.EIO, "text": error.strerror or str(error)}
        if isinstance(error, Unreadable):
            answer["below"] = error.filename
        channel.send(answer)


def translated(error: Exception, action: str) -> AtollError:
    """Return the named error for a failure of the volume's file system during `action`."""
    if isinstance(error, AtollError):
        return error
    if not isinstance(error, OSError):
        return SyncError(f"{action}: {error}")
    text = (error.strerror or str(error)).lower()
    if error.errno == errno.ENOSPC:
        return DiskFull(f"{action}: the volume's disk is full", hint="free some space there and try again")
    if error.errno == errno.EDQUOT:
        return QuotaExceeded(f"{action}: the volume's quota is used up", hint="remove something and try again")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EIO):
        return StateUnusable(f"{action}: {text}", hint="check that the volume's disk is sound and mounted writable")
    where = f" (`{printable(os.fsdecode(error.filename))}`)" if isinstance(error.filename, (str, bytes)) else ""
    return SyncError(f"{action}: {text}{where}", hint=_HINTS.get(error.errno or 0, ""))


def _leased(error: OSError) -> VolumeBusy:
    """Return the error for a file that a process holds a lease on (`F_SETLEASE`)."""
    name = f"`{printable(os.fsdecode(error.filename))}`" if isinstance(error.filename, (str, bytes)) else "a file"
    return VolumeBusy(
        f"a function holds a lease on {name}", hint="try again when its call has ended; `atoll stop` ends all calls"
    )


# --- conversations ----------------------------------------------------------------------------------------------------

_LAST = frozenset({"commit", "abort", "end"})


class Conversation:
    """A request that the client continues with further messages, up to a `commit`, `abort` or `end`.

    Leaving the block answers `done`. An error is reported at once, and the client's further messages are dropped.
    """

    def __init__(self, channel: Channel, request: str) -> None:
        self._channel = channel
        self._request = request
        self._finished = False
        self.facts: dict[str, object] = {}
        """Fields of the `done` that the client gets."""

    def __enter__(self) -> Self:
        return self

    def finished(self) -> None:
        """Note that the client's last message has arrived."""
        self._finished = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None:
            self._channel.send({"type": "done", **self.facts})
            return True
        if isinstance(error, ChannelClosed) or not isinstance(error, REPORTED):
            return False
        fail(self._channel, error, self._request)
        while not self._finished and self._channel.receive().type not in _LAST:
            pass
        return True
