"""The part of webhooks of a server: deliveries, and the key that their receivers check."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from atoll.server.state import ServerState, state_of
from atoll.server.webhooks.delivering import Deliveries
from atoll.server.webhooks.signing import read_signer

JWKS = "/.well-known/jwks.json"
KEPT_SECONDS = 3600
"""Seconds for which receivers may keep the key."""


def install(state: ServerState) -> None:
    """Add the part."""
    options = state.node.options
    signer = read_signer(options.home)
    deliveries = Deliveries(state.parts["accounts"].database, signer, options.webhooks)
    state.parts |= {"webhooks": deliveries, "signer": signer}
    state.routes.append(Route(JWKS, jwks, methods=["GET"], include_in_schema=False))
    state.lifespan.append(deliveries.serving)


async def jwks(request: Request) -> Response:
    """Tell the public key that webhooks are signed with; no key is needed."""
    signer = state_of(request).parts["signer"]
    return JSONResponse(signer.jwks(), headers={"cache-control": f"public, max-age={KEPT_SECONDS}"})
