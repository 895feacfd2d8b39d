"""The edge of the application: bounds of bodies, versions, addresses behind proxies, headers of answers, and the log."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException

from atoll import errors
from atoll.server import versions
from atoll.server.addresses import client_address, is_trusted
from atoll.server.logs import RequestLines

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from atoll.server.state import ServerState

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
"""Headers of answers that have none of their own."""


class TooLarge(HTTPException):
    """The body has more bytes than its route takes."""

    def __init__(self, most: int) -> None:
        super().__init__(413, f"the body has more than {most} bytes, the most here")


def is_lost(scope: Any, headers: dict[bytes, bytes]) -> bool:
    """Return whether a client of Atoll's asks for the server below a path where there is none: it hears so."""
    return b"atoll-protocol" in headers and "/v1/" in scope["path"][1:]


def arrive(scope: Any, headers: dict[bytes, bytes], trusted: tuple[str, ...]) -> bytes:
    """Return the id of a request that has come; note that in its scope, and what a proxy that is trusted says of the client."""
    given = headers.get(b"x-request-id", b"")
    peer = scope["client"][0] if scope["client"] else ""
    believed = bool(trusted) and is_trusted(peer, trusted)
    request = given if believed and _REQUEST_ID.fullmatch(given) else secrets.token_hex(8).encode()
    if believed:
        every = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
        address = client_address(scope["client"], every.decode("latin-1"), trusted)
        scope["client"] = (address, scope["client"][1])
        if headers.get(b"x-forwarded-proto") in (b"https", b"http"):
            scope["scheme"] = headers[b"x-forwarded-proto"].decode()
    scope["atoll.request"] = request.decode()
    return request


class Ends:
    """Notes the ends of requests: in the log, and for figures.

    Args:
        observe: takes method, route, status and seconds of each request.
    """

    def __init__(self, observe: Callable[[str, str, int, float], None] | None = None) -> None:
        self._observe = observe
        self.lines = RequestLines()

    def note(self, scope: Any, status: int, seconds: float) -> None:
        """Note the end of a request that has arrived."""
        if self._observe is not None:
            route = getattr(scope.get("route"), "path", "") or "other"
            self._observe(scope["method"], route, status, seconds)
        self.lines.add(
            request=scope["atoll.request"],
            method=scope["method"],
            path=scope["path"][:500],  # a query may have tokens
            status=status,
            ms=round(seconds * 1000, 1),
            address=scope["client"][0] if scope["client"] else "",
            user=scope.get("atoll.user", ""),
        )


class Edge:
    """The application's outermost layer.

    Args:
        ends: notes how requests end.
    """

    def __init__(self, app: ASGIApp, state: ServerState, ends: Ends | None = None) -> None:
        self._app = app
        self._state = state
        self._ends = ends or Ends()
        self._bounds = sorted(state.body_bytes.items(), key=lambda item: -len(item[0]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Exchange(self._app, self._state, scope, receive, send).run(self._most(scope["path"]), self._ends)

    def _most(self, path: str) -> int:
        return next((most for beginning, most in self._bounds if path.startswith(beginning)), 1 << 20)


class _Exchange:
    """One request and its answer."""

    def __init__(self, app: ASGIApp, state: ServerState, scope: Scope, receive: Receive, send: Send) -> None:
        self._app, self._state, self._scope, self._receive, self._send = app, state, scope, receive, send
        self._status = 0
        self._taken = 0
        self._most = 0
        self._id = b""
        self._version = b""

    async def run(self, most: int, ends: Ends) -> None:
        scope, began = self._scope, time.perf_counter()
        headers = dict(scope["headers"])
        self._id = arrive(scope, headers, self._state.options.trusted_proxies)
        self._most = most
        try:
            if scope["path"].startswith("/v1/"):
                self._version = str(versions.agreed(headers.get(b"atoll-protocol", b"").decode("latin-1"))).encode()
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length) > most:
                raise TooLarge(most)
            gateway = self._state.parts.get("gateway")
            if gateway is not None and not is_lost(scope, headers) and gateway.serves(scope):
                scope["app"] = self._app  # as Starlette does, for who asks for the state
                await gateway(scope, self.receive, self.send)
            else:
                await self._app(scope, self.receive, self.send)
        except errors.ProtocolMismatch as error:
            await self._fail(426, error.to_data(), [(b"upgrade", b"atoll/1")])
        except TooLarge as error:
            data = {"code": "http", "message": error.detail, "hint": "send less at a time", "details": {}}
            await self._fail(413, data, [])
        finally:
            ends.note(scope, self._status, time.perf_counter() - began)

    async def _fail(self, status: int, error: dict[str, Any], more: list[tuple[bytes, bytes]]) -> None:
        if self._status:
            raise RuntimeError("the answer has begun")
        body = json.dumps({"error": error}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def receive(self) -> Message:
        """Give a part of the body to the application.

        Raises:
            TooLarge: it has more bytes than may be.
        """
        message = await self._receive()
        self._taken += len(message.get("body", b""))
        if self._taken > self._most:
            raise TooLarge(self._most)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer, with the headers that it lacks."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = list(message.get("headers", []))
            names = {name.lower() for name, _ in headers}
            if "atoll.endpoint" not in self._scope:  # the pages of functions decide for themselves
                headers += [item for item in _HEADERS if item[0] not in names]
            headers.append((b"x-request-id", self._id))
            if self._version:
                headers.append((b"atoll-protocol", self._version))
            message = {**message, "headers": headers}
        await self._send(message)
