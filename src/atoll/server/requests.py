"""Requests that are no calls, over HTTP: `POST /v1/requests/NAME` with JSON arguments, answered in JSON.

The node checks rights and arguments: it answers in the name of the key's user.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from atoll import errors
from atoll.server.line.terms import MOST_PARTS
from atoll.server.principal import Principal
from atoll.server.state import ServerState, principal_of, state_of
from atoll.wire.bounds import parts_of
from atoll.wire.line import price_of

T = TypeVar("T")


def install(state: ServerState) -> None:
    """Add the route."""
    _answer.described = {  # type: ignore[attr-defined]
        "post": {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}
    }
    state.routes.append(Route("/v1/requests/{name}", _answer, methods=["POST"]))


async def _answer(request: Request) -> Response:
    """Ask the node, in the name of the key's user; arguments and answer are JSON objects that depend on the name."""
    principal, state = await principal_of(request), state_of(request)
    node = state.node
    with node.counted(principal):  # before the body, which is memory
        asked = _ask(state, principal, request.path_params["name"], await request.body())
        return JSONResponse(await while_connected(request, asked))


async def _ask(state: ServerState, principal: Principal, name: str, body: bytes) -> dict[str, Any]:
    """Ask the node at the user's pace: reading costs server and node by the parts of the body."""
    await state.node.paces.afford(principal.user, price_of(min(parts_of(body), MOST_PARTS), len(body)))
    return await state.asks.ask_counted(principal, name, read_object(body))


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of work that is cancelled when the client goes; the body has been read.

    Raises:
        ClientDisconnect: the client went first.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body; an empty body is an empty object.

    Raises:
        ProtocolMismatch: it is something else.
    """
    try:
        if parts_of(body) > MOST_PARTS:
            raise ValueError(f"it has more than {MOST_PARTS} parts")
        value = json.loads(body.decode("utf-8")) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise errors.CallerError(f"the body is not JSON: {error}", hint="send a JSON object") from error
    if not isinstance(value, dict):
        raise errors.CallerError("the body is not a JSON object", hint="send a JSON object")
    return value
