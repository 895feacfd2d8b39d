"""Routes of the queue: below `/queue` as today's clients ask, and in the endpoint's own paths as in 2023.

No path redirects: each has a form with and one without a slash at its end.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator
from urllib.parse import parse_qsl, urlencode
from uuid import uuid4

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from atoll import errors
from atoll.server.endpoints.bodies import Options
from atoll.server.endpoints.gateway import authorize
from atoll.server.endpoints.passing import without_credentials
from atoll.server.endpoints.rows import Revision
from atoll.server.queue.answers import answered, ids, state
from atoll.server.queue.files import ANSWER, BODY, INLINE_BYTES
from atoll.server.queue.heads import Head, kept
from atoll.server.queue.links import QUEUE, check_id, links_of, parts_of, unknown
from atoll.server.queue.order import LOW, NORMAL, Entry
from atoll.server.queue.queue import Queue
from atoll.server.queue.rows import OVER, Known
from atoll.server.queue.stream import events
from atoll.server.state import state_of
from atoll.server.webhooks.targets import check_url

MOST_KEY = 255
"""Characters of an idempotency key."""
MOST_TIMEOUT = 30 * 86_400.0
_SUBMIT = "fal/queue/submit/"
_OWN = ("fal_webhook", "fal_max_queue_length")
"""Parameters of a submit's query that are the queue's."""


def routes() -> list[BaseRoute]:
    """Return the routes."""
    endpoint, old = QUEUE + "/{owner}/{alias}", "/{owner}/{alias}/fal/queue"
    one = endpoint + "/requests/{id}"
    asked = [
        ("POST", old + "/submit", submit),
        ("POST", old + "/submit/{rest:path}", submit),
        ("GET", old + "/requests/{id}/status", status),
        ("GET", old + "/requests/{id}/status/stream", stream),
        ("GET", old + "/requests/{id}/response", result),
        ("PUT", old + "/requests/{id}/cancel", cancel),
        ("GET", old + "/{id}/get", status_or_result),
        ("PUT", old + "/{id}/cancel", cancel),
        ("GET", one + "/status", status),
        ("GET", one + "/status/stream", stream),
        ("GET", one + "/response", result),
        ("GET", one, result),
        ("PUT", one + "/cancel", cancel),
        ("POST", endpoint, submit),
        ("POST", endpoint + "/{rest:path}", submit),
    ]
    found: list[BaseRoute] = []
    for method, path, function in asked:
        handler = answered(function)
        forms = [path] if path.endswith(":path}") or path == endpoint else [path, path + "/"]
        found += [Route(form, handler, methods=[method], include_in_schema=False) for form in forms]
    return found


def _queue(request: Request) -> Queue:
    found: Queue = state_of(request).parts["queue"]
    return found


async def submit(request: Request) -> Response:
    """Queue a request to an endpoint."""
    queue, parameters = _queue(request), request.path_params
    revision: Revision = await state_of(request).parts["gateway"].find(parameters["owner"], parameters["alias"])
    caller = await authorize(request, revision)
    links = links_of(request)
    user = caller.user if caller is not None else ""
    entry = Entry(str(uuid4()), revision.user, revision.owner, parameters["alias"], user)
    _read_headers(request, entry)
    url = request.query_params.get("fal_webhook", "")
    if url:
        check_url(url)
    _check_length(request, queue, entry)
    body, digest = await _body(request, queue, entry)
    more = {"idempotency": _idempotency(request, entry), "digest": digest, "url": url}
    try:
        name = await queue.submit(entry, _head(request, revision), body, more)
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


def _idempotency(request: Request, entry: Entry) -> str | None:
    """Return the digest of caller, endpoint and key; None without a key, or for a caller whom nobody knows."""
    key = request.headers.get("idempotency-key", "")
    if not key or not entry.caller:
        return None
    if len(key) > MOST_KEY:
        raise errors.CallerError(f"an idempotency key has at most {MOST_KEY} characters", hint="use a UUID")
    text = json.dumps([entry.caller, entry.owner, entry.alias, parts_of(request)[1], key])
    return hashlib.sha256(text.encode()).hexdigest()


def _head(request: Request, revision: Revision) -> Head:
    scope, (_, rest) = request.scope, parts_of(request)
    if "/fal/queue/submit" in scope["route"].path:
        if not (rest + "/").startswith(_SUBMIT):
            raise errors.CallerError("the path is ambiguous", hint="write it plainly", status=400)
        rest = rest[len(_SUBMIT) :]
    query = without_credentials(scope["query_string"])
    if any(name.encode() in query for name in _OWN):
        pairs = [pair for pair in parse_qsl(query.decode("latin-1"), True) if pair[0] not in _OWN]
        query = urlencode(pairs).encode()
    public = revision.auth == "public"
    return Head(
        request.method,
        "/" + rest + ("?" + query.decode("latin-1") if query else ""),
        kept(scope["headers"], public=public),
        scope["client"][0] if scope["client"] else "",
        scope["scheme"],
        f"/{revision.owner}/{request.path_params['alias']}",
        public,
    )


async def _found(request: Request) -> Entry | Known:
    """Return the request that a path names.

    Raises:
        CallerError: there is none, or it is another's: both look the same.
        NotAuthorized: the caller has no key that is valid.
    """
    parameters = request.path_params
    found = await _queue(request).find(check_id(parameters["id"]))
    if (
        found is None
        or found.alias != parameters["alias"]
        or parameters["owner"] not in (found.owner, found.owner_name)
    ):
        raise unknown()
    if found.caller:
        any_user = Revision("", found.owner, found.owner_name, "", 0, Options(), "shared", 0.0)
        caller = await authorize(request, any_user)
        if caller is None or caller.user != found.caller:
            raise unknown()
    return found


def _wants_logs(request: Request) -> bool:
    return request.query_params.get("logs", "") in ("1", "true", "True")


async def status(request: Request) -> Response:
    """Tell the state of a request: 200 when it is over, 202 before."""
    found, links = await _found(request), links_of(request)
    code, data = state(_queue(request), found, links, logs=_wants_logs(request))
    return JSONResponse(data, code)


async def stream(request: Request) -> Response:
    """Tell the states of a request as they change, until it is over."""
    found, links = await _found(request), links_of(request)
    told = events(_queue(request), found, links, logs=_wants_logs(request))
    return StreamingResponse(told, media_type="text/event-stream")


async def result(request: Request) -> Response:
    """Return the answer of the function: its status, its headers and its body."""
    return await _result(_queue(request), await _found(request))


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
        pieces = queue.files.pieces(found.id, ANSWER)
        headers.append(("content-length", str(found.answer_bytes)))
    answer = StreamingResponse(pieces, found.status) if pieces is not None else Response(body, found.status)
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    answer.raw_headers += raw
    answer.raw_headers.append((b"content-security-policy", b"sandbox; default-src 'none'"))  # it is a function's page
    answer.headers["x-fal-request-id"] = found.id
    return answer


def headers_of_function(headers: list[tuple[str, str]]) -> bool:
    """Return whether an answer has headers that a function has made."""
    return any(not name.startswith("x-fal-") for name, _ in headers)


async def status_or_result(request: Request) -> Response:
    """Tell the state of a request, or return its answer when it is over."""
    found, links = await _found(request), links_of(request)
    if isinstance(found, Known) and found.state == OVER:
        return await _result(_queue(request), found)
    code, data = state(_queue(request), found, links, logs=_wants_logs(request))
    return JSONResponse(data, code)


async def cancel(request: Request) -> Response:
    """Cancel a request: 202 when it was not over, else 400."""
    found = await _found(request)
    if isinstance(found, Entry) and await _queue(request).cancel(found):
        return JSONResponse({"status": "CANCELLATION_REQUESTED"}, 202)
    return JSONResponse({"status": "ALREADY_COMPLETED", "detail": "the request is over"}, 400)
