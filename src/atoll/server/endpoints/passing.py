"""One request on its way to a runner and back: for the gateway, and for requests that were queued."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl, unquote_to_bytes, urlencode

from starlette.types import Send

from atoll import errors
from atoll.server.endpoints.callers.tokens import Tokens
from atoll.server.endpoints.exchange import Exchange, Headers, NotReached, RunnerGone
from atoll.server.endpoints.runners.pool import Pool
from atoll.server.endpoints.runners.runner import Runner

HOP = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer"),
    *(b"transfer-encoding", b"upgrade", b"proxy-connection"),
}
"""Headers of one connection, which are not passed on."""
_NOT_ON = frozenset(HOP | {b"date", b"x-request-id"})
"""Headers of an answer that are not passed on: those of one connection, and those that this server gives once itself."""
_OURS = {b"content-length", b"expect", b"forwarded", b"x-real-ip"}
_OUR_BEGINNINGS = (b"x-fal-", b"x-atoll-", b"x-forwarded-")
_OF_ORIGIN = {
    *(b"clear-site-data", b"service-worker-allowed", b"strict-transport-security", b"alt-svc", b"nel", b"report-to"),
    *(
        b"reporting-endpoints",
        b"accept-ch",
        b"critical-ch",
        b"origin-agent-cluster",
        b"set-login",
        b"use-as-dictionary",
    ),
}
"""Headers of an answer that a browser heeds for all pages of its host."""
RUNNERS = 3
"""Runners at which a request is tried whose port is closed: one that ended a moment ago is seen so."""
SHORT_NAME = 64
SANDBOX = b"sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"
"""The policy of pages of functions at the server's own host: else their scripts would act in the name of who reads them."""
QUERY_KEYS = ("fal_key_id", "fal_key_secret", "fal_jwt_token")
"""Credentials that a query may have."""
_QUERY_NAMES = {name.encode() for name in QUERY_KEYS}


@dataclass(frozen=True)
class Asked:
    """A request as the function's server gets it, but for its body.

    Args:
        method: such as `POST`.
        target: path and query below the endpoint's address, without credentials.
        headers: as the client sent them, names in lower case.
        id: of the request.
        caller: the id of the user who asks; empty for anybody.
        client: the address of the client.
        scheme: `http` or `https`.
        prefix: the endpoint's own path.
        is_public: the endpoint asks nobody for credentials: an `Authorization` is the function's.
        own_host: the endpoint has a host name of its own, and so cookies.
    """

    method: str
    target: bytes
    headers: Sequence[tuple[bytes, bytes]]
    id: str
    caller: str = ""
    client: str = ""
    scheme: str = "https"
    prefix: bytes = b""
    is_public: bool = False
    own_host: bool = False

    def head(self, length: int | None) -> bytes:
        """Return the head of the request to the runner.

        Args:
            length: of the body; None for one that comes in chunks.
        """
        lines = [b"%b %b HTTP/1.1" % (self.method.encode(), self.target)]
        named = {
            one.strip().lower() for name, value in self.headers if name == b"connection" for one in value.split(b",")
        }
        has_host = False
        for name, value in self.headers:
            if name in named or (_is_dropped(name) if len(name) <= SHORT_NAME else is_ours(name)):
                continue
            if name == b"authorization" and not (self.is_public and is_functions(value)):
                continue
            if name == b"cookie" and not self.own_host:
                continue
            has_host = has_host or name == b"host"
            lines.append(name + b": " + (without_credentials_in(value) if name == b"referer" else value))
        if not has_host:
            lines.append(b"host: endpoint")
        lines += [
            b"x-forwarded-for: " + self.client.encode(),
            b"x-forwarded-proto: " + self.scheme.encode(),
            b"x-forwarded-prefix: " + self.prefix,
            b"x-fal-request-id: " + self.id.encode(),
        ]
        if self.caller:
            lines.append(b"x-fal-caller-user-id: " + self.caller.encode())
        if length is None:
            lines.append(b"transfer-encoding: chunked")
        elif length or self.method in ("POST", "PUT", "PATCH"):
            lines.append(b"content-length: %d" % length)
        return b"\r\n".join(lines) + b"\r\n\r\n"


def is_ours(name: bytes) -> bool:
    """Return whether a header of a request tells what this server alone tells a function.

    Servers of functions may read `X_Forwarded_For` as `X-Forwarded-For` (PEP 3333), so neither is passed on.
    """
    plain = name.replace(b"_", b"-") if b"_" in name else name
    return plain in _OURS or plain.startswith(_OUR_BEGINNINGS) or (plain is not name and plain in _READ_ALIKE)


@lru_cache(maxsize=1024)
def _is_dropped(name: bytes) -> bool:
    """Return whether a header with a short name, remembered, is not passed on whatever it says."""
    return name in HOP or is_ours(name)


_READ_ALIKE = HOP | {b"authorization", b"cookie", b"host"}
"""Headers that are passed on, or not, by their own names alone."""


def is_functions(authorization: bytes) -> bool:
    """Return whether credentials for a public endpoint are meant for its function.

    Programs send their key of this server to every endpoint, and nobody's function is to have it.
    """
    kind, _, rest = authorization.strip().partition(b" ")
    is_pair = b":" in rest  # as in `credentials`: no token has a colon, no encoded pair either
    if kind.lower() == b"bearer":
        return not is_pair and not Tokens.is_one(rest.strip().decode("latin-1"))
    return kind.lower() != b"key" and not (kind.lower() == b"basic" and is_pair)


def without_credentials_in(address: bytes) -> bytes:
    """Return an address without the credentials in its query."""
    before, found, query = address.partition(b"?")
    return before + found + without_credentials(query) if found else address


def without_credentials(query: bytes) -> bytes:
    """Return a query without the credentials in it."""
    if b"fal_" not in query and b"%" not in query:
        return query
    names = {unquote_to_bytes(pair.partition(b"=")[0].replace(b"+", b" ")) for pair in query.split(b"&")}
    if not names & _QUERY_NAMES:
        return query
    kept = [(name, value) for name, value in parse_qsl(query.decode("latin-1"), True) if name not in QUERY_KEYS]
    return urlencode(kept).encode()


@dataclass(frozen=True)
class Answer:
    """The answer of a function's server, whose body is still to come."""

    status: int
    headers: Headers
    exchange: Exchange

    def kept(self, *, own_host: bool) -> list[tuple[bytes, bytes]]:
        """Return the headers that are passed on; see `harmless`."""
        dropped: set[bytes] | frozenset[bytes] = _NOT_ON
        for name, value in self.headers:
            if name == b"connection" and value.lower() not in (b"close", b"keep-alive"):
                dropped = dropped | {one.strip() for one in value.lower().split(b",")}
        return harmless([(name, value) for name, value in self.headers if name not in dropped], own_host=own_host)


async def send_on(answer: Answer, asked: Asked, send: Send) -> None:
    """Send an answer to the client, as it comes."""
    headers = answer.kept(own_host=asked.own_host)
    if answer.status in (204, 304):
        headers = [(name, value) for name, value in headers if name != b"content-length"]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if asked.method == "HEAD" or answer.status in (204, 304):
        answer.exchange.reusable = False
        await send({"type": "http.response.body", "body": b""})
        return
    async for piece in answer.exchange.pieces():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def harmless(headers: Headers, *, own_host: bool) -> list[tuple[bytes, bytes]]:
    """Return headers of a function's answer without what would concern the server's own pages.

    Args:
        own_host: the endpoint has a host name of its own, and so cookies, but none for the names above.
    """
    kept = []
    for name, value in headers:
        if name == b"set-cookie" and (not own_host or _has_domain(value)):
            continue
        if name in _OF_ORIGIN and not own_host:
            continue
        kept.append((name, value))
    return kept if own_host else [*kept, (b"content-security-policy", SANDBOX)]


def _has_domain(cookie: bytes) -> bool:
    """Return whether a cookie is for other names, too, as browsers read it."""
    return any(one.partition(b"=")[0].strip().lower() == b"domain" for one in cookie.split(b";")[1:])


async def ask(
    pool: Pool, runner: Runner, asked: Asked, body: bytes, more: AsyncIterator[bytes] | None = None
) -> Answer:
    """Give a request to a runner that has a place for it, and return its answer, whose exchange the runner gets back.

    It is asked once, since a function whose server ends the connection may have begun.

    Args:
        body: the beginning of the body.
        more: the rest of it; None where `body` is all.

    Raises:
        NotReached: the runner had ended; another one may be asked.
        RunnerGone: the runner ended first.
        TimeoutError: no answer began in time.
    """
    head = asked.head(len(body) if more is None else None)
    seconds = pool.revision.options.request_timeout
    try:
        exchange = await runner.connection()
    except (errors.WorkerDied, errors.PortUnreachable) as error:
        pool.lost(runner)
        raise NotReached("the function's server has ended", hint="try again", began=False) from error
    timer = asyncio.get_running_loop().call_later(seconds, exchange.expire) if seconds else None
    try:
        status, headers = await exchange.ask(
            head + body if more is None else head, None if more is None else _chunks(body, more)
        )
    except RunnerGone:
        exchange.close()
        if exchange.expired:
            raise TimeoutError from None
        raise
    except BaseException:
        exchange.close()
        raise
    finally:
        if timer is not None:
            timer.cancel()
    return Answer(status, headers, exchange)


async def ask_any(
    pool: Pool, asked: Asked, body: bytes, more: AsyncIterator[bytes] | None = None
) -> tuple[Runner, Answer]:
    """Give a request to a runner as `ask` does, to another one where that has got nothing of it.

    The place at the runner, and the exchange of the answer, are the caller's to give back.
    """
    left = RUNNERS
    while True:
        runner, left = await pool.take(), left - 1
        try:
            return runner, await ask(pool, runner, asked, body, more)
        except NotReached:
            pool.give_back(runner)
            if not left:
                raise
        except BaseException:
            pool.give_back(runner)
            raise


@contextlib.asynccontextmanager
async def passed(
    pool: Pool, runner: Runner, asked: Asked, body: bytes, more: AsyncIterator[bytes] | None = None
) -> AsyncIterator[Answer]:
    """Yield the answer to a request that is asked as by `ask`."""
    answer = await ask(pool, runner, asked, body, more)
    try:
        yield answer
    finally:
        runner.give_back(answer.exchange)


async def _chunks(first: bytes, more: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield a body in chunks, as HTTP/1.1 frames them."""
    if first:
        yield b"%x\r\n%b\r\n" % (len(first), first)
    async for piece in more:
        if piece:
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"
