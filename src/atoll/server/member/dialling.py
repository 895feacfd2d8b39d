"""Connections that a member dials: a WebSocket's handshake with the node's credentials, then bytes of its own.

TLS is checked as a client's is, and the way leads by the proxy that the environment names, as a client's does.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from atoll import errors
from atoll.host.remote import proxies
from atoll.server import versions
from atoll.wire import websocket

HEAD_SECONDS = 15.0
MOST_HEAD = 64 << 10


class Address:
    """The server as a member reaches it.

    Args:
        url: as the member has joined it.
        credentials: the value of `Authorization`.
        ca_file: certificates of authorities to trust in place of the system's; empty for these.
    """

    def __init__(self, url: str, credentials: str, ca_file: str = "") -> None:
        parts = urlsplit(url)
        self.url = url
        self.secure = parts.scheme == "https"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if self.secure else 80)
        self.path = parts.path.rstrip("/")
        self.credentials = credentials
        self.context: ssl.SSLContext | None = None
        if self.secure:
            self.context = ssl.create_default_context(cafile=ca_file or None)
            self.context.minimum_version = ssl.TLSVersion.TLSv1_2


class _Head(asyncio.Protocol):
    """The reading of the answer's head; another protocol takes the transport then."""

    def __init__(self) -> None:
        self.data = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.data += data
        if not self.done.done() and (b"\r\n\r\n" in self.data or len(self.data) > MOST_HEAD):
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionResetError("the server has closed the connection"))


async def dial(
    address: Address, path: str, make: Callable[[asyncio.Transport], asyncio.Protocol]
) -> tuple[asyncio.Transport, asyncio.Protocol]:
    """Return a connection past its handshake, and the protocol that has it.

    Raises:
        NotAuthorized: the server does not know this node any more.
        ProtocolMismatch: it is no server of this kind.
        HostUnreachable: it refuses for another reason.
        OSError, TimeoutError: it cannot be reached.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(HEAD_SECONDS):
        server_name = address.host if address.secure else None
        transport, head = await loop.create_connection(
            _Head, ssl=address.context, server_hostname=server_name, **await _way(address)
        )
        try:
            key = base64.b64encode(os.urandom(16)).decode()
            fields = {
                "Host": f"{address.host}:{address.port}",
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": key,
                "Authorization": address.credentials,
                "Atoll-Node-Protocol": f"{versions.NODE_LOWEST}-{versions.NODE_HIGHEST}",
            }
            text = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            transport.write(f"GET {address.path}{path} HTTP/1.1\r\n{text}\r\n".encode("ascii"))
            await head.done
            rest = _check(head.data, key, transport)
        except BaseException:
            transport.abort()
            raise
    protocol = make(transport)
    transport.set_protocol(protocol)
    transport.resume_reading()
    if rest:
        protocol.data_received(rest)
    return transport, protocol


async def _way(address: Address) -> dict[str, Any]:
    """Return the server's host and port; behind a proxy a socket that leads there.

    Raises:
        OSError: the proxy cannot be reached, or refuses.
    """
    proxy = proxies.proxy_of(address.host, address.port, secure=address.secure)
    if proxy is None:
        return {"host": address.host, "port": address.port}

    def connect() -> socket.socket:
        connection = http.client.HTTPConnection(proxy.host, proxy.port, timeout=HEAD_SECONDS)
        connection.set_tunnel(address.host, address.port, proxy.headers)
        try:
            connection.connect()
        except http.client.HTTPException as error:
            connection.close()
            raise ConnectionError(f"the proxy does not answer as one: {error}") from error
        except BaseException:
            connection.close()
            raise
        connection.sock.setblocking(False)
        return connection.sock

    return {"sock": await asyncio.to_thread(connect)}


def _check(data: bytes, key: str, transport: asyncio.Transport) -> bytes:
    """Return the bytes behind the head of an answer that accepts."""
    transport.pause_reading()
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (text.partition(":") for text in lines)}
    status = first.split(" ")[1] if first.startswith("HTTP/1.1 ") else ""
    if status == "101" and headers.get("sec-websocket-accept") == websocket.accepted(key):
        return rest
    described: Any = None
    with contextlib.suppress(ValueError, TypeError, KeyError):
        described = json.loads(rest)["error"]
    if isinstance(described, dict):
        raise errors.from_data(described)
    raise errors.ProtocolMismatch(
        f"the server answers `{first[:100]}` to a machine that links",
        hint="check its address, and that it is an atoll server",
    )
