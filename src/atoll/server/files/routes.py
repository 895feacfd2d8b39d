"""Routes of `/v1/files/`: one address for each path of the user's volume."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from atoll import errors
from atoll.server.files import packages
from atoll.server.files.conditions import etag, http_date
from atoll.server.files.description import OPERATIONS
from atoll.server.files.download import Streamed, download
from atoll.server.files.failures import Refused, answering, failure
from atoll.server.files.paths import PREFIX, FilePath, address, encoded, from_address, from_text, shown
from atoll.server.files.peers import Lent, Peers
from atoll.server.files.presentation import SAFETY
from atoll.server.files.transfers import PART as TRANSFERS
from atoll.server.files.transfers import Transfers, transfers_of
from atoll.server.files.upload import check_version, drop_upload, upload, upload_part, upload_state
from atoll.server.state import ServerState, principal_of
from atoll.storage.files.tree import DIRECTORY, FILE, SPECIAL, SYMLINK, Status
from atoll.storage.protocol.connection import absolute

PART = "files"
PAGE, MOST_PAGE = 1000, 10_000
"""Entries of one answer, by default and at most."""
MOST_BODY_BYTES = 1 << 50
_KINDS = {FILE: "file", DIRECTORY: "directory", SYMLINK: "symlink", SPECIAL: "special"}


def install(state: ServerState) -> None:
    """Add the routes; a part of the server."""
    peers = state.parts[PART] = Peers(state.node)
    transfers = state.parts[TRANSFERS] = Transfers()
    if "accounts" in state.parts:
        state.parts["accounts"].holders.append(transfers)
    files = Files(peers)
    endpoint = answering(files.serve)
    endpoint.described = OPERATIONS  # type: ignore[attr-defined]
    route = Route(PREFIX + "{rest:path}", endpoint, methods=[*_METHODS, "HEAD"])
    route.path_regex = re.compile(rf"^{PREFIX}(?P<rest>(?s:.*))\Z")  # a name may hold a line's end
    state.routes.append(route)
    state.body_bytes[PREFIX + "/"] = MOST_BODY_BYTES
    packages.install(state)

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await peers.close()

    state.lifespan.append(opened)


class Files:
    """Answer requests for files.

    Args:
        peers: of the users.
    """

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def serve(self, request: Request) -> Response:
        """Answer one request."""
        principal = await principal_of(request)
        _check_site(request)
        where = from_address(request.scope["raw_path"])
        query = _query(request)
        method = "GET" if request.method == "HEAD" else request.method
        async with contextlib.AsyncExitStack() as stack:
            lent = await stack.enter_async_context(self._peers.lent(principal))
            try:
                async with transfers_of(request).opened(principal):
                    answer = await _METHODS[method](stack, lent, where, query, request)
                if isinstance(answer, Streamed):
                    answer.held_by = transfers_of(request).opened(principal)
                return answer
            except (OSError, errors.AtollError) as error:
                return failure(error, where.path)


async def _get(
    stack: contextlib.AsyncExitStack, lent: Lent, where: FilePath, query: dict[str, str], request: Request
) -> Response:
    """Send a file, or the contents of a directory as JSON."""
    if "upload" in query:
        return await upload_state(lent, where.path, query["upload"])
    if "stat" in query:
        status = await lent.call(lent.volume.status, where.path, follow="nofollow" not in query)
        return JSONResponse(_entry("", where.path, status), headers=_listing_headers())
    if where.directory or "list" in query:
        return await _list(lent, where.path, query)
    headers = dict(request.headers)
    return await download(stack, lent, where.path, headers, head=request.method == "HEAD", inline="inline" in query)


async def _list(lent: Lent, path: str, query: dict[str, str]) -> Response:
    most = query.get("limit", "") or str(PAGE)
    if not most.isascii() or not most.isdecimal() or not 0 < int(most[:6]) <= MOST_PAGE:
        raise Refused(400, "bad_limit", f"`limit` is no number from 1 to {MOST_PAGE}", "leave it out")
    after = query.get("after", "")
    found = await lent.call(lent.volume.page, path, after, int(most))
    above = path + "/" if path else ""

    def body() -> bytes:
        answer: dict[str, Any] = {"path": absolute(shown(path))}
        if len(found) >= int(most):
            last = max(found)
            answer["next"] = f"{address(path, directory=True)}?list&limit={most}&after={encoded(last)}"
        # One by one: other threads run between them alone.
        entries = ",".join(_json(_entry(name, above + name, status)) for name, status in found.items())
        return f'{_json(answer)[:-1]},"entries":[{entries}]}}'.encode()

    whole = await lent.call(body)  # 10,000 long names take the loop's time of hundreds of requests
    return Response(whole, headers=_listing_headers(), media_type="application/json")


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _entry(name: str, path: str, status: Status) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": shown(name or path.rpartition("/")[2]),
        "href": address(path, directory=status.kind == DIRECTORY),
        "kind": _KINDS[status.kind],
        "size": status.size,
        "mode": f"{status.mode:04o}",
        "modified": _moment(status.mtime_ns),
        "mtime_ns": status.mtime_ns,
    }
    if status.kind == FILE:
        entry["etag"] = etag(status)
    elif status.kind == SYMLINK:
        entry |= {"target": shown(status.target), "leads": _KINDS.get(status.leads, "")}
    return entry


def _moment(time_ns: int) -> str:
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(time_ns // 10**9, UTC).isoformat().replace("+00:00", "Z")
    return http_date(time_ns)


def _listing_headers() -> dict[str, str]:
    return {**SAFETY, "cache-control": "no-store"}


async def _put(
    _: contextlib.AsyncExitStack, lent: Lent, where: FilePath, query: dict[str, str], request: Request
) -> Response:
    """Write a file."""
    if where.directory:
        raise Refused(400, "is_a_directory", "a directory has no content", "use `POST` with `?mkdir`")
    if "upload" in query:
        return await upload_part(lent, where.path, request, query["upload"])
    return await upload(lent, where.path, request)


async def _delete(
    _: contextlib.AsyncExitStack, lent: Lent, where: FilePath, query: dict[str, str], request: Request
) -> Response:
    """Remove a file or an empty directory; with `recursive` any directory."""
    if "upload" in query:
        return await drop_upload(lent, where.path, query["upload"])
    if not where.path:
        raise Refused(403, "file_forbidden", "`/data` itself cannot be removed", "name something below it")
    await check_version(lent, where.path, request)
    await lent.call(lent.volume.remove, where.path, recursive="recursive" in query)
    return Response(status_code=204)


async def _post(
    _: contextlib.AsyncExitStack, lent: Lent, where: FilePath, query: dict[str, str], request: Request
) -> Response:
    """Make a directory, move or copy."""
    if "mkdir" in query:
        exist_ok = "exist_ok" in query
        await lent.call(lent.volume.makedirs, where.path, exist_ok=exist_ok)
        return JSONResponse({"path": absolute(shown(where.path))}, 201)
    if not where.path:
        raise Refused(403, "file_forbidden", "`/data` itself cannot be moved or copied", "name something below it")
    await check_version(lent, where.path, request)
    if "move" in query:
        target = from_text(query["move"]).path
        await lent.call(lent.volume.rename, where.path, target, replace="replace" in query)
    elif "copy" in query:
        target = from_text(query["copy"]).path
        await lent.call(lent.volume.copy, where.path, target)
    else:
        raise Refused(400, "no_action", "the request names no action", "add `?mkdir`, `?move=PATH` or `?copy=PATH`")
    return JSONResponse({"path": absolute(shown(target))}, 201, {"location": address(target)})


_METHODS = {"GET": _get, "PUT": _put, "DELETE": _delete, "POST": _post}


def _query(request: Request) -> dict[str, str]:
    text = request.scope["query_string"].decode("latin-1")
    try:
        return dict(parse_qsl(text, keep_blank_values=True, errors="surrogateescape", max_num_fields=20))
    except ValueError as error:
        raise Refused(400, "bad_query", "the query has too many fields", "leave some out") from error


def _check_site(request: Request) -> None:
    """Refuse requests that another site has a browser make with the page's session."""
    if "authorization" not in request.headers and request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise Refused(403, "other_site", "another site asks for files", "open the files from the page itself")
