"""Words to systemd for a unit of `Type=notify`: one datagram each, to the socket that the environment names."""

from __future__ import annotations

import contextlib
import socket

from atoll import settings


def tell(state: str) -> None:
    """Send a state such as `READY=1`; nothing where no systemd waits for it."""
    path = settings.variable("NOTIFY_SOCKET")
    if not path.startswith(("/", "@")):
        return
    name = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(name)
        sender.sendall(state.encode())
