"""The gateway: requests for endpoints are passed on to a runner of the revision that their address names.

Addresses are `/OWNER/ALIAS/…`, `/run/OWNER/ALIAS/…`, `/trigger/OWNER/REVISION/…`, and with a domain of endpoints
`OWNER-ALIAS.gateway.DOMAIN/…`. An owner is a user's name or id.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from atoll import errors
from atoll.server.addresses import source
from atoll.server.database.database import Database
from atoll.server.endpoints import rows
from atoll.server.endpoints.callers import cors
from atoll.server.endpoints.callers.credentials import authorization_of
from atoll.server.endpoints.callers.rates import Rates
from atoll.server.endpoints.callers.tokens import Tokens
from atoll.server.endpoints.exchange import RunnerGone
from atoll.server.endpoints.passing import Answer, Asked, ask_any, send_on, without_credentials
from atoll.server.endpoints.request_body import Body, beginning_of
from atoll.server.endpoints.rows import Revision
from atoll.server.endpoints.runners.runners import Runners
from atoll.server.files.transfers import transfers_of
from atoll.server.logs import CutOff
from atoll.server.principal import API, Principal
from atoll.server.state import state_of

KNOWN_SECONDS = 1.0
"""Seconds for which the revision of an alias is remembered: changes of this process are seen at once."""
MOST_KNOWN = 10_000
MOST_NAME = 64
"""Characters of an owner's name or id, and of an alias or a revision's id."""
PREFIXES = ("run", "trigger")
"""First parts of a path that stand before the owner."""


class Place(NamedTuple):
    """What an address names.

    Args:
        owner: name or id of the user.
        alias: the alias, or the revision's id.
        prefix: the endpoint's own path, of bytes as they came.
        rest: what is behind it, without the first slash.
    """

    owner: str
    alias: str
    prefix: bytes
    rest: bytes


class Gateway:
    """Answers requests for endpoints.

    Args:
        database: has revisions and aliases.
        tokens: reads those of browsers.
        domain: whose subdomain `gateway` has a name for each endpoint; empty for none.
    """

    def __init__(self, database: Database, runners: Runners, tokens: Tokens, domain: str = "") -> None:
        self._database, self.runners, self.tokens = database, runners, tokens
        self._suffix = f".gateway.{domain}".encode() if domain else b""
        self.rates = Rates()
        self.reserved: frozenset[bytes] = frozenset()
        """First parts of paths that are the server's own."""
        self.others: list[Callable[[Scope], bool]] = []
        """Return whether another part of the server answers a request although its address is below an endpoint's."""
        self._known: dict[tuple[str, str], tuple[float, Revision | None]] = {}
        self._looks: dict[tuple[str, str], asyncio.Task[Revision | None]] = {}
        self._age = 0

    def forget(self) -> None:
        """Look revisions up anew."""
        self._known.clear()
        self._looks.clear()
        self._age += 1

    # --- addresses ----------------------------------------------------------------------------------------------------

    def place(self, scope: Any) -> Place | None:
        """Return what the address of a request names; None for another one than an endpoint's."""
        if (label := self._label(scope["headers"])) is not None:
            owner, _, alias = label.partition("-")
            named = owner and alias and "." not in label
            return Place(owner, alias, b"", scope["raw_path"].removeprefix(b"/")) if named else None
        parts = scope["raw_path"].split(b"/")
        count = 2 if len(parts) > 1 and parts[1].decode("latin-1") in PREFIXES else 1
        if len(parts) < count + 2 or not parts[count] or not parts[count + 1]:
            return None
        rest = b"/".join(parts[count + 2 :])
        owner, alias = (part.decode("latin-1") for part in parts[count : count + 2])
        return Place(owner, alias, b"/".join(parts[: count + 2]), rest)

    def _label(self, headers: Any) -> str | None:
        """Return what stands before the domain of endpoints in the host that a request names; None for another host."""
        if not self._suffix:
            return None
        hosts = [value for name, value in headers if name == b"host"]
        name = b"." + hosts[0].partition(b":")[0].lower().removesuffix(b".") if len(hosts) == 1 else b""
        return name.removesuffix(self._suffix)[1:].decode("latin-1") if name.endswith(self._suffix) else None

    def serves(self, scope: Any) -> bool:
        """Return whether a request is for an endpoint: by its host, or a path that is none of the server's own."""
        return self.addressed(scope) is not None or (self.is_named(scope) and not self._is_others(scope))

    def addressed(self, scope: Any) -> Place | None:
        """Return what the address of a request names; None for the server's own."""
        if self._is_others(scope):
            return None
        first = scope["raw_path"].split(b"/", 2)[1:2]  # `*` has none
        if not self.is_named(scope) and (not first or first[0] in self.reserved):
            return None
        return self.place(scope)

    def _is_others(self, scope: Any) -> bool:
        return any(other(scope) for other in self.others)

    def is_named(self, scope: Any) -> bool:
        """Return whether a request's host is in the domain of endpoints, where the server has no pages."""
        return bool(self._suffix) and self._label(scope["headers"]) is not None

    async def find(self, owner: str, name: str) -> Revision:
        """Return the revision of an address.

        Raises:
            CallerError: there is none, status 404.
        """
        if len(owner) > MOST_NAME or len(name) > MOST_NAME:  # nobody fills the memory with what there is not
            raise self.unknown()
        found = self.known(owner, name)
        if found is None:
            look = self._looks.get((owner, name))
            if look is None:  # requests at the same time share one look
                look = self._looks[owner, name] = asyncio.ensure_future(self._look_up(owner, name))
                look.add_done_callback(lambda done: self._looked_up(owner, name, done))
            found = await asyncio.shield(look)
        if found is None:
            raise self.unknown()
        return found

    def _looked_up(self, owner: str, name: str, look: asyncio.Task[Revision | None]) -> None:
        if self._looks.get((owner, name)) is look:
            del self._looks[owner, name]
        if not look.cancelled():
            look.exception()  # whoever waits for it has it, too

    async def _look_up(self, owner: str, name: str) -> Revision | None:
        now, age = time.monotonic(), self._age
        found = await self._database.run(lambda connection: rows.find(connection, owner, name), writes=False)
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        if age == self._age:  # else it was changed meanwhile
            self._known[owner, name] = now, found
        return found

    def known(self, owner: str, name: str) -> Revision | None:
        """Return the revision of an address, if that was looked up a moment ago."""
        at, found = self._known.get((owner, name), (0.0, None))
        return found if time.monotonic() - at <= KNOWN_SECONDS else None

    @staticmethod
    def unknown() -> errors.CallerError:
        """Return the error for an endpoint that there is not, or not for this caller."""
        return errors.CallerError("there is no such endpoint", hint="see `atoll function list`", status=404)

    # --- callers ------------------------------------------------------------------------------------------------------

    async def admit(self, connection: HTTPConnection, place: Place) -> tuple[Revision, Principal | None]:
        """Return the revision of a request, and who asks: None for anybody, where the endpoint is public.

        Raises:
            CallerError: there is no such endpoint, or it is another user's.
            NotAuthorized: nobody known asks, or too often.
        """
        try:
            revision = await self.find(place.owner, place.alias)
        except errors.CallerError:
            await self.known_caller(connection, place.owner, place.alias)  # nobody else hears that there is none
            raise
        caller = None if revision.auth == "public" else await self._caller(connection, revision, place)
        if per_minute := revision.options.rate_limit:
            address = source(connection.client.host) if connection.client is not None else ""
            self.rates.take(revision.id, caller.key if caller is not None else address, per_minute)
        return revision, caller

    async def _caller(self, connection: HTTPConnection, revision: Revision, place: Place) -> Principal:
        found = await self.known_caller(connection, place.owner, place.alias)
        if revision.auth == "private" and found.user != revision.user:
            raise self.unknown()
        return found

    async def known_caller(self, connection: HTTPConnection, owner: str, alias: str) -> Principal:
        """Return who asks, of all users; a token must be for this endpoint.

        Raises:
            NotAuthorized: nobody known asks.
        """
        state = state_of(connection)
        address = connection.client.host if connection.client is not None else ""
        given = authorization_of(connection)
        if given.token:
            claims = self.tokens.read(given.token)
            found: Principal | None = await state.parts["accounts"].of_key(claims.key)
            if found is None or not claims.allows(owner, alias):
                raise errors.NotAuthorized("the token is not for this endpoint", hint="ask for another one with a key")
            found = replace(found, scope=API, operator=False)  # it calls, whatever its key may do
        elif not given.header:
            raise errors.NotAuthorized("the request has no key", hint="send it as `Authorization: Key ID:SECRET`")
        else:
            found = await state.authenticate({"authorization": given.header}, address)
        connection.scope["atoll.user"] = found.user
        return found

    # --- requests -----------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        scope["atoll.endpoint"] = True
        request = Request(scope, receive)
        place = self.place(scope)
        origins: Sequence[str] = ()
        try:
            if place is None:
                raise self.unknown()
            with contextlib.suppress(errors.CallerError):
                origins = (await self.find(place.owner, place.alias)).options.cors
            if origins and cors.is_preflight(request):
                await Response(None, 204, cors.preflight(request, origins))(scope, receive, send)
                return
            send = cors.allowing(request, origins, send)  # a page of another site may read errors, too
            await self._serve(place, scope, request, send)
        except (errors.AtollError, TimeoutError) as error:
            await (await self.failed(error, request))(scope, receive, send)

    @staticmethod
    async def failed(error: Exception, request: Request) -> Response:
        """Return the answer to a request that no function answers.

        Raises:
            ConnectionError: the answer has begun already.
        """
        if isinstance(error, RunnerGone):
            if error.details.get("began"):
                raise CutOff("the function's server has ended") from error
            return failure(502, error, "runner_disconnected")
        if isinstance(error, errors.AtollError):
            if isinstance(error, errors.NotAuthorized) and request.scope.get("atoll.began"):
                raise CutOff("the key has ended") from error
            page = state_of(request).parts.get("error_page")
            status = error.status if isinstance(error, errors.NotAuthorized) else error.details.get("status")
            if page is not None and status in (401, 404) and _is_browser(request):
                detail = "there is no such page here, or it needs a key"
                found: Response = await page(request, HTTPException(404, detail))
                return found
            return refusal(error)
        late = errors.HostUnreachable("the function did not answer in time", hint="see the endpoint's logs")
        return failure(504, late, "request_timeout")

    @staticmethod
    async def stream(answer: Answer, asked: Asked, request: Request, caller: Principal | None, send: Send) -> None:
        """Send an answer to the client as it comes, while the key of its caller is valid.

        Raises:
            NotAuthorized: it has ended.
        """
        request.scope["atoll.began"] = True
        async with contextlib.nullcontext() if caller is None else transfers_of(request).opened(caller):
            await send_on(answer, asked, send)

    async def _serve(self, place: Place, scope: Scope, request: Request, send: Send) -> None:
        revision, caller = await self.admit(request, place)
        first, more = await beginning_of(request)
        body = Body(request, more)
        asked = asked_of(scope, revision, caller, place)
        with body.ending(asyncio.current_task()):
            await self._pass(revision, asked, first, body, caller, send)

    async def _pass(
        self, revision: Revision, asked: Asked, first: bytes, body: Body, caller: Principal | None, send: Send
    ) -> None:
        pool = self.runners.pool(revision)
        began, status = time.monotonic(), 0
        try:
            runner, answer = await ask_any(pool, asked, first, body.rest() if body.more else None)
            status = answer.status
            try:
                await self.stream(answer, asked, body.request, caller, send)
            finally:
                runner.give_back(answer.exchange)
                pool.give_back(runner)
        finally:
            now = time.monotonic()
            pool.figures.note(now - began, status, now)


def _is_browser(request: Request) -> bool:
    """Return whether a person asks, who has no credentials to show: an address that there is not has a page."""
    given = authorization_of(request)
    return "text/html" in request.headers.get("accept", "") and not (given.header or given.token)


def asked_of(scope: Any, revision: Revision, caller: Principal | None, place: Place) -> Asked:
    """Return a request as the function's server gets it."""
    query = without_credentials(scope["query_string"])
    return Asked(
        scope["method"],
        b"/" + place.rest + (b"?" + query if query else b""),
        scope["headers"],
        scope.get("atoll.request", ""),
        caller.user if caller is not None else "",
        scope["client"][0] if scope["client"] else "",
        scope["scheme"],
        place.prefix,
        is_public=revision.auth == "public",
        own_host=not place.prefix,
    )


def refusal(error: errors.AtollError) -> JSONResponse:
    """Return the answer for a request that no runner has got."""
    answer: JSONResponse
    if isinstance(error, errors.NotAuthorized):
        answer = failure(error.status, error, "unauthorized" if error.status != 429 else "rate_limited")
    elif isinstance(status := error.details.get("status"), int):
        answer = failure(status, error, "startup_timeout" if status == 504 else "bad_request")
    else:
        answer = failure(503, error, "runner_scheduling_failure")
        answer.headers["retry-after"] = "5"
    if "retry_after" in error.details:
        answer.headers["retry-after"] = str(error.details["retry_after"])
    return answer


def failure(status: int, error: errors.AtollError, kind: str) -> JSONResponse:
    """Return an error of the gateway itself: `detail` is its text, as the published clients show it."""
    data = {"detail": error.message, "error_type": kind, "hint": error.hint}
    return JSONResponse(data, status, {"x-fal-error-type": kind})
