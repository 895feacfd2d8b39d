"""A byte stream to a TCP port inside the sandbox of a worker, through the daemon: for whoever holds the worker's lease."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll import errors
from atoll.host import daemon_start
from atoll.settings import Settings
from atoll.wire.channel import ChannelClosed

if TYPE_CHECKING:
    import socket


def dial(options: Settings, worker: str, port: int) -> socket.socket:
    """Return a socket that is connected to `port` of 127.0.0.1 inside the sandbox of `worker`; the caller owns it.

    A function with network `host` shares the machine's ports.

    Raises:
        ValueError: port or worker cannot be one.
        PortUnreachable: nothing listens there.
        WorkerDied: the worker has ended, or serves no lease of this user.
        HostUnreachable: the daemon does not answer.
    """
    import socket

    check(worker, port)
    control = daemon_start.open_connection(options, {"type": "dial", "worker": worker, "port": port})
    try:
        header = control.receive().header
        if header.get("type") == "failed":
            raise errors.from_data(header.get("error") or {})
        (descriptor,) = control.take_descriptors(1)
    except ChannelClosed as error:
        raise errors.HostUnreachable("the daemon ended", hint="try again") from error
    finally:
        control.close()
    return socket.socket(fileno=descriptor)


def check(worker: object, port: object) -> None:
    """Check what is dialled.

    Raises:
        ValueError: port or worker cannot be one.
    """
    if type(port) is not int or not 0 < port < 1 << 16:
        raise ValueError(f"a port is a number from 1 to 65535, not {port!r}")
    if not isinstance(worker, str) or not worker:
        raise ValueError(f"a worker is named by the text of its lease, not {worker!r}")
