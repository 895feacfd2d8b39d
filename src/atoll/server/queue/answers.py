"""Answers of the queue as JSON: states, and errors, with the keys that the published clients need."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from atoll import errors
from atoll.server.app import status_of
from atoll.server.queue.links import Links
from atoll.server.queue.order import WAITING, Entry
from atoll.server.queue.queue import Queue
from atoll.server.queue.rows import OVER, Known

Handler = Callable[[], Awaitable[Response]]


def ids(request: str, links: Links) -> dict[str, str]:
    """Return the id and the addresses of a request."""
    return {
        "request_id": request,
        "response_url": links.response(request),
        "status_url": links.status(request),
        "cancel_url": links.cancel(request),
    }


async def state(queue: Queue, found: Entry | Known, links: Links, *, logs: bool) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the JSON of a request's state."""
    about = ids(found.id, links)
    if isinstance(found, Entry):
        if found.state == WAITING:
            return 202, {"status": "IN_QUEUE", "queue_position": queue.position(found), "logs": None, **about}
        return 202, {"status": "IN_PROGRESS", "logs": await queue.logs(found) if logs else None, **about}
    if found.state != OVER:  # it has just come, or is just leaving
        return 202, {"status": "IN_PROGRESS", "logs": None, **about}
    data: dict[str, Any] = {
        "status": "COMPLETED",
        "logs": (json.loads(found.logs) if found.logs else []) if logs else None,
        "metrics": {"inference_time": found.seconds},
        **about,
    }
    if found.error:
        data |= {"error": found.error, "error_type": found.error_type}
    return 200, data


def failure(status: int, kind: str, error: errors.AtollError) -> JSONResponse:
    """Return an error of the queue itself; `detail` is its text, as the published clients show it."""
    data = {"detail": error.message, "error_type": kind, "hint": error.hint}
    headers = {"x-fal-error-type": kind}
    if status in (429, 503) or "retry_after" in error.details:
        headers["retry-after"] = str(error.details.get("retry_after", 5))
    if status == 401:
        headers["www-authenticate"] = "Key"
    return JSONResponse(data, status, headers)


async def answer(handle: Handler, scope: Scope, name: str = "") -> Response:
    """Return a handler's answer, or an error as the published clients read it; both name the request.

    Args:
        name: the id of the queued request; empty for none.
    """
    try:
        found = await handle()
    except errors.AtollError as error:
        status = error.status if isinstance(error, errors.NotAuthorized) else status_of(error)
        kind = _KINDS.get(status, "bad_request" if status < 500 else "internal_error")
        kind = "disk_full" if isinstance(error, errors.DiskFull) else kind
        found = failure(status, kind, error)
    found.headers.setdefault("x-fal-request-id", name or scope["atoll.request"])
    found.headers.setdefault("cache-control", "no-store")
    return found


_KINDS = {401: "unauthorized", 403: "unauthorized", 503: "runner_scheduling_failure"}
