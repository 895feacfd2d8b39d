"""Sessions of the page: a cookie's value, and the user who has logged in with it.

A session is known by the digest of its cookie, so that a look at this process's memory or a log shows none that can be
used. Those of this module end with the server; a part named `page_sessions` with the same methods takes their place.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import HTTPConnection
from starlette.responses import Response

from atoll.server.principal import Principal
from atoll.server.state import ServerState

COOKIE = "atoll_session"
FORM_COOKIE = "atoll_form"
"""The cookie of a browser that has not logged in: the form for it has a token as well."""
SESSION_SECONDS = 7 * 86400
MOST_SESSIONS = 10_000


class Sessions(Protocol):
    """Sessions, wherever they are kept."""

    async def open(self, principal: Principal) -> str:
        """Begin a session; return the value of its cookie."""
        ...

    async def find(self, cookie: str) -> Principal | None:
        """Return the user of a session; None where it has ended."""
        ...

    async def close(self, cookie: str) -> None:
        """End a session."""
        ...


@dataclass
class _Session:
    principal: Principal
    ends_at: float


class MemorySessions:
    """Sessions in this process's memory."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}

    async def open(self, principal: Principal) -> str:
        """Begin a session; return the value of its cookie. Where there are too many, the oldest ends."""
        cookie = secrets.token_urlsafe(32)
        while len(self._sessions) >= MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[_digest(cookie)] = _Session(principal, time.time() + SESSION_SECONDS)
        return cookie

    async def find(self, cookie: str) -> Principal | None:
        """Return the user of a session; None where it has ended."""
        found = self._sessions.get(_digest(cookie))
        return found.principal if found is not None and found.ends_at > time.time() else None

    async def close(self, cookie: str) -> None:
        """End a session."""
        self._sessions.pop(_digest(cookie), None)


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).hexdigest()


def sessions_of(state: ServerState) -> Sessions:
    """Return the sessions of a server."""
    found: Sessions = state.parts["page_sessions"]
    return found


def cookie_of(connection: HTTPConnection) -> str:
    """Return the value of a browser's session cookie; empty for none."""
    return connection.cookies.get(COOKIE, "")


def set_cookie(connection: HTTPConnection, response: Response, name: str, value: str, seconds: int) -> None:
    """Give a browser a cookie that no script reads and no other site's form sends."""
    secure = connection.url.scheme == "https"
    response.set_cookie(name, value, max_age=seconds, path="/", secure=secure, httponly=True, samesite="lax")


def clear_cookie(response: Response, name: str) -> None:
    """Take a cookie away."""
    response.delete_cookie(name, path="/", httponly=True, samesite="lax")
