"""The page as a part of the server: its routes, after those of accounts and files, whose parts it uses."""

from __future__ import annotations

from atoll.server.pages import (
    admin,
    asset_routes,
    calls,
    environments,
    files,
    issuer,
    keys,
    live,
    login,
    secrets,
    upload,
    usage,
    visit,
)
from atoll.server.state import ServerState


def install(state: ServerState) -> None:
    """Add the page to a server."""
    state.parts["error_page"] = visit.http_error
    state.body_bytes["/files"] = upload.MOST_BYTES + (1 << 20)
    live.install(state)
    for part in (asset_routes, login, issuer, calls, live, files, environments, usage, keys, secrets, admin):
        state.routes += part.routes()
