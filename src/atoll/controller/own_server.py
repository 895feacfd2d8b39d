"""The server as this process reaches it: by a Unix socket, with the key of the call that it serves."""

from __future__ import annotations

import http.client
import socket
import sys
from dataclasses import replace
from typing import Any

from atoll.credentials import Credentials
from atoll.host.remote.remote_host import Host
from atoll.host.remote.server import Server
from atoll.model.specs import LeaseSpec

URL = "http://127.0.0.1"
"""Of a host without an address: it is neither resolved nor connected to."""

SECONDS = 60.0
MOST_TEXT = 16 << 20


class _Connection(http.client.HTTPConnection):
    """A connection by a Unix socket."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("127.0.0.1", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = _Socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Socket(socket.socket):
    """A Unix socket, which has no options of TCP."""

    def setsockopt(self, level: int, *option: Any) -> None:
        if level == socket.SOL_SOCKET:
            super().setsockopt(level, *option)


class OwnServer(Server):
    """The server at a Unix socket."""

    def __init__(self, path: str, found: Credentials) -> None:
        super().__init__(found)
        self._socket = path

    def _connect(self, seconds: float) -> http.client.HTTPConnection:
        connection = _Connection(self._socket, seconds)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection

    def text(self, path: str) -> str:
        """See `OwnHost.text`."""
        connection = self._connect(SECONDS)
        try:
            connection.request("GET", path, headers=self._headers())
            answer = connection.getresponse()
            data = answer.read(MOST_TEXT)
            if answer.status >= 400:
                raise self._refusal(answer.status, {}, data)
        except (OSError, http.client.HTTPException) as error:
            raise self.unreachable(error) from error
        finally:
            connection.close()
        return data.decode("utf-8", "replace")


class OwnHost(Host):
    """Runs functions on the server that has started this process.

    Args:
        path: of the server's socket.
        key_id, key_secret: the caller's key.
    """

    def __init__(self, path: str, key_id: str, key_secret: str) -> None:
        super().__init__(URL, key_id=key_id, key_secret=key_secret)
        self._own = OwnServer(path, Credentials(URL, key_id, key_secret))

    @property
    def server(self) -> Server:
        """The server and the caller's key."""
        return self._own

    def text(self, path: str) -> str:
        """Return the answer to a request as text.

        Raises:
            AtollError: the server refuses it.
        """
        return self._own.text(path)

    def travelling(self, spec: LeaseSpec) -> LeaseSpec:
        """See `PooledHost.travelling`; nothing of this process's files travels: the specs are other people's."""
        version = spec.environment.python_version or "{}.{}".format(*sys.version_info)
        return replace(spec, environment=replace(spec.environment, python_version=version, interpreter=""))
