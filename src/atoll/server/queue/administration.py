"""Routes of an endpoint's owner: how many wait, and the end of all that wait."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from atoll import errors
from atoll.server.accounts.audit import audit
from atoll.server.endpoints.gateway import Gateway
from atoll.server.endpoints.rows import Revision
from atoll.server.principal import ADMIN, Principal
from atoll.server.queue.answers import answer
from atoll.server.queue.queue import Queue
from atoll.server.state import state_of


def routes() -> list[BaseRoute]:
    """Return the routes."""
    path = "/applications/{owner}/{alias}/queue"
    return [
        Route(form, _answered(function), methods=[method], include_in_schema=False)
        for form in (path, path + "/")
        for method, function in (("GET", size), ("DELETE", flush))
    ]


def _answered(function: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        return await answer(partial(function, request), request.scope)

    handle.__doc__ = function.__doc__
    return handle


async def _owned(request: Request) -> tuple[Queue, Revision, Principal]:
    """Return the endpoint of a path, for its owner alone."""
    parts, parameters = state_of(request).parts, request.path_params
    gateway: Gateway = parts["gateway"]
    caller = await gateway.known_caller(request, parameters["owner"], parameters["alias"])
    revision = await gateway.find(parameters["owner"], parameters["alias"])
    if caller.user != revision.user:
        raise gateway.unknown()
    return parts["queue"], revision, caller


async def size(request: Request) -> Response:
    """Tell how many requests wait for an endpoint."""
    queue, revision, _ = await _owned(request)
    return JSONResponse({"size": queue.size(revision.user, request.path_params["alias"])})


async def flush(request: Request) -> Response:
    """Cancel all requests that wait for an endpoint, or those of one caller."""
    queue, revision, caller = await _owned(request)
    if caller.scope != ADMIN:
        hint = "use a key of the scope ADMIN"
        raise errors.CallerError("a key of the scope API empties no queue", hint=hint, status=403)
    alias, only = request.path_params["alias"], request.query_params.get("caller_user_id", "")
    count = await queue.flush(revision.user, alias, only)
    details = {"requests": count, "caller": only[:64]}
    await queue.writer.do(
        lambda connection: audit(connection, caller, "queue.flush", f"{revision.owner}/{alias}", details)
    )
    return JSONResponse({"size": queue.size(revision.user, alias), "cancelled": count})
