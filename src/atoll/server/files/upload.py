"""Uploads: a body whole, which takes its path in one step, or a part of one that is sent in several requests."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from atoll import errors
from atoll.server.files.conditions import etag, http_date, seconds_of, strong_tags, tags
from atoll.server.files.failures import Refused
from atoll.server.files.paths import address, shown
from atoll.server.files.peers import Lent
from atoll.storage.client.names import status_in
from atoll.storage.files.tree import Status, version_of
from atoll.storage.protocol.connection import absolute
from atoll.wire.frames import Message

BATCH_BYTES = 1 << 20
SILENT_SECONDS = 120.0
"""The longest pause of a client that uploads."""
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


async def upload(lent: Lent, path: str, request: Request) -> Response:
    """Replace a file by a request's body, whole and durably, or leave it as it is.

    Raises:
        Refused: a condition does not hold.
        OSError, AtollError: the file cannot be written; it is as before.
    """
    if "content-range" in request.headers:
        raise Refused(400, "upload_unnamed", "a part of a file has no upload to belong to", "add `?upload=NAME`")
    found = await _found(lent, path)
    header = {"type": "write", "path": path, "mode": None, **await _conditions(request, found)}
    answer = await _converse(lent, path, _batches(request), header)
    return _answer(path, status_in(answer), created=found is None)


async def write(lent: Lent, path: str, batches: AsyncGenerator[list[bytes], None]) -> None:
    """Replace a file by contents that come, whole and durably, or leave it as it is.

    Raises:
        OSError, AtollError: the file cannot be written; it is as before.
    """
    header = {"type": "write", "path": path, "mode": None, "match": None, "absent": False}
    await _converse(lent, path, batches, header)


async def upload_part(lent: Lent, path: str, request: Request, name: str) -> Response:
    """Add a request's body to an upload; the last part gives the file its path.

    Raises:
        Refused: the part does not go on where the last one ended, or a condition does not hold.
        OSError, AtollError: it cannot be written; what has come is kept.
    """
    match = _CONTENT_RANGE.fullmatch(request.headers.get("content-range", ""))
    if match is None:
        hint = "send `Content-Range: bytes FIRST-LAST/TOTAL`"
        raise Refused(400, "upload_range", "the part of an upload does not say where it belongs", hint)
    first, last, total = map(int, match.groups())
    length = request.headers.get("content-length")
    if not first <= last < total or (length is not None and int(length) != last - first + 1):
        raise Refused(400, "upload_range", "the part has another length than its range", "count the last byte in")
    state = await lent.call(lent.connection.ask, "upload_state", path, {"upload": name})
    received = state.header["received"] or 0
    if received != first:
        hint = f"go on at byte {received}, or begin anew after `DELETE`"
        progress = {"upload-offset": str(received)}
        raise Refused(409, "upload_offset", f"the upload has {received} bytes so far", hint, progress)
    found = await _found(lent, path)
    conditions = await _conditions(request, found)
    header = {"type": "upload", "path": path, "upload": name, "first": first, "total": total, **conditions}
    answer = await _converse(lent, path, _batches(request), header)
    if "status" in answer.header:
        return _answer(path, status_in(answer), created=found is None)
    received = int(answer.header["received"])
    return JSONResponse({"received": received, "total": total}, 202, {"upload-offset": str(received)})


async def upload_state(lent: Lent, path: str, name: str) -> Response:
    """Return how much of an upload has come."""
    state = await lent.call(lent.connection.ask, "upload_state", path, {"upload": name})
    received = state.header["received"]
    if received is None:
        raise Refused(404, "upload_unknown", "no such upload is under way", "begin it with its first part")
    return JSONResponse({"received": received}, headers={"upload-offset": str(received), "cache-control": "no-store"})


async def drop_upload(lent: Lent, path: str, name: str) -> Response:
    """Forget an upload and what has come of it."""
    await lent.call(lent.connection.ask, "upload_drop", path, {"upload": name})
    return Response(status_code=204)


async def check_version(lent: Lent, path: str, request: Request) -> None:
    """Check the conditions of a request that changes a path in another way.

    Raises:
        Refused: one does not hold.
    """
    if any(name in request.headers for name in ("if-match", "if-none-match", "if-unmodified-since")):
        found = await _found(lent, path)
        wanted = (await _conditions(request, found))["match"]
        if isinstance(wanted, list) and (found is None or version_of(found) not in wanted):
            raise _mismatch()


async def _found(lent: Lent, path: str) -> Status | None:
    with contextlib.suppress(FileNotFoundError):
        return await lent.call(lent.volume.status, path)
    return None


async def _conditions(request: Request, found: Status | None) -> dict[str, Any]:
    """Return the conditions for the storage peer, which checks them in the instant of the change.

    Raises:
        Refused: one does not hold already.
    """
    headers, match, absent = request.headers, None, False
    if "content-encoding" in headers and headers["content-encoding"].lower() != "identity":
        raise Refused(415, "content_encoding", "the body is encoded", "send the file as it is")
    if "if-match" in headers:
        wanted = strong_tags(headers["if-match"])
        match = "*" if wanted is None else wanted
        if found is None or (wanted is not None and version_of(found) not in wanted):
            raise _mismatch()
    elif "if-unmodified-since" in headers:
        since = seconds_of(headers["if-unmodified-since"])
        if since is not None and (found is None or found.mtime_ns // 10**9 > since):
            raise _mismatch()
        match = [version_of(found)] if since is not None and found is not None else None
    if "if-none-match" in headers:
        unwanted = tags(headers["if-none-match"])
        absent = unwanted is None
        if found is not None and (unwanted is None or version_of(found) in unwanted):
            raise _mismatch()
    return {"match": match, "absent": absent}


def _mismatch() -> Refused:
    hint = "read the file again, and repeat with its new `ETag`"
    return Refused(412, "precondition_failed", "the file has another version", hint)


async def _converse(
    lent: Lent, path: str, content: AsyncGenerator[list[bytes], None], header: dict[str, Any]
) -> Message:
    """Send contents to the peer, and return the peer's answer."""
    connection = lent.connection
    sending = asyncio.ensure_future(lent.call(connection.request, header, []))
    try:
        async with contextlib.aclosing(content) as batches:
            async for batch in batches:
                await sending
                sending = asyncio.ensure_future(lent.call(_send, lent, path, batch))
        await sending
    except _Answered as answered:
        await lent.call(connection.send, {"type": "abort"}, [])
        connection.idle = True
        raise answered.reason from None
    except BaseException:
        await _abort(lent, sending)
        raise
    return await lent.call(_commit, lent, path)


def _commit(lent: Lent, path: str) -> Message:
    lent.connection.send({"type": "commit"}, [])
    try:
        return lent.connection.answer(path)
    except FileExistsError as error:  # it was not there a moment ago
        raise OSError(116, "another file is there by now", error.filename) from error


async def _abort(lent: Lent, sending: asyncio.Future[None]) -> None:
    """End an upload without a file; the peer serves the next request if it answers."""
    if not sending.done():
        sending.cancel()
    with contextlib.suppress(Exception, asyncio.CancelledError):
        await sending
        await lent.call(_end, lent)
        return
    lent.abandon()


def _end(lent: Lent) -> None:
    lent.connection.send({"type": "abort"}, [])
    while lent.connection.channel.receive().type not in ("done", "error"):
        pass
    lent.connection.idle = True


class _Answered(Exception):
    """The peer's error for content that is still being sent."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason


def _send(lent: Lent, path: str, batch: list[bytes]) -> None:
    connection = lent.connection
    connection.send({"type": "data"}, batch)
    if connection.channel.readable():
        try:
            connection.receive(path)
        except errors.HostUnreachable:
            raise
        except (errors.AtollError, OSError) as error:
            raise _Answered(error) from error


async def body_of(request: Request) -> AsyncGenerator[bytes, None]:
    """Yield the body as it comes.

    Raises:
        ClientDisconnect: the client has gone.
        Refused: it is silent for too long.
    """
    chunks = request.stream()
    while True:
        try:
            async with asyncio.timeout(SILENT_SECONDS):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise Refused(408, "upload_silent", "the upload paused for too long", "send it again") from None
        if chunk is None:
            return
        yield chunk


async def _batches(request: Request) -> AsyncGenerator[list[bytes], None]:
    """Yield the body in lists of about `BATCH_BYTES`.

    Raises:
        ClientDisconnect, Refused: as `body_of`.
    """
    batch: list[bytes] = []
    size = 0
    async for chunk in body_of(request):
        if chunk:
            batch.append(chunk)
            size += len(chunk)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _answer(path: str, status: Status, *, created: bool) -> Response:
    data = {"path": absolute(shown(path)), "size": status.size}
    headers = {"etag": etag(status), "last-modified": http_date(status.mtime_ns)}
    if created:
        headers["location"] = address(path)
    return JSONResponse(data, 201 if created else 200, headers)
