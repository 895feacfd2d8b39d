"""Connections to the daemon from inside a worker, over the worker's own control channel.

There is no socket of the daemon in a sandbox. For each connection that the SDK in a worker needs, one end of a fresh
socket pair is sent to the daemon, which serves it as a client whose user and parent call it knows.
"""

from __future__ import annotations

import errno
import os
import threading
import time

from atoll.errors import HostUnreachable, SerializationError
from atoll.wire.channel import Channel, Socket, pair

CROWDED_SECONDS = 5.0
"""Seconds to wait while too many of the user's descriptors wait in sockets."""
_PAUSE_SECONDS = 0.05

_control: tuple[int, Channel] | None = None

call = ""
"""The call that this worker runs: the parent of those that its code makes."""

_unpickling = 0


def refuse(thread: int) -> None:
    """Refuse calls of this thread, until 0 is given: while it unpickles a function, which may import the program.

    A module that calls a function when it is imported would make workers without an end.
    """
    global _unpickling
    _unpickling = thread


def use(control: Channel) -> None:
    """Let `connect` go over this channel; called by the worker, once."""
    global _control
    _control = (os.getpid(), control)


def inside() -> bool:
    """Return whether this process is a worker, or a child that a worker forked."""
    return _control is not None


def connect() -> Socket:
    """Return a fresh connection to the daemon.

    Raises:
        ChannelClosed: the daemon is gone.
        HostUnreachable: too many descriptors wait in sockets.
        SerializationError: the worker is just importing the program.
    """
    assert _control is not None, "only a worker has a channel to the daemon"
    if _unpickling == threading.get_ident():
        raise SerializationError(
            "the program calls an isolated function while a worker imports it",
            hint='put the program\'s own calls below `if __name__ == "__main__":`',
        )
    ours, theirs = pair()
    try:
        _send(_control[1], theirs)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours


def _send(control: Channel, theirs: Socket) -> None:
    """Send the daemon its end; for a while again where too many of this user's descriptors wait in sockets."""
    until = time.monotonic() + CROWDED_SECONDS
    while True:
        try:
            control.send({"type": "connect"}, descriptors=[theirs.fileno()])
            return
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            if time.monotonic() >= until:
                raise HostUnreachable(
                    "the daemon cannot be reached: code of this user has too many descriptors waiting in sockets",
                    hint="end the function that sends descriptors which nobody receives, and try again",
                ) from error
        time.sleep(_PAUSE_SECONDS)
