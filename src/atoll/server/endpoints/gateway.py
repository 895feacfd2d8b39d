"""The gateway: requests at `/OWNER/ALIAS/…` are passed on to a runner of the revision that the alias points to.

A request that has come whole to a connection which the runner has just closed is asked once more, on a new one. All else
is asked once: the function may have begun.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from atoll import errors
from atoll.server.database.database import Database
from atoll.server.endpoints import rows
from atoll.server.endpoints.exchange import Exchange, Headers, RunnerGone
from atoll.server.endpoints.rows import Revision
from atoll.server.endpoints.runner import Runner
from atoll.server.endpoints.runners import Pool, Runners
from atoll.server.principal import Principal
from atoll.server.state import state_of

KNOWN_SECONDS = 1.0
"""Seconds for which the revision of an alias is remembered: changes of this process are seen at once."""
_HOP = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer"),
    *(b"transfer-encoding", b"upgrade", b"proxy-connection"),
}
_OURS = {b"x-fal-key-id", b"x-fal-key-secret", b"cookie", b"content-length", b"expect"}
_QUERY_KEYS = ("fal_key_id", "fal_key_secret", "fal_jwt_token")


class Gateway:
    """Answers requests for endpoints.

    Args:
        database: has revisions and aliases.
    """

    def __init__(self, database: Database, runners: Runners) -> None:
        self._database, self._runners = database, runners
        self._known: dict[tuple[str, str], tuple[float, Revision | None]] = {}

    def forget(self) -> None:
        """Look revisions up anew."""
        self._known.clear()

    async def find(self, owner: str, name: str) -> Revision:
        """Return the revision of an address.

        Raises:
            CallerError: there is none, status 404.
        """
        now = time.monotonic()
        at, found = self._known.get((owner, name), (0.0, None))
        if found is None or now - at > KNOWN_SECONDS:
            found = await self._database.run(lambda connection: rows.find(connection, owner, name), writes=False)
            if len(self._known) > 10_000:
                self._known.clear()
            self._known[owner, name] = now, found
        if found is None:
            raise errors.CallerError("there is no such endpoint", hint="see `atoll function list`", status=404)
        return found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        parameters = scope["path_params"]
        try:
            revision = await self.find(parameters["owner"], parameters["alias"])
            caller = await authorize(request, revision)
            await self._pass(revision, caller, scope, request, send)
        except RunnerGone as error:
            if error.details.get("began"):
                raise ConnectionError("the answer was cut off") from error
            await _failure(502, error, "runner_disconnected")(scope, receive, send)
        except errors.AtollError as error:
            await _refusal(error)(scope, receive, send)
        except TimeoutError:
            late = errors.HostUnreachable("the function did not answer in time", hint="see the endpoint's logs")
            await _failure(504, late, "request_timeout")(scope, receive, send)

    async def _pass(
        self, revision: Revision, caller: Principal | None, scope: Scope, request: Request, send: Send
    ) -> None:
        pool = self._runners.pool(revision)
        pool.retired = False
        runner = await pool.take()
        try:
            await self._exchange(pool, runner, revision, caller, scope, request, send)
        finally:
            pool.give_back(runner)

    async def _exchange(
        self,
        pool: Pool,
        runner: Runner,
        revision: Revision,
        caller: Principal | None,
        scope: Scope,
        request: Request,
        send: Send,
    ) -> None:
        whole, more = await _beginning(request)
        head = _head(scope, revision, caller, None if more else len(whole))
        seconds = revision.options.request_timeout or None
        for last in (False, True):
            try:
                exchange, used = await runner.connection()
            except (errors.WorkerDied, errors.PortUnreachable) as error:
                pool.lost(runner)
                raise RunnerGone("the function's server has ended", hint="try again", began=False) from error
            try:
                async with asyncio.timeout(seconds):
                    if more:
                        status, headers = await exchange.ask(head, _chunks(whole, request))
                    else:
                        status, headers = await exchange.ask(head + whole, None)
            except RunnerGone:
                exchange.close()
                if used and not more and not last:
                    continue  # it was closed as idle: nothing has been read
                raise
            except BaseException:
                exchange.close()
                raise
            try:
                await _answer(exchange, status, headers, send, head_only=scope["method"] == "HEAD")
            finally:
                runner.give_back(exchange)
            return


async def _beginning(request: Request) -> tuple[bytes, bool]:
    """Return the first part of the body, and whether there is more."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise errors.CallerError("the client has gone", hint="nothing to do", status=499)
    return message.get("body", b""), message.get("more_body", False)


async def _chunks(first: bytes, request: Request) -> AsyncIterator[bytes]:
    """Yield the body in chunks, as HTTP/1.1 frames them."""
    piece, more = first, True
    while True:
        if piece:
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
        if not more:
            yield b"0\r\n\r\n"
            return
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise errors.CallerError("the client has gone", hint="nothing to do", status=499)
        piece, more = message.get("body", b""), message.get("more_body", False)


def _head(scope: Scope, revision: Revision, caller: Principal | None, length: int | None) -> bytes:
    """Return the head of the request to the runner."""
    path = scope["raw_path"].split(b"/", 3)
    target = b"/" + (path[3] if len(path) > 3 else b"")
    if query := _query(scope["query_string"]):
        target += b"?" + query
    lines = [b"%b %b HTTP/1.1" % (scope["method"].encode(), target)]
    named = _connection_names(scope["headers"])
    has_host = False
    for name, value in scope["headers"]:
        if name in _HOP or name in _OURS or name in named or name.startswith((b"x-fal-", b"x-atoll-", b"x-forwarded-")):
            continue
        if name == b"authorization" and revision.auth != "public":
            continue
        has_host = has_host or name == b"host"
        lines.append(name + b": " + value)
    if not has_host:
        lines.append(b"host: endpoint")
    client = scope["client"][0] if scope["client"] else ""
    lines += [
        b"x-forwarded-for: " + client.encode(),
        b"x-forwarded-proto: " + scope["scheme"].encode(),
        b"x-forwarded-prefix: " + b"/".join(path[:3]),
        b"x-fal-request-id: " + scope.get("atoll.request", "").encode(),
    ]
    if caller is not None:
        lines.append(b"x-fal-caller-user-id: " + caller.user.encode())
    if length is None:
        lines.append(b"transfer-encoding: chunked")
    elif length or scope["method"] in ("POST", "PUT", "PATCH"):
        lines.append(b"content-length: %d" % length)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _connection_names(headers: Any) -> set[bytes]:
    """Return the headers that a client has named as those of its own connection."""
    return {one.strip().lower() for name, value in headers if name == b"connection" for one in value.split(b",")}


def _query(query: bytes) -> bytes:
    """Return a query without credentials."""
    if b"fal_" not in query:
        return query
    kept = [(name, value) for name, value in parse_qsl(query.decode("latin-1"), True) if name not in _QUERY_KEYS]
    return urlencode(kept).encode()


async def _answer(exchange: Exchange, status: int, headers: Headers, send: Send, *, head_only: bool) -> None:
    kept = [(name, value) for name, value in headers if name not in _HOP]
    await send({"type": "http.response.start", "status": status, "headers": kept})
    if head_only or status in (204, 304):
        exchange.reusable = False
        await send({"type": "http.response.body", "body": b""})
        return
    async for piece in exchange.pieces():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def authorize(request: Request, revision: Revision) -> Principal | None:
    """Return who asks; None for anybody, where the endpoint is public.

    Raises:
        NotAuthorized: the caller is not one of those who may.
    """
    if revision.auth == "public":
        return None
    state = state_of(request)
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in request.headers.raw}
    headers["authorization"] = _credentials(request, headers)
    address = request.client.host if request.client is not None else ""
    found = await state.authenticate(headers, address)
    request.scope["atoll.user"] = found.user
    if revision.auth == "private" and found.user != revision.user:
        raise errors.CallerError("there is no such endpoint", hint="see `atoll function list`", status=404)
    return found


def _credentials(request: Request, headers: dict[str, str]) -> str:
    """Return the credentials of a request in one form, of the four that it may have."""
    query = request.query_params
    if "x-fal-key-id" in headers:
        return f"Key {headers['x-fal-key-id']}:{headers.get('x-fal-key-secret', '')}"
    if "fal_key_id" in query:
        return f"Key {query['fal_key_id']}:{query.get('fal_key_secret', '')}"
    given = headers.get("authorization", "")
    kind, _, rest = given.partition(" ")
    return f"Key {rest}" if kind == "Basic" and ":" in rest else given


def _refusal(error: errors.AtollError) -> JSONResponse:
    if isinstance(error, errors.NotAuthorized):
        return _failure(error.status, error, "unauthorized")
    status = error.details.get("status")
    if isinstance(status, int):
        return _failure(status, error, "bad_request")
    answer = _failure(503, error, "runner_scheduling_failure")
    answer.headers["retry-after"] = str(error.details.get("retry_after", 5))
    return answer


def _failure(status: int, error: errors.AtollError, kind: str) -> JSONResponse:
    """Return an error of the gateway itself: `detail` is its text, as the published clients show it."""
    data = {"detail": error.message, "error_type": kind, "hint": error.hint}
    return JSONResponse(data, status, {"x-fal-error-type": kind})
