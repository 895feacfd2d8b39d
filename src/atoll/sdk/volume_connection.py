"""What all methods of a `Volume` stand on: a host, and connections to its storage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from atoll.sdk.volume_connections import StorageClients

if TYPE_CHECKING:
    from atoll.host.contract import Host
    from atoll.storage.client.volume import VolumeClient


class VolumeConnection:
    """Connections to the caller's volume on a host.

    Args:
        host: whose volume; the local host's by default.
    """

    def __init__(self, host: Host | None = None) -> None:
        if host is None:
            from atoll.host.local import local

            host = local
        if not hasattr(host, "open_storage"):
            raise TypeError(f"`host` must be a host such as `local`, is {host!r}")
        self.host = host
        self.clients = StorageClients(host)
        """Its connections."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.host!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.host,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections, and files that are still open: those that are being written are dropped.

        The volume can be used again; such a file cannot, which is a `ValueError` as for all closed files.
        """
        self.clients.close()

    @contextlib.contextmanager
    def lent(self) -> Iterator[VolumeClient]:
        """Lend this thread the client that requests go through: for what no method does."""
        with self.clients.lend() as lent:
            yield lent.client
