"""Files of the page itself: style, script and icon, kept by browsers for as long as they like."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from atoll.server.pages.guard import HEADERS
from atoll.server.pages.rendering import ASSETS, TYPES, asset_digest

NAMES = ("atoll.css", "atoll.js", "serving.js", "atoll.svg")


def routes() -> list[BaseRoute]:
    """Return the route of these files."""
    return [Route("/assets/{digest}/{name}", answer, methods=["GET"])]


async def answer(request: Request) -> Response:
    """Answer with a file; another content has another address."""
    name = request.path_params["name"]
    if name not in NAMES or request.path_params["digest"] != asset_digest(name):
        return Response("not found", 404, HEADERS, "text/plain")
    headers = {**HEADERS, "Cache-Control": "public, max-age=31536000, immutable"}
    return Response((ASSETS / name).read_bytes(), 200, headers, TYPES[name.rpartition(".")[2]])
