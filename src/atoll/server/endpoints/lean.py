"""Requests for endpoints whose body is whole and small: nothing but what they need stands between client and runner.

Theory of operation. The connection's class asks for each request whether it can be answered so; else it goes the usual
way through the application. An answer that is whole when its head has come is written at once, as one piece; any other
is sent on as it comes. Bounds, callers, places and errors are those of the gateway.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import cast

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE, RequestResponseCycle

from atoll import errors
from atoll.server.edge import Ends, arrive, is_lost
from atoll.server.endpoints.gateway import Gateway, Place, asked_of
from atoll.server.endpoints.passing import ask_any
from atoll.server.endpoints.request_body import Body
from atoll.server.state import ServerState

METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
MOST_BYTES = 64 << 10
"""Of a body that goes this way."""


class Lean:
    """Answers some requests for endpoints.

    Args:
        app: whose state handlers look for.
        ends: notes how requests end.
    """

    def __init__(self, state: ServerState, app: ASGIApp, ends: Ends) -> None:
        self._gateway: Gateway = state.parts["gateway"]
        self._trusted = state.options.trusted_proxies
        self._app, self._ends = app, ends

    def __call__(self, cycle: RequestResponseCycle, flow: FlowControl, usual: ASGIApp) -> ASGIApp:
        """Return what answers a request whose head has come.

        Args:
            cycle: uvicorn's, of this request.
            flow: of its connection.
            usual: answers all others.
        """
        scope = cycle.scope
        if scope["method"] not in METHODS or cycle.waiting_for_100_continue:
            return usual
        place = self._gateway.addressed(scope)
        if place is None:
            return usual

        async def answer(_scope: Scope, receive: Receive, send: Send) -> None:
            headers = dict(cycle.scope["headers"])
            await _small_body(cycle, headers)
            if self._takes(cycle, place, headers):
                await self._answer(cycle, flow, place, headers)
            else:
                await usual(_scope, receive, send)

        return answer

    def _takes(self, cycle: RequestResponseCycle, place: Place, headers: dict[bytes, bytes]) -> bool:
        """Return whether a request can be answered this way, now that a small body has come."""
        if cycle.more_body or len(cycle.body) > MOST_BYTES or is_lost(cycle.scope, headers):
            return False
        revision = self._gateway.known(place.owner, place.alias)
        return revision is not None and not revision.options.cors

    async def _answer(
        self, cycle: RequestResponseCycle, flow: FlowControl, place: Place, headers: dict[bytes, bytes]
    ) -> None:
        began, scope = time.perf_counter(), cast("Scope", cycle.scope)
        own = b"x-request-id", arrive(scope, headers, self._trusted)
        scope["app"], scope["atoll.endpoint"] = self._app, True
        receive = cast("Receive", cycle.receive)
        request = Request(scope, receive)
        status = 0

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], own]}
            await cycle.send(message)  # type: ignore[arg-type]

        try:
            status = await self._pass(cycle, flow, place, request, send, own)
        except (errors.AtollError, TimeoutError) as error:
            await (await self._gateway.failed(error, request))(scope, receive, send)
        finally:
            self._ends.note(scope, status, time.perf_counter() - began)

    async def _pass(
        self,
        cycle: RequestResponseCycle,
        flow: FlowControl,
        place: Place,
        request: Request,
        send: Send,
        own: tuple[bytes, bytes],
    ) -> int:
        """Give the request to a runner and its answer to the client; return the status of that."""
        revision, caller = await self._gateway.admit(request, place)
        asked = asked_of(cycle.scope, revision, caller, place)
        pool = self._gateway.runners.pool(revision)
        body = bytes(cycle.body)  # who looks for the client's end takes it meanwhile
        began, status = time.monotonic(), 0
        try:
            with Body(request, False).ending(asyncio.current_task()):
                runner, answer = await ask_any(pool, asked, body)
                try:
                    status = answer.status
                    try:
                        whole = answer.exchange.rest() if status not in (204, 304) else None
                        if whole is None:
                            await self._gateway.stream(answer, asked, request, caller, send)
                        else:
                            if flow.write_paused:
                                await flow.drain()
                            _write(cycle, status, [*answer.kept(own_host=asked.own_host), own], whole)
                    finally:
                        runner.give_back(answer.exchange)
                finally:
                    pool.give_back(runner)
        finally:
            now = time.monotonic()
            pool.figures.note(now - began, status, now)
        return status


async def _small_body(cycle: RequestResponseCycle, headers: dict[bytes, bytes]) -> None:
    """Wait for a body whose length is told, and small: many clients send it behind the head."""
    length = headers.get(b"content-length", b"")
    if b"transfer-encoding" in headers or not length.isdigit() or int(length) > MOST_BYTES:
        return
    while cycle.more_body and not cycle.disconnected:
        await cycle.message_event.wait()
        cycle.message_event.clear()
    cycle.message_event.set()  # who reads the request the usual way finds it


def _write(cycle: RequestResponseCycle, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
    """Write an answer whose body is whole, and end the request."""
    if cycle.disconnected:
        return
    lines, has_length = [STATUS_LINE[status]], False
    for name, value in (*cycle.default_headers, *headers):
        if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
            raise RuntimeError("the function's answer has a header that is none")
        has_length = has_length or name == b"content-length"
        lines.append(name + b": " + value + b"\r\n")
    if not has_length:
        lines.append(b"content-length: %d\r\n" % len(body))
    if not cycle.keep_alive:
        lines.append(b"connection: close\r\n")
    lines += (b"\r\n", body)
    cycle.response_started = cycle.response_complete = True
    cycle.transport.write(b"".join(lines))
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
