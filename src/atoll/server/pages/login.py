"""Pages for logging in and out: with a key, or at the issuer of identities that the server has."""

from __future__ import annotations

import secrets

from starlette.responses import Response
from starlette.routing import BaseRoute

from atoll import errors
from atoll.server.pages import guard, sessions
from atoll.server.pages.visit import LOGIN, Visit, route

MOST_KEY_CHARACTERS = 400


def routes() -> list[BaseRoute]:
    """Return the routes of these pages."""
    return [
        route(LOGIN, show, public=True),
        route(LOGIN, log_in, method="POST", public=True),
        route("/logout", log_out, method="POST"),
    ]


async def show(visit: Visit) -> Response:
    """Show the form."""
    if visit.principal is not None:
        return visit.go(next_page(visit.query("next")))
    return _form(visit)


def _form(visit: Visit, error: errors.AtollError | None = None, back: str = "") -> Response:
    secret = sessions.cookie_of(visit.request, sessions.FORM_COOKIE) or secrets.token_urlsafe(24)
    response = visit.page(
        "login.html",
        status=error.status if isinstance(error, errors.NotAuthorized) else 200,
        error=error,
        back=back or visit.query("next"),
        form_token=guard.form_token(secret),
        issuer=visit.state.parts.get("issuer_name", ""),
    )
    sessions.set_cookie(visit.request, response, sessions.FORM_COOKIE, secret, sessions.FORM_SECONDS)
    return response


async def log_in(visit: Visit) -> Response:
    """Begin a session for the owner of a key."""
    key = "".join(visit.form.get("key", "").split())[:MOST_KEY_CHARACTERS]
    back = visit.form.get("next", "")
    address = visit.request.client.host if visit.request.client is not None else ""
    try:
        if not key.isascii() or ":" not in key:
            raise errors.NotAuthorized("a key looks like `ID:SECRET`", hint="paste both parts with the colon between")
        principal = await visit.state.authenticate({"authorization": f"Key {key}"}, address)
    except errors.NotAuthorized as error:
        return _form(visit, error, back)
    response = visit.go(next_page(back))
    cookie = await sessions.sessions_of(visit.state).open(principal)
    sessions.set_session(visit.request, response, cookie)
    sessions.set_cookie(visit.request, response, sessions.FORM_COOKIE, "", 0)
    return response


async def log_out(visit: Visit) -> Response:
    """End the session."""
    await sessions.sessions_of(visit.state).close(sessions.cookie_of(visit.request))
    response = visit.go(LOGIN)
    sessions.clear_session(response)
    return response


def next_page(path: str) -> str:
    """Return the page to go to after logging in: one of this server, else the first."""
    inside = path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if inside and path.isascii() and not path.startswith((LOGIN, "/v1/")) else "/"
