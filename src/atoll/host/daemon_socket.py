"""Connections to the daemon's socket, made only where no other user can have put it, and only to this user's daemon.

The state directory and `run/` are checked by their descriptors (`ownership`), the connection goes through them, and
the kernel names the peer: `SO_PEERCRED` is the user who listened. All before a byte is sent or read.
"""

from __future__ import annotations

import _socket  # as in `wire.channel`
import errno
import os
import sys

from atoll import ownership
from atoll.errors import StateUntrusted
from atoll.settings import Settings
from atoll.wire.channel import Socket, connect_below

_CREDENTIALS_BYTES = 12
_SO_PEERPIDFD = 77  # Linux 6.5
NAME = "daemon.sock"


def connect(options: Settings) -> Socket:
    """Return a connection to this user's daemon.

    Raises:
        StateUntrusted: another user can change the state directory, or is the one who listens.
        OSError: nobody listens.
    """
    with ownership.directory(options.home) as home, home.enter("run") as run:
        connection = connect_below(run.descriptor, NAME)
    try:
        check_peer(connection, options)
    except BaseException:
        connection.close()
        raise
    return connection


def check_peer(connection: Socket, options: Settings) -> None:
    """Check that the process that listened belongs to this user; root's programs use no daemon of another user either.

    Raises:
        StateUntrusted: it does not.
    """
    uid = _credentials(connection)[1]
    if uid != os.geteuid():
        raise StateUntrusted(
            f"the user {uid} listens on `{options.socket_path}`, not your own daemon; nothing was sent",
            hint="set ATOLL_HOME to a directory of your own, or run this as that user",
            path=str(options.socket_path),
            uid=uid,
        )


def daemon_pidfd(options: Settings) -> tuple[int, int] | None:
    """Return number and pidfd of the process that listens, which the caller closes; None when nobody listens.

    Raises:
        StateUntrusted: as `connect`.
    """
    try:
        connection = connect(options)
    except StateUntrusted:
        raise
    except OSError:
        return None
    try:
        pid = _credentials(connection)[0]
        try:
            return pid, connection.getsockopt(_socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise  # the daemon has ended meanwhile
            return pid, os.pidfd_open(pid)
    except OSError:
        return None
    finally:
        connection.close()


def _credentials(connection: Socket) -> tuple[int, int]:
    """Return pid and uid of the process that listened."""
    data = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS_BYTES)
    return int.from_bytes(data[:4], sys.byteorder), int.from_bytes(data[4:8], sys.byteorder)
