"""The gateway: requests at `/OWNER/ALIAS/…` are passed on to a runner of the revision that the alias points to."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from atoll import errors
from atoll.server.database.database import Database
from atoll.server.endpoints import rows
from atoll.server.endpoints.exchange import RunnerGone
from atoll.server.endpoints.passing import Answer, Asked, passed, without_credentials
from atoll.server.endpoints.rows import Revision
from atoll.server.endpoints.runners import Runners
from atoll.server.principal import Principal
from atoll.server.state import state_of

KNOWN_SECONDS = 1.0
"""Seconds for which the revision of an alias is remembered: changes of this process are seen at once."""


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
        first, more = await _beginning(request)
        pool = self._runners.pool(revision)
        runner = await pool.take()
        try:
            asked = _asked(scope, revision, caller)
            async with passed(pool, runner, asked, first, _rest(request) if more else None) as answer:
                await _send(answer, send, head_only=scope["method"] == "HEAD")
        finally:
            pool.give_back(runner)


def _asked(scope: Scope, revision: Revision, caller: Principal | None) -> Asked:
    path = scope["raw_path"].split(b"/", 3)
    query = without_credentials(scope["query_string"])
    return Asked(
        scope["method"],
        b"/" + (path[3] if len(path) > 3 else b"") + (b"?" + query if query else b""),
        scope["headers"],
        scope.get("atoll.request", ""),
        caller.user if caller is not None else "",
        scope["client"][0] if scope["client"] else "",
        scope["scheme"],
        b"/".join(path[:3]),
        is_public=revision.auth == "public",
    )


async def _beginning(request: Request) -> tuple[bytes, bool]:
    """Return the first part of the body, and whether there is more."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise _gone()
    return message.get("body", b""), message.get("more_body", False)


async def _rest(request: Request) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise _gone()
        more = message.get("more_body", False)
        yield message.get("body", b"")


def _gone() -> errors.CallerError:
    return errors.CallerError("the client has gone", hint="nothing to do", status=499)


async def _send(answer: Answer, send: Send, *, head_only: bool) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.kept()})
    if head_only or answer.status in (204, 304):
        answer.exchange.reusable = False
        await send({"type": "http.response.body", "body": b""})
        return
    async for piece in answer.exchange.pieces():
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
