"""Pages of other sites that may call an endpoint (CORS), where its revision names them."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import HTTPConnection, Request
from starlette.types import Message, Send

ANY = "*"
_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
PREFLIGHT_SECONDS = 600


def is_preflight(request: Request) -> bool:
    """Return whether a browser asks if it may ask."""
    return request.method == "OPTIONS" and "access-control-request-method" in request.headers


def _origin(connection: HTTPConnection, origins: Sequence[str]) -> str:
    origin: str = connection.headers.get("origin", "")
    return origin if origin and (ANY in origins or origin in origins) else ""


def preflight(request: Request, origins: Sequence[str]) -> dict[str, str]:
    """Return the headers of the answer to such a question."""
    origin = _origin(request, origins)
    if not origin:
        return {"vary": "Origin"}
    asked = request.headers.get("access-control-request-headers", "")
    return {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": _METHODS,
        "access-control-allow-headers": asked[:1000] or "*",
        "access-control-max-age": str(PREFLIGHT_SECONDS),
        "vary": "Origin",
    }


def allowing(request: Request, origins: Sequence[str], send: Send) -> Send:
    """Return `send` with the headers that let the asking page read the answer."""
    origin = _origin(request, origins)
    if not origin:
        return send

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [one for one in message["headers"] if not one[0].lower().startswith(b"access-control-")]
            own += [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-expose-headers", b"*"),
                (b"vary", b"Origin"),
            ]
            message = {**message, "headers": own}
        await send(message)

    return sending
