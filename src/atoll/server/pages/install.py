"""The page as a part of the server: its routes, after those of accounts and files, whose parts it uses."""

from __future__ import annotations

from atoll.server.files.routes import MOST_BODY_BYTES
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
    usage,
    visit,
)
from atoll.server.pages.serving import endpoints as endpoint_pages
from atoll.server.pages.serving import kept, requests, schedules
from atoll.server.state import ServerState


def install(state: ServerState) -> None:
    """Add the page to a server."""
    state.parts["error_page"] = visit.http_error
    state.body_bytes["/files"] = MOST_BODY_BYTES
    live.install(state)
    state.parts["page_answers"] = kept.Answers()
    state.parts["descriptions"] = endpoint_pages.Descriptions()
    for part in (
        *(asset_routes, login, issuer, calls, live, endpoint_pages, requests, schedules),
        *(files, environments, usage, keys, secrets, admin),
    ):
        state.routes += part.routes()
