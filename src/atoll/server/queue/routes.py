"""Requests to the queue, and their answers; no address redirects, with or without a slash at its end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import parse_qsl, urlencode
from uuid import uuid4

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from atoll import errors
from atoll.server.endpoints.callers import cors
from atoll.server.endpoints.gateway import Gateway, Place
from atoll.server.endpoints.passing import without_credentials
from atoll.server.endpoints.rows import Revision
from atoll.server.queue.answers import answer, ids, state
from atoll.server.queue.files import ANSWER, BODY, INLINE_BYTES
from atoll.server.queue.heads import Head, kept
from atoll.server.queue.links import (
    CANCEL,
    GET,
    NONE,
    QUEUE,
    RESULT,
    STATUS,
    STREAM,
    SUBMIT,
    Address,
    Links,
    check_id,
    is_named,
    links_of,
    read,
    unknown,
)
from atoll.server.queue.order import LOW, NORMAL, Entry
from atoll.server.queue.queue import Queue
from atoll.server.queue.rows import OVER, Known
from atoll.server.queue.stream import events
from atoll.server.webhooks.targets import check_url

MOST_KEY = 255
"""Characters of an idempotency key."""
MOST_TIMEOUT = 30 * 86_400.0
SHARE_OF_CALLER = 2
"""A caller who is not the owner has at most one of so many places of an endpoint's line."""
LINES_OF_OWNER = 2
"""All endpoints of one owner have at most as many requests as so many lines."""
HEAD_BYTES = 16 << 10
"""The most of target and headers that are kept of a request."""
_OWN = ("fal_webhook", "fal_max_queue_length")
"""Parameters of a submit's query that are the queue's."""


@dataclass(frozen=True)
class Asked:
    """A request to the queue.

    Args:
        request: of HTTP.
        address: what it names.
    """

    request: Request
    address: Address
    queue: Queue
    gateway: Gateway

    @property
    def links(self) -> Links:
        """The addresses that its client is given."""
        return links_of(self.request, self.address)

    @property
    def wants_logs(self) -> bool:
        """True where the client asks for what the function prints."""
        return self.request.query_params.get("logs", "") in ("1", "true", "True")


class Addresses(BaseRoute):
    """The route of all addresses of the queue.

    Args:
        by_host: for requests whose host names an endpoint or the queue; else for those whose path does.
    """

    def __init__(self, queue: Queue, gateway: Gateway, domain: str, *, by_host: bool) -> None:
        self.path = QUEUE + "/{owner}/{alias}/{rest}"
        self._queue, self._gateway, self._domain, self._by_host = queue, gateway, domain, by_host

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return whether a request is for the queue."""
        if scope["type"] != "http" or (self._by_host and not self._domain):
            return Match.NONE, {}
        if self._by_host and not is_named(scope, self._gateway, self._domain):
            return Match.NONE, {}
        address = read(scope, self._gateway, self._domain)
        return (Match.FULL if address is not None else Match.NONE), {"route": self, "atoll.queue": address}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer it."""
        request, address = Request(scope, receive), scope["atoll.queue"]
        origins: Sequence[str] = ()
        with contextlib.suppress(errors.AtollError):
            origins = (await self._gateway.find(address.owner, address.alias)).options.cors
        if origins and cors.is_preflight(request):
            await Response(None, 204, cors.preflight(request, origins))(scope, receive, send)
            return
        asked = Asked(request, address, self._queue, self._gateway)
        found = await answer(partial(_VERBS[address.verb], asked), scope, address.id if address.verb else "")
        if origins:
            found.headers.setdefault("cross-origin-resource-policy", "cross-origin")
        await found(scope, receive, cors.allowing(request, origins, send))


async def submit(asked: Asked) -> Response:
    """Queue a request to an endpoint."""
    request, queue, address = asked.request, asked.queue, asked.address
    place = Place(address.owner, address.alias, b"", b"")
    revision, caller = await asked.gateway.admit(request, place)
    head = _head(asked, revision)
    if len(head.target) + sum(len(name) + len(value) for name, value in head.headers) > HEAD_BYTES:
        raise errors.CallerError(f"the head has more than {HEAD_BYTES:,} bytes", hint="use the body", status=431)
    links, user = asked.links, caller.user if caller is not None else ""
    entry = Entry(str(uuid4()), revision.user, revision.owner, address.alias, user)
    _read_headers(request, entry)
    url = request.query_params.get("fal_webhook", "")
    if url:
        check_url(url)
    _check_length(request, queue, entry)
    body, digest = await _body(request, queue, entry)
    more = {"idempotency": _idempotency(asked, entry), "digest": digest, "url": url}
    try:
        name = await queue.submit(entry, head, body, more)
    except BaseException:
        if body is None:
            await queue.files.remove([entry.id], BODY)
        raise
    if name != entry.id and body is None:
        await queue.files.remove([entry.id], BODY)
    found = await queue.find(name)
    position = queue.position(found) if isinstance(found, Entry) else 0
    data = {"status": "IN_QUEUE", "gateway_request_id": name, "queue_position": position, **ids(name, links)}
    return JSONResponse(data, headers={"x-fal-request-id": name})


def _read_headers(request: Request, entry: Entry) -> None:
    """Read what a request's headers say of the way it is to be queued."""
    headers = request.headers
    priority = headers.get("x-fal-queue-priority", "normal")
    if priority not in ("normal", "low"):
        raise errors.CallerError("a priority is `normal` or `low`", hint="leave the header out for `normal`")
    entry.priority = LOW if priority == "low" else NORMAL
    entry.no_retry = headers.get("x-fal-no-retry", "").lower() in ("1", "true")
    if given := headers.get("x-fal-request-timeout", ""):
        try:
            seconds = float(given)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < float("inf"):
            raise errors.CallerError("`X-Fal-Request-Timeout` is a number of seconds", hint="leave it out for none")
        entry.deadline = time.time() + min(seconds, MOST_TIMEOUT)


def _check_length(request: Request, queue: Queue, entry: Entry) -> None:
    """Check that the line has room.

    Raises:
        CallerError: it has none, status 429.
    """
    most = queue.options.max_waiting
    if given := request.query_params.get("fal_max_queue_length", ""):
        if not (given.isascii() and given.isdigit() and len(given) < 10):
            raise errors.CallerError("`fal_max_queue_length` is a number", hint="leave it out for no bound of yours")
        most = min(most, int(given))
    if queue.size(entry.owner, entry.alias) >= most:
        raise errors.CallerError(f"{most} requests wait for this endpoint", hint="try again in a while", status=429)
    counts, most = queue.entries.of, queue.options.max_waiting
    mine = counts[entry.owner, entry.alias, entry.caller] if entry.caller not in ("", entry.owner) else 0
    if mine >= max(most // SHARE_OF_CALLER, 1) or counts[entry.owner,] >= most * LINES_OF_OWNER:
        who = "caller of an endpoint" if mine else "owner"
        raise errors.CallerError(f"too many requests of one {who} wait", hint="try again in a while", status=429)


async def _body(request: Request, queue: Queue, entry: Entry) -> tuple[bytes | None, str]:
    """Read the body: a small one into memory, another into a file on the disk, for which None is returned.

    Returns:
        the body, and its digest.
    """
    digest, first, most = hashlib.sha256(), bytearray(), queue.options.request_bytes
    pieces = _pieces(request)
    async for piece in pieces:
        digest.update(piece)
        first += piece
        if len(first) > INLINE_BYTES:
            break
    entry.body_bytes = len(first)
    if len(first) <= INLINE_BYTES:
        return bytes(first), digest.hexdigest()
    async with queue.files.writing(entry.id, BODY) as file:
        await file.write(bytes(first))
        async for piece in pieces:
            digest.update(piece)
            entry.body_bytes += len(piece)
            if entry.body_bytes > most:
                raise errors.CallerError(f"the body has more than {most:,} bytes", hint="send less", status=413)
            await file.write(piece)
        await file.keep()
    return None, digest.hexdigest()


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect as error:
        raise errors.CallerError("the client has gone", hint="nothing to do", status=499) from error


def _idempotency(asked: Asked, entry: Entry) -> str | None:
    """Return the digest of caller, endpoint and key; None without a key, or for a caller whom nobody knows."""
    key = asked.request.headers.get("idempotency-key", "")
    if not key or not entry.caller:
        return None
    if len(key) > MOST_KEY:
        raise errors.CallerError(f"an idempotency key has at most {MOST_KEY} characters", hint="use a UUID")
    text = json.dumps([entry.caller, entry.owner, entry.alias, asked.address.rest, key])
    return hashlib.sha256(text.encode()).hexdigest()


def _head(asked: Asked, revision: Revision) -> Head:
    scope, rest = asked.request.scope, asked.address.rest
    query = without_credentials(scope["query_string"])
    if any(name.encode() in query for name in _OWN):
        pairs = [pair for pair in parse_qsl(query.decode("latin-1"), True) if pair[0] not in _OWN]
        query = urlencode(pairs).encode()
    public = revision.auth == "public"
    return Head(
        scope["method"],
        "/" + rest + ("?" + query.decode("latin-1") if query else ""),
        kept(scope["headers"], public=public),
        scope["client"][0] if scope["client"] else "",
        scope["scheme"],
        f"/{revision.owner}/{asked.address.alias}",
        public,
    )


async def _found(asked: Asked) -> Entry | Known:
    """Return the request that a path names.

    Raises:
        CallerError: there is none, or it is another's: both look the same.
        NotAuthorized: the caller has no key that is valid.
    """
    address = asked.address
    found = await asked.queue.find(check_id(address.id))
    if found is not None and (found.alias != address.alias or address.owner not in (found.owner, found.owner_name)):
        found = None
    if found is not None and not found.caller:
        return found
    try:
        caller = await asked.gateway.known_caller(asked.request, address.owner, address.alias)
    except errors.NotAuthorized:
        if await _is_public(asked):  # others' requests to it answer as those that there are not, whose key nobody needs
            raise unknown() from None
        raise
    if found is None or caller.user != found.caller:
        raise unknown()
    return found


async def _is_public(asked: Asked) -> bool:
    """Return whether anybody may call the endpoint."""
    with contextlib.suppress(errors.CallerError):
        return (await asked.gateway.find(asked.address.owner, asked.address.alias)).auth == "public"
    return False


async def status(asked: Asked) -> Response:
    """Tell the state of a request: 200 when it is over, 202 before."""
    found, links = await _found(asked), asked.links
    code, data = await state(asked.queue, found, links, logs=asked.wants_logs)
    return JSONResponse(data, code)


async def stream(asked: Asked) -> Response:
    """Tell the states of a request as they change, until it is over."""
    found, links = await _found(asked), asked.links
    told = events(asked.queue, found, links, logs=asked.wants_logs)
    return StreamingResponse(told, media_type="text/event-stream")


async def result(asked: Asked) -> Response:
    """Return the answer of the function: its status, its headers and its body."""
    return await _result(asked.queue, await _found(asked))


async def _result(queue: Queue, found: Entry | Known) -> Response:
    if isinstance(found, Entry) or found.state != OVER:
        raise errors.CallerError("the request is not over yet", hint="ask for its status", status=400)
    headers = [(name, value) for name, value in json.loads(found.headers or "[]") if name != "content-security-policy"]
    body: bytes | None = b""
    if found.error_type and not found.answer_bytes and not headers_of_function(headers):
        body = json.dumps({"detail": found.error, "error_type": found.error_type}).encode()
        headers += [("content-type", "application/json"), ("x-fal-error-type", found.error_type)]
    elif found.answer_bytes:
        body = await queue.answer(found)
    pieces: AsyncIterator[bytes] | None = None
    if body is None:
        if not queue.files.path(found.id, ANSWER).exists():
            raise errors.CallerError("the answer is gone", hint="a backup has no large ones", status=404)
        pieces = queue.files.pieces(found.id, ANSWER)
        headers.append(("content-length", str(found.answer_bytes)))
    told = StreamingResponse(pieces, found.status) if pieces is not None else Response(body, found.status)
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    told.raw_headers += raw
    told.raw_headers.append((b"content-security-policy", b"sandbox; default-src 'none'"))  # it is a function's page
    told.headers["x-fal-request-id"] = found.id
    return told


def headers_of_function(headers: list[tuple[str, str]]) -> bool:
    """Return whether an answer has headers that a function has made."""
    return any(not name.startswith("x-fal-") for name, _ in headers)


async def status_or_result(asked: Asked) -> Response:
    """Tell the state of a request, or return its answer when it is over."""
    found, links = await _found(asked), asked.links
    if isinstance(found, Known) and found.state == OVER:
        return await _result(asked.queue, found)
    code, data = await state(asked.queue, found, links, logs=asked.wants_logs)
    return JSONResponse(data, code)


async def cancel(asked: Asked) -> Response:
    """Cancel a request: 202 when it was not over, else 400."""
    found = await _found(asked)
    if isinstance(found, Entry) and await asked.queue.cancel(found):
        return JSONResponse({"status": "CANCELLATION_REQUESTED"}, 202)
    return JSONResponse({"status": "ALREADY_COMPLETED", "detail": "the request is over"}, 400)


async def nothing(asked: Asked) -> Response:
    """Refuse what is no address of the queue's."""
    raise errors.CallerError(
        f"the queue knows no such address for {asked.request.method}", hint="see docs/server/queue.md", status=404
    )


_VERBS = {
    SUBMIT: submit,
    STATUS: status,
    STREAM: stream,
    RESULT: result,
    GET: status_or_result,
    CANCEL: cancel,
    NONE: nothing,
}
