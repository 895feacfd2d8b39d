"""Cookies of the page: the session's, and one for browsers that have not logged in yet."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import HTTPConnection
from starlette.responses import Response

from atoll.server.accounts.authentication import cookie_of as _cookie_of
from atoll.server.accounts.sessions import COOKIE, SESSION_SECONDS
from atoll.server.principal import Principal
from atoll.server.state import ServerState

FORM_COOKIE = "atoll_form"
"""The cookie of a browser that has not logged in: the form for it has a token as well."""
FORM_SECONDS = 86400


class Sessions(Protocol):
    """Sessions, as the accounts keep them."""

    async def open(self, principal: Principal) -> str:
        """Begin a session; return the value of its cookie."""
        ...

    async def find(self, cookie: str) -> Principal | None:
        """Return the user of a session; None where it has ended."""
        ...

    async def close(self, cookie: str) -> None:
        """End a session."""
        ...


def sessions_of(state: ServerState) -> Sessions:
    """Return the sessions of a server."""
    found: Sessions = state.parts["page_sessions"]
    return found


def cookie_of(connection: HTTPConnection, name: str = COOKIE) -> str:
    """Return the value of a browser's cookie, the session's if no other is named; empty for none."""
    return _cookie_of(connection.headers.get("cookie", ""), name)


def set_session(connection: HTTPConnection, response: Response, value: str) -> None:
    """Give a browser the cookie of a session."""
    set_cookie(connection, response, COOKIE, value, SESSION_SECONDS)


def clear_session(response: Response) -> None:
    """Take the cookie of a session away."""
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="lax")


def set_cookie(connection: HTTPConnection, response: Response, name: str, value: str, seconds: int) -> None:
    """Give a browser a cookie that no script reads and no other site's form sends."""
    secure = connection.url.scheme == "https"
    response.set_cookie(name, value, max_age=seconds, path="/", secure=secure, httponly=True, samesite="lax")
