"""Health of the server for those who watch it: `/healthz` of the process, `/readyz` of its node as well."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from atoll import errors
from atoll.server.state import ServerState, state_of

READY_SECONDS = 5.0
"""Seconds that the node may take to answer `/readyz`."""


def install(state: ServerState) -> None:
    """Add the routes, which need no key and say nothing of users."""
    state.routes.append(Route("/healthz", _alive))
    state.routes.append(Route("/readyz", _ready))


async def _alive(_request: Request) -> Response:
    """Tell that the process runs."""
    return JSONResponse({"status": "ok"})


async def _ready(request: Request) -> Response:
    """Tell whether the node answers."""
    return await readiness(state_of(request))


async def readiness(state: ServerState) -> Response:
    """Return the answer of `/readyz`."""
    node = state.node
    try:
        await asyncio.wait_for(node.ask(None, "capacity", {}), READY_SECONDS)
    except errors.HostUnreachable as error:
        named = error.message if "node_version" in error.details else "the node does not answer"
        return JSONResponse({"status": named}, 503)
    except (errors.AtollError, TimeoutError, OSError):
        return JSONResponse({"status": "the node does not answer"}, 503)
    return JSONResponse({"status": "ok"})
