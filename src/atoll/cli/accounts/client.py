"""Requests of the command line to a server: JSON over HTTP, with the user's key.

No redirect is followed: a key goes to the server that it is for, and to nobody that this one names.
"""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any
from urllib.parse import quote, urlsplit

from atoll import errors
from atoll.credentials import Credentials, address_hint
from atoll.host.remote.server import tls_failure
from atoll.terminal_text import cell, printable

SECONDS = 60.0
MOST_ANSWER_BYTES = 16 << 20


def ask(
    server: Credentials, method: str, path: str, body: dict[str, Any] | None = None, *, with_key: bool = True
) -> dict[str, Any]:
    """Return the answer of a server to a request.

    Args:
        with_key: False for requests of people who have no key yet.

    Raises:
        HostUnreachable: it does not answer, or with something that no server of Atoll says.
        AtollError: as the server answers.
    """
    parts = urlsplit(server.url)
    headers = {"Atoll-Protocol": "1", "Accept": "application/json", "Content-Type": "application/json"}
    if with_key:
        headers["Authorization"] = server.authorization
    connection = _connection(server)
    try:
        connection.request(method, parts.path + path, json.dumps(body).encode() if body is not None else None, headers)
        answer = connection.getresponse()
        data = answer.read(MOST_ANSWER_BYTES + 1)
    except ssl.SSLError as error:
        raise tls_failure(server.url, error, "`atoll auth login --ca-file FILE`") from error
    except (OSError, http.client.HTTPException) as error:
        raise errors.HostUnreachable(
            f"`{printable(server.url)}` does not answer: {cell(str(error), 200)}",
            hint=_hint(server.url, error),
        ) from error
    finally:
        connection.close()
    try:
        if len(data) > MOST_ANSWER_BYTES:
            raise ValueError("it is too long")
        value = json.loads(data)
        if not isinstance(value, dict):
            raise ValueError("it is no object")
        if answer.status == 404 and value["error"]["code"] == "http":
            raise ValueError("there is no such route")
        if answer.status >= 400:
            raise errors.from_data(dict(value["error"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise errors.HostUnreachable(
            f"`{printable(server.url)}` answers {answer.status} as no server of Atoll does",
            hint=address_hint(server.url, "look at the address, and at proxies before the server"),
        ) from error
    return value


def _hint(url: str, error: Exception) -> str:
    closed = isinstance(error, http.client.BadStatusLine | ConnectionResetError)  # as a port of TLS does to plain HTTP
    if closed and url.startswith("http://"):
        return f"if it speaks TLS, its address is `https{printable(url.removeprefix('http'))}`"
    return "look at the address, and at the server"


def part(name: str) -> str:
    """Return a name as one part of a path."""
    return quote(name, safe="")


def _connection(server: Credentials) -> http.client.HTTPConnection:
    parts = urlsplit(server.url)
    host = parts.hostname or ""
    if parts.scheme == "http":
        return http.client.HTTPConnection(host, parts.port or 80, timeout=SECONDS)
    try:
        context = ssl.create_default_context(cafile=server.ca_file or None)
    except OSError as error:
        raise errors.HostUnreachable(
            f"cannot read the certificates in `{printable(server.ca_file)}`: {error.strerror or error}",
            hint="give a file of certificates in PEM",
        ) from error
    return http.client.HTTPSConnection(host, parts.port or 443, timeout=SECONDS, context=context)
