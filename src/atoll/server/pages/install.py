"""The page as a part of the server: its routes, its sessions, and cookies as a way to name a user."""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie

from atoll import errors
from atoll.server.pages import asset_routes, calls, live, login, sessions, visit
from atoll.server.principal import Principal
from atoll.server.state import Authenticate, ServerState


def install(state: ServerState) -> None:
    """Add the page to a server; where no part keeps sessions, they live in this process's memory."""
    if "page_sessions" not in state.parts:
        state.parts["page_sessions"] = sessions.MemorySessions()
        state.authenticate = with_cookies(state, state.authenticate)
    state.parts["error_page"] = visit.http_error
    for part in (asset_routes, login, calls, live):
        state.routes += part.routes()


def with_cookies(state: ServerState, further: Authenticate) -> Authenticate:
    """Return an authentication that also knows the page's cookies; `further` decides about requests with a key."""

    async def authenticate(headers: dict[str, str], address: str) -> Principal:
        if "authorization" in headers:
            return await further(headers, address)
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(sessions.COOKIE)
        except CookieError:
            found = None
        if found is None:
            return await further(headers, address)
        principal = await sessions.sessions_of(state).find(found.value)
        if principal is None:
            raise errors.NotAuthorized("the session has ended", hint="log in again")
        return principal

    return authenticate
