"""Routes with typed bodies and answers: checked when they come, and readable for the API's description."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from atoll import errors
from atoll.terminal_text import cell

T = TypeVar("T")

MOST_BODY_BYTES = 64 << 10
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Typed:
    """An endpoint with the types of its body and its answer.

    Args:
        function: takes the request, and the body where there is one; returns the answer.
        body: the type of the body; None for none.
        answer: the type of the answer.
        status: of the answer.
    """

    function: Callable[..., Awaitable[Any]]
    body: Any
    answer: Any
    status: int

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        given = () if self.body is None else (await read_body(request, self.body),)
        answer = await self.function(request, *given)
        headers = {"Cache-Control": "no-store"}
        return Response(_encode(answer), self.status, headers, media_type="application/json")


def typed(
    path: str,
    method: str,
    function: Callable[..., Awaitable[Any]],
    *,
    body: Any = None,
    answer: Any,
    status: int = 200,
    public: bool = False,
) -> Route:
    """Return a route whose `typed` attribute tells the types of its endpoint.

    Args:
        public: it needs no key; for the API's description.
    """
    endpoint = Typed(function, body, answer, status)

    async def handle(request: Request) -> Response:
        return await endpoint(request)

    handle.__doc__ = function.__doc__
    handle.typed = endpoint  # type: ignore[attr-defined]
    if public:
        handle.described = {method.lower(): {"security": []}}  # type: ignore[attr-defined]
    return Route(path, handle, methods=[method], name=getattr(function, "__name__", "").strip("_"))


def plain(value: Any) -> dict[str, Any]:
    """Return an answer as JSON-compatible data."""
    found: dict[str, Any] = msgspec.to_builtins(value)
    return found


async def read_body(request: Request, kind: type[T], most_bytes: int = MOST_BODY_BYTES) -> T:
    """Return a request's JSON body as a value of a type.

    Raises:
        CallerError: it is too long, no JSON, or of another type.
    """
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > most_bytes:
            raise errors.CallerError(f"the body has more than {most_bytes:,} bytes", hint="send less", status=413)
    try:
        return msgspec.json.decode(bytes(data) or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.CallerError(
            f"the body is not as this route needs it: {cell(str(error), 200)}", hint="see `/v1/openapi.json`"
        ) from error
